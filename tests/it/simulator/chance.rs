//! Everything that a simulated run leaves to chance, drawn from its seed; and what happened in it.
//!
//! Every kind of fault has a stream of numbers of its own, so that a run without one kind, or with fewer of all, is
//! otherwise the run that it was: that is what shrinking a failure needs.
//!
//! Most runs leave out about half of the kinds and make a few of the others many times as likely (Groce et al., "Swarm
//! Testing", ISSTA 2012): where everything goes wrong at once, what is common hides what is rare.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Mutex,
    time::Duration,
};

use cutover::observe::Environment;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio::{sync::Notify, time::Instant};

use super::mutations::Mutation;

/// The simulated time at which a run begins, µs since the Unix epoch.
pub const BEGIN_US: i64 = 1_700_000_000_000_000;

/// A kind of thing that goes wrong, or that an operator does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// The worker's process is gone, at a durable boundary.
    Kill,
    /// The worker is asked to stop, and another is started.
    Stop,
    /// The worker is paused, another takes its lease, and the first wakes up.
    Zombie,
    /// The target's server restarts: open transactions are gone.
    TargetCrash,
    /// Nothing reaches the target for a while.
    TargetAway,
    /// The target refuses a statement for now: a deadlock, a lock timeout, a full disk.
    TargetRefuses,
    /// A connection to the target breaks, before or after a statement had its effect.
    TargetCut,
    /// The source's connections break for a while.
    SourceAway,
    /// A replica that has everything becomes the source.
    Failover,
    /// A replica that lacks the last transactions becomes the source.
    FailoverWithLoss,
    /// The source throws away binlogs, whether they were captured or not.
    Purge,
    /// Commit times jump.
    ClockJump,
    /// An append fails, and a part of it may be there.
    LogRefuses,
    /// The log forgets its newest records, though they were synced.
    LogTailLost,
    /// The log is gone.
    LogLost,
    /// A table is copied again.
    Resnapshot,
    /// A part of the log is replayed.
    Replay,
    /// Dead letters are tried again.
    Retry,
    Truncate,
    /// Rows are rewritten without events.
    Alter,
    /// A part of the pipeline stands still for a while.
    Slow,
}

impl Fault {
    pub const ALL: [Fault; 21] = [
        Fault::Kill,
        Fault::Stop,
        Fault::Zombie,
        Fault::TargetCrash,
        Fault::TargetAway,
        Fault::TargetRefuses,
        Fault::TargetCut,
        Fault::SourceAway,
        Fault::Failover,
        Fault::FailoverWithLoss,
        Fault::Purge,
        Fault::ClockJump,
        Fault::LogRefuses,
        Fault::LogTailLost,
        Fault::LogLost,
        Fault::Resnapshot,
        Fault::Replay,
        Fault::Retry,
        Fault::Truncate,
        Fault::Alter,
        Fault::Slow,
    ];
}

impl std::str::FromStr for Fault {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let named = |fault: &Fault| format!("{fault:?}") == name;
        Fault::ALL.into_iter().find(named).ok_or_else(|| format!("`{name}` is no fault; they are {:?}", Fault::ALL))
    }
}

/// What decides a run. Printed, it is what `make simulate RUN=…` takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub seed: u64,
    /// Transactions at the source after the copies have been asked for.
    pub transactions: u32,
    /// How many faults strike at most.
    pub faults_max: u32,
    pub without: BTreeSet<Fault>,
    /// If there are any, these kinds strike often and no others do.
    pub often: BTreeSet<Fault>,
    /// Whether foreign keys act below the source's log; None leaves it to the seed.
    pub cascades: Option<bool>,
    /// Whether somebody compares; None leaves it to the seed.
    pub verify: Option<bool>,
    /// A rule that is broken on purpose.
    pub mutation: Option<Mutation>,
}

impl Run {
    pub fn new(seed: u64) -> Self {
        Run {
            seed,
            transactions: 40,
            faults_max: 12,
            without: BTreeSet::new(),
            often: BTreeSet::new(),
            cascades: None,
            verify: None,
            mutation: None,
        }
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed={},transactions={},faults={}", self.seed, self.transactions, self.faults_max)?;
        for fault in &self.without {
            write!(f, ",without={fault:?}")?;
        }
        for fault in &self.often {
            write!(f, ",often={fault:?}")?;
        }
        if let Some(cascades) = self.cascades {
            write!(f, ",cascades={cascades}")?;
        }
        if let Some(verify) = self.verify {
            write!(f, ",verify={verify}")?;
        }
        match self.mutation {
            Some(mutation) => write!(f, ",mutation={mutation:?}"),
            None => Ok(()),
        }
    }
}

