//! What is wrong, by what was measured. The limits are here, and nowhere else.

use std::time::Duration;

use super::{Figures, Finding, Holder, StoreFile, TableFigures, Who};

/// A lease is stuck when it has been over for so many of its lengths, and for so long: any worker would have ended
/// it at its next upkeep.
const OVER: (u32, Duration) = (3, Duration::from_secs(5));

/// A claim is long when it is so many leases old, and so old.
const LONG: (u32, Duration) = (20, Duration::from_mins(1));

/// A transaction is long.
const OPEN: Duration = Duration::from_mins(1);

/// Of what has no time: so many transactions ago.
const BEHIND: u64 = 1_000_000;

/// Clocks differ, in milliseconds.
const SKEW_MS: u64 = 1000;

/// Dead rows are many: ten times what makes autovacuum begin on the jobs.
const DEAD: (u64, u64) = (10_000, 10);

/// Autovacuum comes by once a minute as a rule, and a busy queue makes very many dead rows in that time. It has passed a
/// table over that was vacuumed longer ago.
const PASSED_OVER: Duration = Duration::from_mins(5);

/// Where nobody knows for how long rows have been dead, so many times as many: the first work after a rest makes them
/// all within a minute too.
const UNKNOWN_AGE: u64 = 10;

/// A table is bloated that is so large, and has fewer rows than a page each would need twice over.
const BLOAT_BYTES: u64 = 64 << 20;

/// A page of PostgreSQL, unless it was built otherwise.
const PAGE: u64 = 8192;

/// Notifications are read at once as a rule, and their queue is empty: this much of it is 80 MB.
const UNREAD: f64 = 0.01;

/// SQLite moves its log into the file every 1000 pages.
const WAL_PAGES: u64 = 4000;

/// The findings that follow from figures, in no order.
pub(in crate::queue) fn judge(figures: &Figures) -> Vec<Finding> {
    let mut found = Vec::new();
    for plan in &figures.plans {
        found.extend(plan.problems.iter().map(|problem| Finding::SlowPlan {
            statement: plan.statement,
            problem: problem.clone(),
        }));
    }
    found.extend(figures.holders.iter().filter_map(holder));
    let held_back = |finding: &Finding| matches!(finding, Finding::HeldBack { .. });
    let held = found.iter().any(held_back);
    let tables = figures.tables.iter();
    found.extend(tables.flat_map(|one| table(one, held)));
    if let Some(offset) = figures.clock
        && offset.certain_ms() > SKEW_MS
    {
        found.push(Finding::ClockSkew { offset });
    }
    leases(figures, &mut found);
    if let Some(usage) = figures.notifications
        && usage >= UNREAD
    {
        found.push(Finding::Notifications { usage });
    }
    settings(figures, &mut found);
    let waiting = figures.paused.iter().filter(|queue| queue.ready > 0);
    found.extend(waiting.map(|queue| Finding::Paused {
        queue: queue.clone(),
    }));
    found.extend(figures.file.iter().flat_map(file));
    found
}

fn table(table: &TableFigures, held: bool) -> Vec<Finding> {
    let mut found = Vec::new();
    if !table.autovacuum {
        found.push(Finding::AutovacuumOff {
            table: Some(table.name.clone()),
        });
    }
    if has_many_dead(table, held) {
        found.push(Finding::DeadRows {
            table: table.clone(),
        });
    }
    // No row takes more than a page of the table itself.
    let used = (table.live + table.dead) * PAGE;
    if table.bytes >= BLOAT_BYTES && table.bytes > 2 * used {
        found.push(Finding::Bloated {
            what: table.name.clone(),
            bytes: table.bytes,
            used,
        });
    }
    found
}

/// Whether nothing seems to remove a table's dead rows, rather than that it is about to; or it cannot, as they are held.
fn has_many_dead(table: &TableFigures, held: bool) -> bool {
    let many = DEAD.0 + table.live / DEAD.1;
    let limit = match table.vacuumed {
        _ if held => many,
        Some(ago) if ago <= PASSED_OVER => return false,
        _ if !table.autovacuum => many,
        _ => UNKNOWN_AGE * many,
    };
    table.dead > limit
}

