//! The story: instances, clients, a backup, a crash of the database, the end of an instance, and the count at the end.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use axum::http::{Method, StatusCode};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::types::Json;
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};

use crate::Options;
use crate::backup;
use crate::crew::{Instance, Orders};
use crate::http::Balancer;
use crate::ledger::Contents;
use crate::load::{self, Client, World, is_crisis};
use crate::metrics::number;
use crate::place::Place;
use crate::report::{Backup, Figures, Kill, Outage};
use crate::store::Message;

/// After how long without a request a session ends, in this run.
const IDLE: Duration = Duration::from_secs(5);

/// Sessions that nobody uses.
const IDLE_SESSIONS: u64 = 20;

/// How long the database is away, at least.
const AWAY: Duration = Duration::from_secs(3);

/// How long a killed instance is gone.
const GONE: Duration = Duration::from_millis(500);

/// For what is only waited for when something is broken.
const STALL: Duration = Duration::from_mins(1);

/// How often it is looked whether something has happened.
const LOOK: Duration = Duration::from_millis(20);

/// A run that has begun.
struct Run<'r> {
    place: &'r Place,
    options: &'r Options,
    live: PgConnectOptions,
    orders: Orders,
    crew: Vec<Instance>,
    world: Arc<World>,
    /// What a killed instance had counted.
    counted: String,
}

/// Runs everything, and counts.
pub(crate) async fn run(place: &Place, options: &Options) -> anyhow::Result<Figures> {
    let folder = tempfile::tempdir().context("a temporary folder cannot be made")?;
    let live = place.create("live").await?;
    let mut connection = live.connect().await?;
    backup::make_tables(&mut connection).await?;
    if options.naive {
        let queue =
            "CREATE TABLE naive_queue (list jsonb NOT NULL); INSERT INTO naive_queue VALUES ('[]')";
        sqlx::raw_sql(queue).execute(&mut connection).await?;
    }
    connection.close().await?;

    let orders = Orders {
        db: live.to_url_lossy().into(),
        idle: IDLE,
        naive: options.naive,
    };
    let mut crew = Vec::new();
    for _ in 0..options.instances {
        crew.push(Instance::start(&orders).await?);
    }
    let balancer = Balancer::new(crew.iter().map(|instance| instance.address));
    let run = Run {
        place,
        options,
        live,
        orders,
        crew,
        world: Arc::new(World::new(balancer)),
        counted: String::new(),
    };
    run.go(&folder.path().join("backup.jsonl")).await
}

