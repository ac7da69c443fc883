//! What differs between databases where jobs in a table of the user's own are concerned.

#[cfg(feature = "postgres")]
use sqlx::Postgres;
#[cfg(feature = "sqlite")]
use sqlx::Sqlite;
use sqlx::{Database, Row as _};

use super::describe::Times;

/// What a column has to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Any,
    Text,
    Integer,
    /// An integer that never stops growing, though slowly.
    Count,
    Fence,
    Time(Times),
}

/// What jobs need of a database. Public in name only: the module is private.
pub trait Jobs: Database {
    /// Ends a SELECT that claims.
    const CLAIMED: &'static str;

    /// The time at which the statement began, as a column has it, and not after. An index can be searched for it.
    fn now(times: Times) -> &'static str;

    /// The time so many milliseconds after that, and not before.
    fn after(times: Times, milliseconds: &str) -> String;

    /// Yields for each column of a table its name, its kind, whether it is unique by itself, and how many
    /// characters it takes if that is limited. The names are plain.
    fn columns(schema: Option<&str>, table: &str) -> String;

    /// Whether this is the same name.
    fn same_name(one: &str, other: &str) -> bool;

    /// Whether a column of that kind will do.
    fn fits(kind: &str, role: Role) -> bool;

    /// Reads a text.
    fn text(row: &Self::Row, at: usize) -> Result<String, sqlx::Error>;
}

#[cfg(feature = "postgres")]
impl Jobs for Postgres {
    /// The key is never changed, so rows that refer to this one may be inserted meanwhile.
    const CLAIMED: &'static str = " FOR NO KEY UPDATE SKIP LOCKED";

    fn now(times: Times) -> &'static str {
        match times {
            Times::Timestamp => "statement_timestamp()",
            Times::Utc => "(statement_timestamp() AT TIME ZONE 'UTC')",
            Times::UnixSeconds => "floor(extract(epoch FROM statement_timestamp()))::bigint",
            Times::UnixMillis => "floor(extract(epoch FROM statement_timestamp()) * 1000)::bigint",
        }
    }

    fn after(times: Times, milliseconds: &str) -> String {
        let time = format!("(statement_timestamp() + {milliseconds} * interval '1 millisecond')");
        match times {
            Times::Timestamp => time,
            Times::Utc => format!("({time} AT TIME ZONE 'UTC')"),
            Times::UnixSeconds => format!("ceil(extract(epoch FROM {time}))::bigint"),
            Times::UnixMillis => format!("ceil(extract(epoch FROM {time}) * 1000)::bigint"),
        }
    }

    fn columns(schema: Option<&str>, table: &str) -> String {
        let schema = schema.map_or_else(String::new, |schema| format!("\"{schema}\"."));
        // A domain is what it is made of.
        format!(
            "SELECT a.attname::text, \
                    CASE WHEN b.typcategory IN ('S', 'E') THEN 'text' ELSE b.typname::text END, \
                    EXISTS (SELECT FROM pg_index i WHERE i.indrelid = a.attrelid AND i.indisunique \
                              AND i.indisvalid AND i.indpred IS NULL AND i.indnkeyatts = 1 \
                              AND i.indkey[0] = a.attnum)::int::bigint, \
                    CASE WHEN b.typname IN ('varchar', 'bpchar') AND greatest(a.atttypmod, t.typtypmod) > 4 \
                         THEN (greatest(a.atttypmod, t.typtypmod) - 4)::bigint END \
             FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
             JOIN pg_type b ON b.oid = CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END \
             WHERE a.attrelid = to_regclass('{schema}\"{table}\"') AND a.attnum > 0 AND NOT a.attisdropped"
        )
    }

    fn same_name(one: &str, other: &str) -> bool {
        one == other
    }

    fn fits(kind: &str, role: Role) -> bool {
        match role {
            Role::Any => true,
            Role::Text => kind == "text",
            Role::Integer | Role::Time(Times::UnixSeconds | Times::UnixMillis) => {
                matches!(kind, "int2" | "int4" | "int8")
            }
            Role::Count => matches!(kind, "int4" | "int8"),
            Role::Fence => kind == "int8",
            Role::Time(Times::Timestamp) => kind == "timestamptz",
            Role::Time(Times::Utc) => kind == "timestamp",
        }
    }

    fn text(row: &Self::Row, at: usize) -> Result<String, sqlx::Error> {
        row.try_get(at)
    }
}

#[cfg(feature = "sqlite")]
impl Jobs for Sqlite {
    /// One statement writes at a time.
    const CLAIMED: &'static str = "";

    fn now(times: Times) -> &'static str {
        match times {
            Times::Timestamp | Times::Utc => "strftime('%Y-%m-%d %H:%M:%f', 'now')",
            Times::UnixSeconds => "unixepoch('now')",
            Times::UnixMillis => "CAST(round(unixepoch('subsec') * 1000) AS INTEGER)",
        }
    }

    fn after(times: Times, milliseconds: &str) -> String {
        let now = Self::now(Times::UnixMillis);
        match times {
            Times::Timestamp | Times::Utc => format!(
                "strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%.3f seconds', {milliseconds} / 1000.0))"
            ),
            Times::UnixSeconds => format!("({now} + {milliseconds} + 999) / 1000"),
            Times::UnixMillis => format!("{now} + {milliseconds}"),
        }
    }

    fn columns(schema: Option<&str>, table: &str) -> String {
        let schema = schema.map_or_else(String::new, |schema| format!(", '{schema}'"));
        let of_table = format!("'{table}'{schema}");
        // By the rules that give a column its affinity. What has no kind by them takes whatever it is given.
        format!(
            "SELECT c.name, \
                    CASE WHEN c.type LIKE '%INT%' THEN 'integer' \
                         WHEN c.type LIKE '%CHAR%' OR c.type LIKE '%CLOB%' OR c.type LIKE '%TEXT%' THEN 'text' \
                         ELSE 'any' END, \
                    (c.pk = 1 AND (SELECT count(*) FROM pragma_table_xinfo({of_table}) WHERE pk > 0) = 1) \
                    OR EXISTS (SELECT 1 FROM pragma_index_list({of_table}) l WHERE l.[unique] AND NOT l.partial \
                                 AND (SELECT group_concat(i.name) FROM pragma_index_info(l.name{schema}) i) = c.name), \
                    NULL \
             FROM pragma_table_xinfo({of_table}) c"
        )
    }

    fn same_name(one: &str, other: &str) -> bool {
        one.eq_ignore_ascii_case(other)
    }

    fn fits(kind: &str, role: Role) -> bool {
        match role {
            Role::Any => true,
            Role::Text | Role::Time(Times::Timestamp | Times::Utc) => kind != "integer",
            Role::Integer
            | Role::Count
            | Role::Fence
            | Role::Time(Times::UnixSeconds | Times::UnixMillis) => kind != "text",
        }
    }

    fn text(row: &Self::Row, at: usize) -> Result<String, sqlx::Error> {
        row.try_get(at)
    }
}