fn holder(holder: &Holder) -> Option<Finding> {
    let long = |time: Option<Duration>| time.is_some_and(|time| time > OPEN);
    let holder = || holder.clone();
    let of = holder();
    let unused = matches!(of.who, Who::Slot { active: false, .. });
    match of.behind {
        Some(behind) if long(of.since) || behind > BEHIND || unused => {
            Some(Finding::HeldBack { holder: holder() })
        }
        None if long(of.idle) => Some(Finding::IdleInTransaction { holder: holder() }),
        _ => None,
    }
}

fn leases(figures: &Figures, found: &mut Vec<Finding>) {
    let leases = &figures.leases;
    let over = leases.over.iter();
    let stuck = over.filter(|session| session.over > OVER.1.max(session.lease * OVER.0));
    found.extend(stuck.map(|session| Finding::LeaseOver {
        session: session.clone(),
    }));
    if leases.orphans > 0 {
        found.push(Finding::Orphans {
            jobs: leases.orphans,
            oldest: leases.oldest_orphan.unwrap_or_default(),
        });
    }
    let claims = leases.longest.iter();
    let long = claims.filter(|claim| claim.since > LONG.1.max(claim.lease * LONG.0));
    found.extend(long.map(|claim| Finding::LongClaim {
        claim: claim.clone(),
    }));
}

fn settings(figures: &Figures, found: &mut Vec<Finding>) {
    for setting in &figures.settings {
        match (&*setting.name, &*setting.value) {
            ("fsync" | "full_page_writes" | "synchronous_commit", "off")
            | ("synchronous", "normal" | "off") => found.push(Finding::LosesCommits {
                setting: setting.clone(),
            }),
            ("autovacuum" | "track_counts", "off") => {
                let off = Finding::AutovacuumOff { table: None };
                if !found.contains(&off) {
                    found.push(off);
                }
            }
            ("default_transaction_read_only", "on") if !figures.standby => {
                found.push(Finding::ReadOnly { standby: false });
            }
            _ => {}
        }
    }
    if figures.standby {
        found.push(Finding::ReadOnly { standby: true });
    }
    if let Some((at, known)) = figures.schema
        && at != known
    {
        found.push(Finding::Schema { found: at, known });
    }
}