impl std::str::FromStr for Run {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut run = Run::new(0);
        for part in text.split(',') {
            let (name, value) = part.split_once('=').ok_or_else(|| format!("`{part}` is not name=value"))?;
            let number = || value.parse::<u64>().map_err(|error| format!("`{part}`: {error}"));
            match name {
                "seed" => run.seed = number()?,
                "transactions" => run.transactions = u32::try_from(number()?).map_err(|error| error.to_string())?,
                "faults" => run.faults_max = u32::try_from(number()?).map_err(|error| error.to_string())?,
                "without" => drop(run.without.insert(value.parse()?)),
                "often" => drop(run.often.insert(value.parse()?)),
                "cascades" => run.cascades = Some(value.parse().map_err(|_| format!("`{part}` is not true or false"))?),
                "verify" => run.verify = Some(value.parse().map_err(|_| format!("`{part}` is not true or false"))?),
                "mutation" => run.mutation = Some(value.parse()?),
                other => {
                    let known = "seed, transactions, faults, without, often, cascades, verify, mutation";
                    return Err(format!("`{other}` is none of {known}"));
                }
            }
        }
        Ok(run)
    }
}

/// The chance and the time of one run.
pub struct Chance {
    pub run: Run,
    pub taste: Taste,
    /// Somebody compares in this run.
    pub verifies: bool,
    began: Instant,
    dice: Mutex<SmallRng>,
    faults: Mutex<Faults>,
    history: Mutex<Vec<String>>,
    /// The worker is to be killed.
    pub kill: Notify,
    /// The history has every record of the log and every row that is committed at the target, too.
    pub detailed: bool,
}

struct Faults {
    dice: BTreeMap<Fault, SmallRng>,
    /// How many times as likely as usual each kind is in this run.
    odds: BTreeMap<Fault, f64>,
    left: u32,
    /// No fault strikes any more.
    calm: bool,
    struck: BTreeMap<Fault, u32>,
}

/// The stream of numbers that decides which kinds of faults a run has.
const ODDS: u64 = 1000;

/// The stream of numbers that decides what the load is fond of.
const TASTE: u64 = 1001;

/// The stream of numbers that decides whether somebody compares.
const VERIFY: u64 = 1002;
/// How many runs have somebody who does.
const VERIFIED: f64 = 0.2;

/// One run in four has every kind at its usual odds.
fn odds(mut dice: SmallRng, often: &BTreeSet<Fault>) -> BTreeMap<Fault, f64> {
    let usual = dice.random_bool(0.25);
    let mut of = |fault: &Fault| match dice.random_range(0..10) {
        _ if often.contains(fault) => 20.0,
        _ if !often.is_empty() => 0.0,
        _ if usual => 1.0,
        0..5 => 0.0,
        5..8 => 1.0,
        8 => 4.0,
        _ => 12.0,
    };
    Fault::ALL.iter().map(|fault| (*fault, of(fault))).collect()
}

/// What the load of a run is fond of, as most applications are of something, and how slow its parts are beside each
/// other.
#[derive(Debug, Clone, Copy)]
pub struct Taste {
    /// A kind of step that is every second one.
    pub favourite: Option<u64>,
    /// How often a note is one that the target refuses.
    pub bad: f64,
    /// How long a commit is in the binlog, at most, before reads see it.
    pub unseen: Duration,
    /// How long copied rows travel, at most, before they are in the log.
    pub travel: Duration,
    /// How long the log takes, at most, for an append.
    pub append: Duration,
    /// Foreign keys act below the source's log.
    pub family: bool,
    /// A filter hides parents from the target.
    pub hides: bool,
}

impl Taste {
    fn new(mut dice: SmallRng, cascades: Option<bool>) -> Self {
        let favourite = dice.random_bool(0.5).then(|| dice.random_range(0..STEP_KINDS));
        let mut one_of = |millis: [u64; 3]| Duration::from_millis(millis[dice.random_range(0..3)]);
        let (unseen, travel, append) = (one_of([12, 12, 200]), one_of([8, 80, 400]), one_of([3, 3, 150]));
        let bad = [0.05, 0.15, 0.5][dice.random_range(0..3)];
        let (family, hides) = (dice.random_bool(0.5), dice.random_bool(0.3));
        let family = cascades.unwrap_or(family);
        let kinds = STEP_KINDS + if family { FAMILY_STEP_KINDS } else { 0 };
        let favourite = if family { favourite.map(|_| dice.random_range(0..kinds)) } else { favourite };
        // What is copied meets what happens to its parents.
        let travel = if family { travel * 5 } else { travel };
        Taste { favourite, bad, unseen, travel, append, family, hides }
    }
}