impl Run<'_> {
    async fn go(mut self, file: &Path) -> anyhow::Result<Figures> {
        let idle: Vec<_> = (0..IDLE_SESSIONS)
            .map(|number| format!("idle-{number}"))
            .collect();
        let used: Vec<_> = (0..self.options.sessions())
            .map(|number| format!("s-{number}"))
            .collect();
        for session in &idle {
            self.world.begin(session, false).await;
        }
        for (number, session) in used.iter().enumerate() {
            self.world.begin(session, is_crisis(number)).await;
        }

        let began = Instant::now();
        let mut clients = JoinSet::new();
        for number in 0..self.options.clients as usize {
            let client = Client::new(Arc::clone(&self.world), number, &used, self.options.seed);
            clients.spawn(client.live());
        }
        let switches = tokio::spawn(load::turn_switches(Arc::clone(&self.world)));
        tell(&format!(
            "{} clients write to {} sessions",
            self.options.clients,
            used.len()
        ));

        self.at(began, 0.25).await;
        let backup_began = Instant::now();
        let written = backup::write(&self.live, file).await?;
        let backup_ended = Instant::now();
        tell(&format!(
            "backup: {} sessions, {} queued",
            written.sessions, written.manual_replies
        ));
        let (mut outage, mut kill) = (None, None);
        if !self.options.no_nemesis {
            self.at(began, 0.4).await;
            outage = Some(self.outage().await?);
            self.at(began, 0.7).await;
            kill = Some(self.kill().await?);
        }
        self.at(began, 1.0).await;
        self.world.stop.send_replace(Some(Instant::now()));
        clients.join_all().await;
        let left = switches.await?;
        let seconds = began.elapsed().as_secs_f64();

        let mut figures = self.counts(seconds).await?;
        let contents = self.contents(&self.live, self.options.naive).await?;
        let (on, switch_known) = (self.auto_reply().await?, left.is_some());
        figures.switch_as_told = !switch_known || left == Some(on);
        figures.idle = IDLE_SESSIONS;
        figures.idle_ended = self.until_ended(&idle).await?;
        figures.queue = contents.queue.len() as u64;
        figures.verdict(&self.world.ledger.lock().judge(&contents, None));

        let restored = self.place.create("restored").await?;
        let counts = backup::restore(file, &restored).await?;
        ensure!(counts == written, "restored {counts:?}, of {written:?}");
        let restored = self.contents(&restored, false).await?;
        figures.backup = self.backup(&restored, &contents, backup_began, backup_ended);
        if let Some((since, mut kill)) = kill {
            let served = &self.world.served[kill.instance as usize - 1];
            // Ordering: relaxed; the clients have ended.
            kill.acknowledged_since = served.load(Ordering::Relaxed) - since;
            figures.kill = Some(kill);
        }
        figures.outage = outage;
        figures.ended_well = true;
        for instance in self.crew {
            if let Err(error) = instance.end().await {
                figures.strange.push(format!("{error:#}"));
                figures.ended_well = false;
            }
        }
        Ok(figures)
    }

    /// Waits for that part of the time to be over.
    async fn at(&self, began: Instant, part: f64) {
        let at = began + Duration::from_secs(self.options.seconds).mul_f64(part);
        sleep_until(at.into()).await;
    }

    /// Takes the database away, until the instances say so and clients are told; then gives it back.
    async fn outage(&self) -> anyhow::Result<Outage> {
        let going = Instant::now();
        self.place.down(&self.live).await?;
        let down = Instant::now();
        tell(&format!(
            "the database is down, after {} ms",
            (down - going).as_millis()
        ));
        let refused = || {
            self.world
                .tally
                .lock()
                .unavailable
                .iter()
                .filter(|(began, _)| *began > down)
                .count()
        };
        self.until(
            "every instance to notice, and a client to be told",
            async || Ok(refused() > 0 && self.health(StatusCode::SERVICE_UNAVAILABLE).await),
        )
        .await?;
        sleep_until((down + AWAY).into()).await;
        let up = Instant::now();
        self.place.up(&self.live).await?;
        let started = Instant::now();
        self.until("every instance to be well again", async || {
            Ok(self.health(StatusCode::OK).await)
        })
        .await?;
        let back_ms = started.elapsed().as_millis() as u64;
        tell("the database is back");
        let tally = self.world.tally.lock();
        let within = |times: &[(Instant, Instant)]| {
            times
                .iter()
                .filter(|(began, at)| *began > down && *at < up)
                .count() as u64
        };
        Ok(Outage {
            crash: self.place.is_own(),
            ms: (up - down).as_millis() as u64,
            unavailable: within(&tally.unavailable),
            acknowledged: within(&tally.acknowledged),
            back_ms,
        })
    }

    /// Kills an instance in the middle of whatever it does, and starts another one in its place. With how many appends
    /// that place had acknowledged before.
    async fn kill(&mut self) -> anyhow::Result<(u64, Kill)> {
        let victim = fastrand::Rng::with_seed(self.options.seed).usize(..self.crew.len());
        let metrics = self.world.balancer.get(victim, "/metrics").await;
        let metrics = metrics.map_err(|_| anyhow::anyhow!("an instance has no metrics"))?;
        self.counted = String::from_utf8_lossy(&metrics.body).into_owned();
        self.crew[victim].kill().await?;
        let killed = Instant::now();
        tell(&format!("instance {} is killed", victim + 1));
        sleep(GONE).await;
        let instance = Instance::start(&self.orders).await?;
        // Ordering: relaxed; of the old process's appends all are counted, as long as it is gone.
        let before = self.world.served[victim].load(Ordering::Relaxed);
        self.world.balancer.moved(victim, instance.address);
        self.crew[victim] = instance;
        let back_ms = killed.elapsed().as_millis() as u64;
        self.until("the new instance to be of use", async || {
            Ok(self.world.served[victim].load(Ordering::Relaxed) > before)
        })
        .await?;
        tell(&format!("instance {} is back", victim + 1));
        let kill = Kill {
            instance: victim as u64 + 1,
            back_ms,
            acknowledged_since: 0,
        };
        Ok((before, kill))
    }

    async fn health(&self, expected: StatusCode) -> bool {
        for instance in 0..self.world.balancer.instances() {
            match self.world.balancer.get(instance, "/health").await {
                Ok(answer) if answer.status == expected => {}
                _ => return false,
            }
        }
        true
    }

    async fn until(
        &self,
        what: &str,
        mut happened: impl AsyncFnMut() -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let began = Instant::now();
        while !happened().await? {
            ensure!(began.elapsed() < STALL, "waited {STALL:?} for {what}");
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// What the clients and the instances have counted.
    async fn counts(&self, seconds: f64) -> anyhow::Result<Figures> {
        let mut metrics = vec![self.counted.clone()];
        for instance in 0..self.world.balancer.instances() {
            let answer = self.world.balancer.get(instance, "/metrics").await;
            let answer = answer.map_err(|_| anyhow::anyhow!("an instance has no metrics"))?;
            metrics.push(String::from_utf8_lossy(&answer.body).into_owned());
        }
        let sum = |name: &str| metrics.iter().map(|text| number(text, name)).sum();
        let ledger = self.world.ledger.lock();
        let tally = self.world.tally.lock();
        let slowest = tally
            .unavailable
            .iter()
            .map(|(began, at)| at.duration_since(*began))
            .max();
        Ok(Figures {
            seed: self.options.seed,
            clients: self.options.clients,
            instances: self.options.instances,
            seconds,
            asked: ledger.asked() as u64,
            acknowledged: ledger.acknowledged() as u64,
            acknowledged_again: tally.again,
            acknowledged_per_second: ledger.acknowledged() as f64 / seconds,
            append_p50_ms: tally.append_times.value_at_quantile(0.5),
            append_p99_ms: tally.append_times.value_at_quantile(0.99),
            reads: tally.reads,
            read_p50_ms: tally.read_times.value_at_quantile(0.5),
            read_p99_ms: tally.read_times.value_at_quantile(0.99),
            older: ledger.older,
            own_missing: ledger.own_missing,
            shown_otherwise: ledger.shown_otherwise,
            cache_hits: sum("cache_hits_total"),
            cache_misses: sum("cache_misses_total"),
            cache_too_old: sum("cache_too_old_total"),
            database_reads: sum("database_reads_total"),
            tries: sum("update_tries_total"),
            conflicts: sum("update_conflicts_total"),
            locked: sum("update_escalated_total") + sum("update_locked_first_total"),
            activity_noted: sum("activity_noted_total"),
            activity_batches: sum("activity_batches_total"),
            activity_rows: sum("activity_written_total"),
            unavailable: tally.unavailable.len() as u64,
            slowest_refusal_ms: slowest.unwrap_or_default().as_millis() as u64,
            unsent: tally.unsent,
            unknown: tally.unknown,
            switch_turns: tally.switch_turns,
            used_ended: tally.ended,
            strange: tally.strange.clone(),
            ..Figures::default()
        })
    }

    /// What is in a database; of the old service's, its list is the queue.
    async fn contents(&self, database: &PgConnectOptions, naive: bool) -> anyhow::Result<Contents> {
        let mut connection = database.connect().await?;
        let sessions = "SELECT id, messages FROM sessions";
        let sessions: Vec<(String, Json<Vec<Message>>)> =
            sqlx::query_as(sessions).fetch_all(&mut connection).await?;
        let ids = |messages: Vec<Message>| messages.into_iter().map(|message| message.id).collect();
        let sessions: BTreeMap<String, Vec<String>> = sessions
            .into_iter()
            .map(|(id, Json(messages))| (id, ids(messages)))
            .collect();
        let queue = if naive {
            naive_queue(&mut connection, &sessions).await?
        } else {
            let queue = "SELECT message, session FROM manual_replies ORDER BY place";
            sqlx::query_as(queue).fetch_all(&mut connection).await?
        };
        connection.close().await?;
        Ok(Contents { sessions, queue })
    }

    async fn auto_reply(&self) -> anyhow::Result<bool> {
        let mut connection = self.live.connect().await?;
        let on = "SELECT is_on FROM switches WHERE name = 'auto_reply'";
        Ok(sqlx::query_scalar(on).fetch_one(&mut connection).await?)
    }

    /// How many of these sessions have ended, when all have or none has for long; as the instances tell it.
    async fn until_ended(&self, sessions: &[String]) -> anyhow::Result<u64> {
        let mut connection = self.live.connect().await?;
        let began = Instant::now();
        // Not by asking the instances: to look at a session is to use it.
        let count = "SELECT count(*) FROM sessions WHERE id = ANY($1) AND active";
        loop {
            let active = sqlx::query_scalar(count).bind(sessions);
            let active: i64 = active.fetch_one(&mut connection).await?;
            if active == 0 || began.elapsed() > STALL {
                break;
            }
            sleep(5 * LOOK).await;
        }
        connection.close().await?;
        let mut ended = 0;
        for session in sessions {
            let path = format!("/api/sessions/{session}");
            let answer = self
                .world
                .balancer
                .send(Method::GET, &path, None, None::<&()>)
                .await;
            ended += u64::from(answer.is_ok_and(|answer| answer.status == StatusCode::GONE));
        }
        Ok(ended)
    }

    fn backup(
        &self,
        restored: &Contents,
        live: &Contents,
        began: Instant,
        ended: Instant,
    ) -> Backup {
        let verdict = self.world.ledger.lock().judge(restored, Some(began));
        let tally = self.world.tally.lock();
        let at = tally.acknowledged.iter().map(|(_, at)| *at);
        Backup {
            sessions: restored.sessions.len() as u64,
            messages: restored.messages() as u64,
            queue: restored.queue.len() as u64,
            ms: (ended - began).as_millis() as u64,
            before: at.clone().filter(|at| *at < began).count() as u64,
            meanwhile: at.filter(|at| (began..ended).contains(at)).count() as u64,
            missing: (verdict.lost.len() + verdict.queue_lost.len()) as u64,
            wrong: (verdict.twice.len()
                + verdict.unasked.len()
                + verdict.queue_twice.len()
                + verdict.queue_unasked.len()) as u64,
            queue_alone: verdict.queue_alone.len() as u64,
            not_prefix: live.do_not_continue(restored).len() as u64,
        }
    }
}

/// What is going on, for who watches.
fn tell(what: &str) {
    eprintln!("{what}");
}

/// The old service's queue has only ids.
async fn naive_queue(
    connection: &mut PgConnection,
    sessions: &BTreeMap<String, Vec<String>>,
) -> anyhow::Result<Vec<(String, String)>> {
    let list = sqlx::query_scalar("SELECT list FROM naive_queue");
    let Json(queue): Json<Vec<String>> = list.fetch_optional(connection).await?.unwrap_or_default();
    let of = |message: &String| {
        let session = sessions
            .iter()
            .find(|(_, messages)| messages.contains(message));
        session
            .map(|(session, _)| session.clone())
            .unwrap_or_default()
    };
    Ok(queue
        .into_iter()
        .map(|message| (message.clone(), of(&message)))
        .collect())
}