fn file(file: &StoreFile) -> Vec<Finding> {
    let mut found = Vec::new();
    if file.wal_pending > WAL_PAGES {
        found.push(Finding::WalHeldBack { file: *file });
    }
    let bytes = file.pages * file.page_bytes;
    if bytes >= BLOAT_BYTES && file.free > file.pages / 2 {
        found.push(Finding::Bloated {
            what: "the file".to_owned(),
            bytes,
            used: (file.pages - file.free) * file.page_bytes,
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::JobId;
    use crate::queue::checkup::{ClockOffset, HeldClaim, Leases, OverLease, PausedQueue, Setting};

    /// The kinds of what is found, in the order of their names.
    fn kinds(figures: &Figures) -> Vec<String> {
        let kind = |finding: &Finding| {
            let text = format!("{finding:?}");
            text.split(' ').next().unwrap_or_default().to_owned()
        };
        let mut kinds: Vec<_> = judge(figures).iter().map(kind).collect();
        kinds.sort_unstable();
        kinds
    }

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn tables(table: TableFigures) -> Figures {
        let tables = vec![table];
        Figures {
            tables,
            ..Figures::default()
        }
    }

    fn vacuumed(live: u64, dead: u64, vacuumed: Option<Duration>) -> TableFigures {
        TableFigures {
            live,
            dead,
            vacuumed,
            autovacuum: true,
            ..TableFigures::default()
        }
    }

    fn unvacuumed(live: u64, dead: u64, ago: Option<Duration>) -> TableFigures {
        TableFigures {
            autovacuum: false,
            ..vacuumed(live, dead, ago)
        }
    }

    fn slot(active: bool, behind: Option<u64>) -> Holder {
        let name = "slot".to_owned();
        Holder {
            who: Who::Slot { name, active },
            since: None,
            idle: None,
            behind,
        }
    }

    fn holders(holder: Holder) -> Figures {
        let holders = vec![holder];
        Figures {
            holders,
            ..Figures::default()
        }
    }

    fn clock(least_ms: i64, most_ms: i64) -> Figures {
        Figures {
            clock: Some(ClockOffset { least_ms, most_ms }),
            ..Figures::default()
        }
    }

    fn over(lease: Duration, over: Duration) -> Figures {
        let session = OverLease {
            session: 1,
            worker: "w".to_owned(),
            lease,
            over,
            jobs: 1,
        };
        let leases = Leases {
            over: vec![session],
            ..Leases::default()
        };
        Figures {
            leases,
            ..Figures::default()
        }
    }

    fn claimed(lease: Duration, since: Duration) -> Figures {
        let claim = HeldClaim {
            job: JobId(1),
            queue: "q".to_owned(),
            kind: "k".to_owned(),
            attempt: 1,
            worker: "w".to_owned(),
            lease,
            since,
        };
        let leases = Leases {
            longest: vec![claim],
            ..Leases::default()
        };
        Figures {
            leases,
            ..Figures::default()
        }
    }

    fn store_file(pages: u64, free: u64, wal_pending: u64) -> Figures {
        let file = StoreFile {
            page_bytes: 4096,
            pages,
            free,
            wal: wal_pending,
            wal_pending,
        };
        Figures {
            file: Some(file),
            ..Figures::default()
        }
    }

    fn setting(name: &str, value: &str) -> Figures {
        let setting = Setting {
            name: name.to_owned(),
            value: value.to_owned(),
        };
        Figures {
            settings: vec![setting],
            ..Figures::default()
        }
    }

    /// A kind of finding, the last number with which it is none, and what has a number.
    type Limit = (&'static str, u64, fn(u64) -> Figures);

    const LIMITS: [Limit; 25] = [
        ("DeadRows", 10_050, |n| Figures {
            holders: vec![slot(false, Some(0))],
            ..tables(vacuumed(500, n, Some(ms(1))))
        }),
        ("DeadRows", 10_050, |n| tables(unvacuumed(500, n, None))),
        ("DeadRows", 100_500, |n| tables(vacuumed(500, n, None))),
        ("DeadRows", 100_500, |n| {
            tables(vacuumed(500, n, Some(ms(300_001))))
        }),
        ("DeadRows", 300_000, |n| {
            tables(vacuumed(0, 100_001, Some(ms(n))))
        }),
        ("DeadRows", 300_000, |n| {
            tables(unvacuumed(0, 10_001, Some(ms(n))))
        }),
        ("Bloated", (64 << 20) - 1, |bytes| {
            let table = vacuumed(0, 0, None);
            tables(TableFigures { bytes, ..table })
        }),
        ("Bloated", 20_000 * 8192, |bytes| {
            let table = vacuumed(5000, 5000, None);
            tables(TableFigures { bytes, ..table })
        }),
        ("HeldBack", 60_000, |n| {
            let since = Some(ms(n));
            let slot = slot(true, Some(0));
            holders(Holder { since, ..slot })
        }),
        ("HeldBack", 1_000_000, |n| holders(slot(true, Some(n)))),
        ("HeldBack", 0, |n| holders(slot(n == 0, Some(0)))),
        ("IdleInTransaction", 60_000, |n| {
            let idle = Some(ms(n));
            let slot = slot(true, None);
            holders(Holder { idle, ..slot })
        }),
        ("ClockSkew", 1000, |n| clock(n.cast_signed(), 9999)),
        ("ClockSkew", 1000, |n| clock(-9999, -n.cast_signed())),
        ("LeaseOver", 5000, |n| over(ms(1000), ms(n))),
        ("LeaseOver", 30_000, |n| over(ms(10_000), ms(n))),
        ("Orphans", 0, |orphans| {
            let leases = Leases {
                orphans,
                ..Leases::default()
            };
            Figures {
                leases,
                ..Figures::default()
            }
        }),
        ("LongClaim", 60_000, |n| claimed(ms(1000), ms(n))),
        ("LongClaim", 200_000, |n| claimed(ms(10_000), ms(n))),
        ("Notifications", 99, |n| Figures {
            notifications: Some(n as f64 / 10_000.0),
            ..Figures::default()
        }),
        ("Paused", 0, |ready| {
            let queue = "q".to_owned();
            Figures {
                paused: vec![PausedQueue { queue, ready }],
                ..Figures::default()
            }
        }),
        ("Schema", 2, |n| Figures {
            schema: Some((n.cast_signed(), 2)),
            ..Figures::default()
        }),
        ("WalHeldBack", 4000, |n| store_file(1, 0, n)),
        ("Bloated", 16_383, |n| store_file(n, n, 0)),
        ("Bloated", 10_000, |n| store_file(20_000, n, 0)),
    ];

    // Mutants: C110, C112
    #[test]
    fn each_limit_is_fine_and_one_more_is_found() {
        for (at, (kind, last, figures)) in LIMITS.iter().enumerate() {
            let mut expected = kinds(&figures(*last));
            let fine = !expected.iter().any(|found| found == kind);
            assert!(fine, "{at}: {kind} at {last}: {expected:?}");
            expected.push((*kind).to_owned());
            expected.sort_unstable();
            assert_eq!(kinds(&figures(last + 1)), expected, "{at}: {kind}");
        }
    }

    // Mutant: C111
    #[test]
    fn dead_rows_a_minute_after_a_vacuum_are_none_too_many_unless_they_are_held() {
        let busy = tables(vacuumed(0, 10_000_000, Some(Duration::from_mins(1))));
        assert_eq!(kinds(&busy), [""; 0]);
        let held = Figures {
            holders: vec![slot(true, Some(1_000_001))],
            ..busy
        };
        assert_eq!(kinds(&held), ["DeadRows", "HeldBack"]);
        // Who has not been there for long holds nothing up.
        let brief = Figures {
            holders: vec![slot(true, Some(1000))],
            ..held
        };
        assert_eq!(kinds(&brief), [""; 0]);
    }

    #[test]
    fn an_idle_transaction_is_judged_by_its_idle_time_and_a_snapshot_by_its_age() {
        let hour = Some(Duration::from_hours(1));
        let since = Holder {
            since: hour,
            ..slot(true, None)
        };
        assert_eq!(kinds(&holders(since)), [""; 0]);
        let idle = Holder {
            idle: hour,
            ..slot(true, Some(0))
        };
        assert_eq!(kinds(&holders(idle)), [""; 0]);
        assert_eq!(kinds(&holders(slot(false, None))), [""; 0]);
    }

    #[test]
    fn a_setting_is_found_if_it_is_the_wrong_way() {
        for (name, value, found) in [
            ("fsync", "off", "LosesCommits"),
            ("full_page_writes", "off", "LosesCommits"),
            ("synchronous_commit", "off", "LosesCommits"),
            ("synchronous", "normal", "LosesCommits"),
            ("synchronous", "off", "LosesCommits"),
            ("autovacuum", "off", "AutovacuumOff"),
            ("track_counts", "off", "AutovacuumOff"),
            ("default_transaction_read_only", "on", "ReadOnly"),
        ] {
            assert_eq!(kinds(&setting(name, value)), [found], "{name} = {value}");
            let other = if value == "on" { "off" } else { "on" };
            assert_eq!(kinds(&setting(name, other)), [""; 0], "{name} = {other}");
        }
        assert_eq!(kinds(&setting("synchronous_commit", "local")), [""; 0]);
        let both = Figures {
            standby: true,
            ..setting("default_transaction_read_only", "on")
        };
        assert_eq!(judge(&both), [Finding::ReadOnly { standby: true }]);
        let mut twice = setting("autovacuum", "off");
        twice
            .settings
            .extend(setting("track_counts", "off").settings);
        assert_eq!(judge(&twice), [Finding::AutovacuumOff { table: None }]);
        assert_eq!(kinds(&tables(unvacuumed(0, 0, None))), ["AutovacuumOff"]);
        let older = Figures {
            schema: Some((1, 2)),
            ..Figures::default()
        };
        assert_eq!(kinds(&older), ["Schema"]);
    }
}
