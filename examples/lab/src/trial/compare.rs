//! The same load on a SQLite file and on a PostgreSQL server.

use super::postgres::{PoolStats, counter as counter_of_server, spread};
use super::waits;
use crate::app::{Journal, Way};
use crate::crew::Crew;
use crate::lab::{Lab, POOL, counter as counter_of_file};
use crate::load::{Shot, Tally};
use crate::report::{Chart, Section, Unit, cells};
use crate::server::Server;

/// What is compared.
const SIDES: [(bool, Way, &str); 5] = [
    (false, Way::Patient, "SQLite, naive"),
    (true, Way::Autocommit, "PostgreSQL, naive"),
    (false, Way::Locked, "SQLite, locked"),
    (false, Way::Optimistic, "SQLite, optimistic"),
    (true, Way::Locked, "PostgreSQL, locked"),
];

/// All of them.
pub(crate) async fn run(lab: &mut Lab, server: &Server) -> anyhow::Result<()> {
    let (n, processes) = (lab.scale.work * 2, lab.processes);
    let mut section = Section::new(
        "compare",
        "SQLite and PostgreSQL",
        format!(
            "{n} increments at once, over {processes} processes with a pool of {POOL} each; 10 ms between the read and the write"
        ),
        [
            ("load", Unit::Text),
            ("database", Unit::Text),
            ("done", Unit::Percent),
            ("errors", Unit::Percent),
            ("lost", Unit::Count),
            ("mean response", Unit::Milliseconds),
            ("p99 response", Unit::Milliseconds),
            ("done a second", Unit::PerSecond),
            ("connections", Unit::Count),
        ],
    );
    for (load, shots) in [
        ("one counter", vec![Shot::increment("compared"); n]),
        ("64 counters", spread(n, "compared")),
    ] {
        for (on_server, way, side) in SIDES {
            lab.doing(format!("{load}: {side}"));
            let (mut crew, file) = if on_server {
                clear(server).await?;
                (
                    lab.on_server(&server.url(), processes, way, POOL).await?,
                    None,
                )
            } else {
                let (crew, file) = lab.on_file(processes, way, Journal::Wal).await?;
                (crew, Some(file))
            };
            let tally = crew.volley(shots.clone()).await?;
            let connections = connections(&crew).await?;
            crew.end().await?;
            let mut value = 0;
            for key in keys(load) {
                value += match &file {
                    Some(file) => counter_of_file(file, &key).await?,
                    None => counter_of_server(server, &key).await?,
                };
            }
            let [mean, p99, _] = waits(&tally)?;
            let lost = tally.ok().cast_signed() - value;
            section.row(cells![
                load,
                side,
                100.0 - tally.error_rate(),
                tally.error_rate(),
                lost,
                mean,
                p99,
                tally.per_second(),
                connections,
            ]);
            if !way.is_naive() {
                demand(lab, side, load, &tally, lost);
            }
        }
    }
    section.chart(Chart::bars("Increments done a second", 0, 1, 7));
    section.chart(Chart::bars("Mean response, ms", 0, 1, 5));
    lab.add(section);
    Ok(())
}

fn demand(lab: &mut Lab, side: &str, load: &str, tally: &Tally, lost: i64) {
    let (ok, sent) = (tally.ok(), tally.sent());
    lab.demand(
        ok == sent && lost == 0,
        format!("{side}, {load}: {ok} of {sent} are done, {lost} lost"),
    );
}

/// The counters of a load.
fn keys(load: &str) -> Vec<String> {
    if load == "one counter" {
        return vec!["compared".to_owned()];
    }
    (0..64).map(|number| format!("compared-{number}")).collect()
}

/// Every load begins with no counter.
async fn clear(server: &Server) -> anyhow::Result<()> {
    use lockkit_db::sqlx;
    let clear = "DO $$ BEGIN
        IF to_regclass('counter') IS NOT NULL THEN DELETE FROM counter; END IF; END $$";
    sqlx::raw_sql(clear)
        .execute(&mut server.connect().await?)
        .await?;
    Ok(())
}

/// Open ones of all processes together.
async fn connections(crew: &Crew) -> anyhow::Result<u64> {
    let mut open = 0;
    for member in &crew.members {
        let (_, text) = crew
            .http
            .get(&format!("{}/api/pool-stats", member.url))
            .await?;
        let PoolStats { total, .. } = serde_json::from_str(&text)?;
        open += total;
    }
    Ok(open)
}
