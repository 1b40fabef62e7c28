//! One run: a source under load, a worker, a target, and an operator on a bad day. At the end all is calm, and the
//! target must show what the source has.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use cutover::{
    config::Config,
    control::{notes::Notes, replay::Ask},
    log::Log,
    model::{Beyond, Position, TableName, TableSchema, Value, Version},
    observe::Environment as _,
    pipeline::capture::Register,
    source::CaptureError,
    state::{
        dead_letters::{DeadLetterState, Selection},
        replays::From,
        requests::Command,
    },
};

use super::{
    chance::{Chance, Fault, Run},
    load,
    log::Disk,
    mutations::Mutation,
    oracle::{self, Oracle},
    postgres::{Postgres, Value as Stored},
    source::{Server, watched},
    verify::{self, Comparing, Verified},
    worker::{self, Gate, Process},
};

/// How often the operator looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long a worker may take to settle once all is calm.
const SETTLED_WITHIN: Duration = Duration::from_secs(900);
/// How long the operator waits between two repairs of the same kind.
const REPAIR_EVERY: Duration = Duration::from_secs(5);

/// Everything of one run.
pub struct World {
    pub chance: Arc<Chance>,
    pub source: Arc<Server>,
    pub log: Arc<Disk>,
    pub postgres: Arc<Postgres>,
    pub config: Arc<Config>,
    pub oracle: Arc<Oracle>,
}

/// What a run that held showed.
#[derive(Debug, Default)]
pub struct Seen {
    pub rows: u64,
    pub commits: u64,
    pub verified: Verified,
    pub faults: std::collections::BTreeMap<Fault, u32>,
}

fn base_config() -> Config {
    static CONFIG: OnceLock<Config> = OnceLock::new();
    let text = "name = 'sim'\n[source]\nurl = 'mysql://a:b@127.0.0.1/shop'\n[target]\nurl = 'postgresql://a:b@127.0.0.1/shop'\n[verify]\nrows_per_second = 0\n";
    CONFIG.get_or_init(|| Config::parse(text, PathBuf::new(), &|_| None).unwrap()).clone()
}

impl World {
    fn new(run: Run) -> Arc<Self> {
        let chance = Arc::new(Chance::new(run));
        let mut config = base_config();
        config.log.partitions = if chance.likely(0.5) { 1 } else { chance.number(2..4) as u32 };
        config.snapshot.chunk_rows = chance.number(1..5);
        config.snapshot.parallel = chance.number(1..4) as usize;
        config.snapshot.apply_parallel = chance.number(1..4) as usize;
        config.apply.batch_rows_max = chance.number(1..9) as usize;
        if chance.likely(0.3) {
            config.apply.transaction_rows_max = 10;
        }
        let atomic = chance.likely(0.5);
        chance.note(format!("{:?} {:?} {:?}, atomic log: {atomic}", config.log, config.snapshot, config.apply));
        chance.note(format!("{:?}", chance.taste));
        let log = Disk::new(Arc::clone(&chance), config.log.partitions, atomic);
        let source = Server::new(Arc::clone(&chance));
        let oracle = Oracle::new(Arc::clone(&chance));
        let postgres = oracle::postgres(&chance, &oracle);
        Arc::new(World { chance, source, log, postgres, config: Arc::new(config), oracle })
    }

    pub fn is(&self, mutation: Mutation) -> bool {
        self.chance.run.mutation == Some(mutation)
    }

    /// Where the capture loop registers what it learns.
    pub fn register(self: &Arc<Self>, notes: Notes) -> Arc<dyn Register> {
        Arc::new(Registered { notes, world: Arc::clone(self) })
    }
}

struct Registered {
    notes: Notes,
    world: Arc<World>,
}

#[async_trait]
impl Register for Registered {
    async fn schema(&self, schema: &TableSchema, clock: Version) -> Result<(), CaptureError> {
        self.notes.schema(schema, clock).await
    }

    async fn rewritten(&self, table: &TableName, columns: &[String], clock: Version) -> Result<(), CaptureError> {
        let clock = if self.world.is(Mutation::RecopyTooEarly) { 0 } else { clock };
        self.notes.rewritten(table, columns, clock).await
    }

