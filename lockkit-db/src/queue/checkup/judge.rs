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
    found.extend(figures.tables.iter().flat_map(table));
    found.extend(figures.holders.iter().filter_map(holder));
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

fn table(table: &TableFigures) -> Vec<Finding> {
    let mut found = Vec::new();
    if !table.autovacuum {
        found.push(Finding::AutovacuumOff {
            table: Some(table.name.clone()),
        });
    }
    if table.dead > DEAD.0 + table.live / DEAD.1 {
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