/// How many kinds of steps the load draws from; see `load::Load::step`.
pub const STEP_KINDS: u64 = 20;
/// How many more there are where foreign keys act below the log; see `load::Load::family_step`.
pub const FAMILY_STEP_KINDS: u64 = 13;

impl Chance {
    pub fn new(run: Run) -> Self {
        let stream = |salt: u64| SmallRng::seed_from_u64(run.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ salt);
        let dice = Fault::ALL.iter().map(|fault| (*fault, stream(1 + *fault as u64))).collect();
        let odds = odds(stream(ODDS), &run.often);
        let given = |name| std::env::var_os(name).is_some();
        Chance {
            verifies: run.verify.unwrap_or_else(|| stream(VERIFY).random_bool(VERIFIED)),
            taste: Taste::new(stream(TASTE), run.cascades),
            began: Instant::now(),
            dice: Mutex::new(stream(0)),
            faults: Mutex::new(Faults { dice, odds, left: run.faults_max, calm: false, struck: BTreeMap::new() }),
            history: Mutex::default(),
            kill: Notify::new(),
            detailed: given("CUTOVER_SIMULATE_RUN") && !given("CUTOVER_SIMULATE_SEEDS"),
            run,
        }
    }

    /// A number of the range.
    pub fn number(&self, range: std::ops::Range<u64>) -> u64 {
        self.dice.lock().unwrap().random_range(range)
    }

    /// True this often.
    pub fn likely(&self, probability: f64) -> bool {
        self.dice.lock().unwrap().random_bool(probability)
    }

    /// Whether the fault strikes here. What it did is noted.
    pub fn strikes(&self, fault: Fault, probability: f64, what: impl FnOnce() -> String) -> bool {
        let mut faults = self.faults.lock().unwrap();
        let probability = (probability * faults.odds[&fault]).min(0.5);
        let drawn = faults.dice.get_mut(&fault).unwrap().random_bool(probability);
        // No kind takes more than its share.
        let struck = faults.struck.get(&fault).copied().unwrap_or_default();
        let share = self.run.faults_max.div_ceil(2);
        if !drawn || faults.calm || faults.left == 0 || struck >= share || self.run.without.contains(&fault) {
            return false;
        }
        faults.left -= 1;
        *faults.struck.entry(fault).or_default() += 1;
        drop(faults);
        self.note(format!("{fault:?}: {}", what()));
        true
    }

    /// A duration up to `max`; now and then much longer.
    pub fn pause(&self, max: Duration) -> Duration {
        let mut dice = self.dice.lock().unwrap();
        let pause = max.mul_f64(dice.random_range(0.0..1.0));
        drop(dice);
        if self.strikes(Fault::Slow, 0.002, || "something stands still".into()) { pause * 100 } else { pause }
    }

    pub async fn sleep(&self, max: Duration) {
        tokio::time::sleep(self.pause(max)).await;
    }

    /// From now on nothing goes wrong.
    pub fn calm(&self) {
        self.faults.lock().unwrap().calm = true;
        self.note("calm".into());
    }

    /// How often each fault struck.
    pub fn struck(&self) -> BTreeMap<Fault, u32> {
        self.faults.lock().unwrap().struck.clone()
    }

    /// Notes something for the history that a failure prints.
    pub fn note(&self, what: String) {
        let at = self.began.elapsed();
        self.history.lock().unwrap().push(format!("{:>9.3}s {what}", at.as_secs_f64()));
    }

    pub fn history(&self) -> Vec<String> {
        self.history.lock().unwrap().clone()
    }

    /// The worker may die here: then this never comes back.
    pub async fn boundary(&self, what: &str) {
        if self.strikes(Fault::Kill, 0.004, || what.to_owned()) {
            self.kill.notify_one();
            std::future::pending::<()>().await;
        }
    }
}

impl Environment for Chance {
    fn now_us(&self) -> i64 {
        BEGIN_US + i64::try_from(self.began.elapsed().as_micros()).unwrap()
    }

    fn fraction(&self) -> f64 {
        self.dice.lock().unwrap().random_range(0.0..1.0)
    }
}