    async fn begins_anew(&self, has_rows: bool) -> Result<(), CaptureError> {
        if self.world.is(Mutation::NoCopyWithoutPosition) { Ok(()) } else { self.notes.begins_anew(has_rows).await }
    }

    async fn begins_at(&self, log: &dyn Log, position: &Position, clock: Version) -> Result<(), CaptureError> {
        self.notes.begins_at(log, position, clock).await
    }

    async fn clock_moves(&self, to: Version) -> Result<(), CaptureError> {
        self.notes.clock_moves(to).await
    }

    async fn beyond(&self) -> Result<Option<Beyond>, CaptureError> {
        self.notes.beyond().await
    }

    async fn beyond_is_over(&self) -> Result<(), CaptureError> {
        self.notes.beyond_is_over().await
    }

    async fn all_copied_again(&self) -> Result<bool, CaptureError> {
        self.notes.all_copied_again().await
    }
}

/// Plays a run; `Err` says what did not hold.
pub fn play(run: Run) -> Result<Seen, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let world = World::new(run);
        let played = world.clone().live().await;
        let problem = world.oracle.first_problem().map_or(played, Err);
        problem.map_err(|problem| format!("{problem}\n{}", world.chance.history().join("\n")))
    })
}

impl World {
    async fn live(self: Arc<Self>) -> Result<Seen, String> {
        let mut fresh = 1000;
        let chance = Arc::clone(&self.chance);
        for steps in load::beginning(&chance, &mut fresh) {
            while !self.source.is_free(&steps) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            self.source.commit(steps);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let loading = Arc::new(Mutex::new(true));
        let (world, running) = (Arc::clone(&self), Arc::clone(&loading));
        let load = tokio::spawn(async move {
            let mut commits = 0;
            for _ in 0..world.chance.run.transactions {
                world.chance.sleep(Duration::from_millis(150)).await;
                if let Some(steps) = load::transaction(&world.source, &world.chance, &mut fresh) {
                    world.source.commit(steps);
                    commits += 1;
                }
            }
            *running.lock().unwrap() = false;
            commits
        });
        let mut operator = Operator { process: Some(Process::start(&self)), world: Arc::clone(&self), repaired: None };
        let comparing = chance.verifies.then(|| Comparing::begin(&self));
        while *loading.lock().unwrap() {
            operator.look().await?;
        }
        let commits = load.await.map_err(|error| error.to_string())?;
        chance.calm();
        self.postgres.set_reachable(true);
        if chance.likely(0.5) {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let amends = load::amends(&self.source.newest());
            if !amends.is_empty() {
                // What still holds one of these rows was to be seen first.
                while !self.source.is_free(&amends) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                self.source.commit(amends);
            }
        }
        operator.settle().await?;
        let rows = self.oracle.judge(&self.postgres, &self.source.newest())?;
        let mut verified = Verified::default();
        if let Some(comparing) = comparing
            && self.oracle.first_problem().is_none()
        {
            verified = comparing.end(&self).await;
            verify::spoilt(&self, &mut verified).await?;
            self.oracle.judge(&self.postgres, &self.source.newest())?;
        }
        if let Some(process) = operator.process.take() {
            process.end().await;
        }
        Ok(Seen { rows, commits, verified, faults: chance.struck() })
    }
}

/// One of the tables that are followed.
fn any_table(chance: &Chance) -> &'static str {
    let tables = watched(chance);
    tables[chance.number(0..tables.len() as u64) as usize]
}

struct Operator {
    world: Arc<World>,
    process: Option<Process>,
    repaired: Option<tokio::time::Instant>,
}

impl Operator {
    fn strikes(&self, fault: Fault, probability: f64) -> bool {
        self.world.chance.strikes(fault, probability, || "by the operator".into())
    }

    fn start(&mut self) {
        self.world.chance.note("a worker starts".into());
        self.process = Some(Process::start(&self.world));
    }

    async fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill().await;
        }
    }

    /// A while passes, and something may happen.
    async fn look(&mut self) -> Result<(), String> {
        let killed = tokio::select! {
            biased;
            () = self.world.chance.kill.notified() => true,
            () = tokio::time::sleep(LOOK_EVERY) => false,
        };
        if killed {
            self.kill().await;
            self.world.chance.sleep(Duration::from_millis(500)).await;
            self.start();
        }
        self.repair().await?;
        self.trouble_worker().await;
        self.trouble_log().await;
        self.trouble_databases().await;
        Ok(())
    }

    async fn trouble_worker(&mut self) {
        if self.strikes(Fault::Stop, 0.01) {
            if let Some(process) = self.process.take() {
                process.end().await;
            }
            self.start();
        }
        if !self.world.log.is_exclusive() && self.strikes(Fault::Zombie, 0.02) {
            let Some(zombie) = self.process.take() else { return };
            zombie.gate.close();
            let chance = Arc::clone(&self.world.chance);
            self.start();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(chance.number(1..25))).await;
                chance.note("the zombie wakes up".into());
                zombie.gate.open();
                tokio::time::sleep(Duration::from_secs(5)).await;
                zombie.kill().await;
            });
        }
    }

    async fn trouble_log(&mut self) {
        if self.strikes(Fault::LogTailLost, 0.008) {
            self.kill().await;
            self.world.log.lose_tail();
            self.start();
        }
        if self.strikes(Fault::LogLost, 0.008) {
            self.kill().await;
            self.world.log.lose();
            self.start();
        }
    }

    async fn trouble_databases(&mut self) {
        let world = Arc::clone(&self.world);
        let chance = Arc::clone(&world.chance);
        if self.strikes(Fault::TargetCrash, 0.01) {
            world.postgres.crash();
        }
        if self.strikes(Fault::TargetAway, 0.01) {
            world.postgres.set_reachable(false);
            let (postgres, pause) = (Arc::clone(&world.postgres), chance.pause(Duration::from_secs(4)));
            tokio::spawn(async move {
                tokio::time::sleep(pause).await;
                postgres.set_reachable(true);
            });
        }
        if self.strikes(Fault::SourceAway, 0.01) {
            world.source.go_away(chance.pause(Duration::from_secs(4)));
        }
        if self.strikes(Fault::Failover, 0.01) {
            world.source.fail_over(0);
        }
        if self.strikes(Fault::FailoverWithLoss, 0.01) {
            world.source.fail_over(chance.number(1..4) as usize);
        }
        if self.strikes(Fault::Purge, 0.02) {
            world.source.purge();
        }
        if self.strikes(Fault::Resnapshot, 0.03) {
            self.copy_again(any_table(&chance)).await;
        }
        if self.strikes(Fault::Replay, 0.02) {
            self.replay().await;
        }
        if self.strikes(Fault::Retry, 0.02) {
            self.retry().await;
        }
    }

    /// Leaves a request, as a command does.
    async fn ask(&self, command: Command, arguments: &serde_json::Value) {
        let store = worker::store(&self.world, &Arc::<Gate>::default());
        let asked = tokio::time::timeout(Duration::from_secs(5), store.ask_with(command, arguments)).await;
        self.world.chance.note(format!("asked: {} {arguments}: {}", command.name(), matches!(asked, Ok(Ok(_)))));
    }

    /// `cutover resnapshot TABLE`
    async fn copy_again(&self, table: &str) {
        self.ask(Command::Resnapshot, &serde_json::json!({ "subject": table })).await;
    }

    /// `cutover replay --from TIMESTAMP`, or from the beginning, sometimes of one table.
    async fn replay(&self) {
        let chance = &self.world.chance;
        let from = if chance.likely(0.5) {
            From::Beginning
        } else {
            From::TimeUs(chance.now_us() - chance.number(0..5_000_000).cast_signed())
        };
        let tables = if chance.likely(0.5) { Vec::new() } else { vec![any_table(chance).into()] };
        let ask = Ask { from, label: "simulated".into(), tables, dry_run: chance.likely(0.1) };
        self.ask(Command::Replay, &serde_json::to_value(ask).unwrap()).await;
    }

    /// `cutover dlq retry`
    async fn retry(&self) {
        let store = worker::store(&self.world, &Arc::<Gate>::default());
        let letters = store.dead_letters(DeadLetterState::Open, &Selection::All);
        let Ok(Ok(letters)) = tokio::time::timeout(Duration::from_secs(5), letters).await else { return };
        let ids: Vec<i64> = letters.iter().map(|letter| letter.id).collect();
        if !ids.is_empty() {
            self.ask(Command::RetryDeadLetters, &serde_json::json!({ "ids": ids })).await;
        }
    }

    /// Does what a halt's remedy says.
    async fn repair(&mut self) -> Result<(), String> {
        let Some(process) = &self.process else { return Ok(()) };
        let Some(halt) = process.vitals().halts.first() else { return Ok(()) };
        if self.repaired.is_some_and(|repaired| repaired.elapsed() < REPAIR_EVERY) {
            return Ok(());
        }
        self.repaired = Some(tokio::time::Instant::now());
        self.world.chance.note(format!("halted: {}", halt.what));
        let source_lost =
            ["never executed", "purged", "another server now"].iter().any(|word| halt.what.contains(word));
        let log_lost = ["its tail is lost", "are gone"].iter().any(|word| halt.what.contains(word));
        // Of two workers one has lost the lease, and steps down as soon as it learns of it.
        if halt.what.contains("another worker has moved") {
            return Ok(());
        }
        if halt.what.contains("already open in another process") {
            self.kill().await;
            self.start();
        } else if source_lost {
            for table in watched(&self.world.chance) {
                self.copy_again(table).await;
            }
        } else if log_lost {
            self.kill().await;
            self.world.log.lose();
            self.start();
        } else {
            return Err(format!("a halt that nothing explains: {} ({})", halt.what, halt.fix));
        }
        Ok(())
    }

    /// Waits until the worker has settled, repairing what is halted.
    async fn settle(&mut self) -> Result<(), String> {
        let deadline = tokio::time::Instant::now() + SETTLED_WITHIN;
        // What was to be killed when the calm began is.
        self.kill().await;
        self.start();
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if self.world.oracle.first_problem().is_some() {
                return Ok(());
            }
            self.repair().await?;
            if self.is_settled() {
                return Ok(());
            }
            if tokio::time::Instant::now() > deadline {
                return Err(format!("not settled: {}", self.whereabouts()));
            }
        }
    }

    fn is_settled(&self) -> bool {
        let Some(process) = &self.process else { return false };
        let end = Position::Mysql(self.world.source.end());
        let captured = process.vitals().frontier.watch_captured().borrow().clone();
        let reached = captured.is_some_and(|captured| {
            captured.position.covers(&end) && process.vitals().frontier.reached(&captured.ends)
        });
        let (oracle, postgres) = (&self.world.oracle, &self.world.postgres);
        reached
            && process.vitals().halts.first().is_none()
            && oracle.is_copied(postgres)
            && oracle.waiting(postgres) == 0
            && oracle.cascades(postgres) == 0
            && oracle.asked(postgres).is_empty()
    }

    fn whereabouts(&self) -> String {
        let (oracle, postgres) = (&self.world.oracle, &self.world.postgres);
        let worker = self.process.as_ref().map(|process| {
            format!(
                "captured {:?}, halted {:?}, troubles {:?}",
                process.vitals().frontier.watch_captured().borrow().as_ref().map(|captured| &captured.position),
                process.vitals().halts.first(),
                process.vitals().halts.troubles()
            )
        });
        format!(
            "source at {:?}; {}; asked {:?}, copied {}, waiting {}, cascades {:?}, dead letters {:?}",
            self.world.source.end(),
            worker.unwrap_or_default(),
            oracle.asked(postgres),
            oracle.is_copied(postgres),
            format_args!("{:?}", postgres.cutover_rows("waiting")),
            postgres.cutover_rows("cascades"),
            oracle.dead_letters(postgres)
        )
    }
}

/// The same value, whichever side it is from.
pub fn same(source: &Value, target: &Stored) -> bool {
    match (source, target) {
        (Value::Int(one), Stored::Int(other)) => one == other,
        (Value::Text(one), Stored::Text(other)) => one.as_str() == &**other,
        (Value::Null, Stored::Null) => true,
        (Value::Null, Stored::Int(_)) | (Value::Int(_), Stored::Null) => false,
        (one, other) => panic!("{one:?} and {other:?} are of no simulated type"),
    }
}
