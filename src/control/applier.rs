//! The role `apply`: this process's part of the partitions, made durable in the target.
//!
//! ```text
//! group: gained, lost ──► lanes: one per partition, two apply loops each ──► target
//! ```
//!
//! What enters is the log, which another process writes, and its description of the source's tables. A partition that
//! the group gives to this process is claimed under a number drawn for it; where it goes on is in the target. A lane
//! that is fenced there ends, and is claimed again only if the group still gives it after a while. Deliberately absent:
//! a connection to the source, and whatever one process alone may do (copies, the script after them, requests,
//! tombstones): that is the work of the process with the lease.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::{
    task::{JoinHandle, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    error::{Attempt, WorkerError},
    follower,
    leader::{self, End, Rounds},
    parts::kafka_settings,
    worker::{Ended, Worker},
};
use crate::{
    log::{
        KafkaLog, Log, LogError, Topic,
        kafka::{Change, Group, Settings},
    },
    model::{Disposition, Position},
    pipeline::apply,
    state::{
        Store,
        appliers::{self, ApplierReport, Basis, Described, Turn},
        lease::RENEW_EVERY,
    },
    target::Target,
};

/// Rows that have all waited for so long when all else is done wait for good: the leader has looked for them meanwhile.
const WAITS_FOR_GOOD_SECONDS: f64 = 75.0;
const TICK: Duration = Duration::from_millis(200);
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// How often the brokers are asked whether they are there.
const BROKERS_EVERY: Duration = Duration::from_secs(5);
/// How long a partition that another process has taken is left to it, unless the group gives it anew: longer than it
/// takes the group to tell a process that was paused.
const FENCED_PAUSE: Duration = Duration::from_secs(3);
/// How soon partitions that could not be begun are tried again.
const BEGIN_PAUSE: Duration = Duration::from_millis(500);
/// How long the batches at work may take when a partition is given up.
const FINISH_MAX: Duration = Duration::from_secs(4);

/// Why this process stopped applying.
enum Over {
    /// It was not heard of for too long, and others with other transforms have begun.
    Lapsed,
    Ended(Ended),
}

/// One partition at work.
struct Lane {
    stop: CancellationToken,
    loops: JoinSet<apply::Ended>,
}

/// A partition that the group has given to this process.
#[derive(Default)]
struct Given {
    lane: Option<Lane>,
    /// Not to be begun before then.
    not_before: Option<Instant>,
}

struct Applier {
    worker: Worker,
    member: appliers::Applier,
    log: Arc<dyn Log>,
    /// Where the source was when a process that is to run until synced was started.
    end: Option<Position>,
    given: BTreeMap<u32, Given>,
    planned: Option<(Basis, Arc<dyn Target>)>,
    /// Changes that were told as applied.
    told: BTreeMap<String, u64>,
}

/// Applies what the group gives to this process, until it is stopped or synced.
pub(super) async fn run(worker: &Worker, end: Option<Position>) -> Result<Ended, WorkerError> {
    let (transforms, settings) = (worker.parts.transforms()?, kafka_settings(&worker.config)?);
    let Some(log) = worker.patiently("log", || open(&settings)).await? else { return Ok(Ended::Stopped) };
    // Whether it lives is told by a session of its own.
    let (members, following) = (worker.parts.store()?, worker.parts.store()?);
    let following = tokio::spawn(worker.follow(following, log.epoch().to_owned(), follower::SELDOM));
    let mut applier = Applier {
        worker: worker.clone(),
        member: appliers::Applier::new(worker.parts.process(), transforms),
        log,
        end,
        given: BTreeMap::new(),
        planned: None,
        told: BTreeMap::new(),
    };
    let ended = applier.run(&settings, &members).await;
    following.abort();
    ended
}

async fn open(settings: &Settings) -> Result<Arc<dyn Log>, Attempt> {
    match KafkaLog::join(settings.clone()).await {
        Ok(log) => Ok(Arc::new(log)),
        Err(error) if error.disposition() == Disposition::Retry => Err(Attempt::Later(error.to_string())),
        Err(error) => Err(Attempt::Hopeless(WorkerError::Log(error))),
    }
}

async fn enter(members: &Store, member: &appliers::Applier) -> Result<(), Attempt> {
    members.enter(member).await?.map_err(Attempt::Later)
}

/// Says that this process is there; ends when others may have thought otherwise.
async fn stay(members: Arc<Store>, member: appliers::Applier) {
    loop {
        tokio::time::sleep(RENEW_EVERY).await;
        match members.stay(&member).await {
            Ok(true) => {}
            Ok(false) => return,
            // An unreachable target cannot be written to either.
            Err(error) => tracing::warn!(%error, "this process could not say yet that it is there"),
        }
    }
}

impl Applier {
    /// Enters among those that apply, and applies; again if others did not hear of this process for too long.
    async fn run(&mut self, settings: &Settings, members: &Arc<Store>) -> Result<Ended, WorkerError> {
        loop {
            let entered = self.worker.patiently("members", || enter(members, &self.member)).await?;
            let Some(()) = entered else { return Ok(Ended::Stopped) };
            let over = self.apply(settings, members).await;
            if let Err(error) = members.withdraw(&self.member).await {
                tracing::warn!(%error, "this process could not take itself out; it is forgotten by itself");
            }
            match over? {
                Over::Ended(ended) => return Ok(ended),
                Over::Lapsed => tracing::warn!("this process was not heard of for too long; it begins anew"),
            }
        }
    }

    /// Applies until the end, as one of the group.
    async fn apply(&mut self, settings: &Settings, members: &Arc<Store>) -> Result<Over, WorkerError> {
        let mut group = Group::join(settings)?;
        let mut staying = tokio::spawn(stay(Arc::clone(members), self.member.clone()));
        let over = self.follow(&mut group, &mut staying).await;
        staying.abort();
        // Others wait for them.
        let all: Vec<u32> = self.given.keys().copied().collect();
        self.give_up(&all).await;
        self.report().await;
        group.leave().await;
        over
    }

    async fn follow(&mut self, group: &mut Group, staying: &mut JoinHandle<()>) -> Result<Over, WorkerError> {
        let stop = self.worker.stop.clone();
        let (mut reports, mut brokers) = (Rounds::later(REPORT_EVERY), Rounds::later(BROKERS_EVERY));
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(Over::Ended(Ended::Stopped)),
                _ = &mut *staying => return Ok(Over::Lapsed),
                change = group.changed() => match change {
                    Some(change) => self.change(change).await,
                    None => return Err(LogError::Other("the group of processes cannot be followed any more".into()).into()),
                },
                () = tokio::time::sleep(TICK) => {}
            }
            self.look_after_lanes().await;
            if let Some(over) = self.begin_lanes().await? {
                return Ok(over);
            }
            if reports.due(false) {
                self.report().await;
                if let Some(ended) = self.ended().await {
                    return Ok(Over::Ended(ended));
                }
            }
            if brokers.due(false) {
                match self.log.bounds(Topic::Changes, 0).await {
                    Ok(_) => self.worker.halts.well("log"),
                    Err(error) => self.worker.halts.trouble("log", &error.to_string()),
                }
            }
        }
    }

    async fn change(&mut self, change: Change) {
        match change {
            Change::Gained(partitions) => {
                tracing::info!(?partitions, "partitions gained");
                self.worker.halts.well("group");
                for partition in partitions {
                    self.given.entry(partition).or_default().not_before = None;
                }
            }
            Change::Lost(partitions, finished) => {
                self.give_up(&partitions).await;
                drop(finished);
                tracing::info!(?partitions, "partitions given up");
            }
            Change::Refused(error) => self.worker.halts.trouble("group", &error.to_string()),
        }
    }

    /// Stops these partitions after the batches at work, and forgets them.
    async fn give_up(&mut self, partitions: &[u32]) {
        let given: Vec<Given> = partitions.iter().filter_map(|partition| self.given.remove(partition)).collect();
        let lanes: Vec<Lane> = given.into_iter().filter_map(|given| given.lane).collect();
        lanes.iter().for_each(|lane| lane.stop.cancel());
        let until = Instant::now() + FINISH_MAX;
        for mut lane in lanes {
            let finished = async { while lane.loops.join_next().await.is_some() {} };
            if tokio::time::timeout_at(until, finished).await.is_err() {
                lane.loops.shutdown().await;
            }
        }
        for partition in partitions {
            self.forget_troubles(*partition);
        }
    }

    /// What a partition had is its next process's to tell.
    fn forget_troubles(&self, partition: u32) {
        for topic in [Topic::Changes, Topic::Snapshot] {
            let part = apply::part(topic, partition, self.log.partitions());
            self.worker.halts.lift(&part);
            self.worker.halts.well(&part);
        }
    }

    /// Ends the lanes of which a loop has ended.
    async fn look_after_lanes(&mut self) {
        for (partition, given) in &mut self.given {
            let Some(lane) = &mut given.lane else { continue };
            match lane.loops.try_join_next() {
                // A loop that has halted stays so until the partition is taken away; that of the other topic goes on.
                None | Some(Ok(apply::Ended::Stopped | apply::Ended::Halted)) => {}
                Some(Ok(apply::Ended::Fenced) | Err(_)) => {
                    tracing::info!(partition, "another process has taken the partition, or all are to begin anew");
                    lane.loops.shutdown().await;
                    *given = Given { lane: None, not_before: Some(Instant::now() + FENCED_PAUSE) };
                }
            }
        }
    }

    /// Begins the partitions that are given and not at work.
    async fn begin_lanes(&mut self) -> Result<Option<Over>, WorkerError> {
        let now = Instant::now();
        let due = |given: &Given| given.lane.is_none() && given.not_before.is_none_or(|then| then <= now);
        let idle: BTreeSet<u32> = self.given.iter().filter(|(_, given)| due(given)).map(|(part, _)| *part).collect();
        if idle.is_empty() {
            return Ok(None);
        }
        let target = match self.target().await {
            Ok(Some(target)) => target,
            Ok(None) => return Ok(Some(Over::Lapsed)),
            Err(Attempt::Later(why)) => {
                self.worker.halts.trouble("partitions", &why);
                for partition in idle {
                    self.given.entry(partition).or_default().not_before = Some(now + BEGIN_PAUSE);
                }
                return Ok(None);
            }
            Err(Attempt::Hopeless(error)) => return Err(error),
        };
        self.worker.halts.well("partitions");
        for partition in idle {
            let lane = self.lane(&target, partition);
            self.given.entry(partition).or_default().lane = Some(lane);
        }
        Ok(None)
    }

    fn lane(&self, target: &Arc<dyn Target>, partition: u32) -> Lane {
        let (stop, mut loops) = (self.worker.stop.child_token(), JoinSet::new());
        let half = self.worker.apply_half(Arc::clone(target), Arc::clone(&self.log));
        for topic in [Topic::Changes, Topic::Snapshot] {
            loops.spawn(half.apply_loop(topic, partition).share(stop.clone()));
        }
        Lane { stop, loops }
    }

    /// The target under a number of its own; none if this process must enter again first.
    async fn target(&mut self) -> Result<Option<Arc<dyn Target>>, Attempt> {
        let (number, basis) = match self.worker.store.turn(&self.member).await? {
            Turn::Go { number, basis } => (number, basis),
            Turn::Wait(why) => return Err(Attempt::Later(why.to_owned())),
            Turn::Lapsed => return Ok(None),
        };
        let planned = match self.planned.take() {
            Some((before, planned)) if before == basis => planned,
            Some(_) | None => {
                let Described { tables, planned_at } = basis.described()?;
                let target = self.worker.parts.target(Arc::clone(&self.worker.store), number)?;
                target.prepare(&tables, planned_at).await?;
                target
            }
        };
        let target = planned.under(number);
        self.planned = Some((basis, planned));
        Ok(Some(target))
    }

    /// Says how this process fares.
    async fn report(&mut self) {
        let halts = &self.worker.halts;
        let at_work = |given: &Given| given.lane.is_some();
        let report = ApplierReport {
            partitions: self.given.iter().filter(|(_, given)| at_work(given)).map(|(part, _)| *part).collect(),
            halted: halts.first(),
            retrying: halts.troubles(),
        };
        let applied = self.worker.frontier.changes();
        let mut new = applied.clone();
        new.iter_mut().for_each(|(table, changes)| *changes -= self.told.get(table).copied().unwrap_or_default());
        new.retain(|_, changes| *changes > 0);
        match self.worker.store.report_applier(&self.member, &report, &new).await {
            Ok(()) => {
                halts.well("state");
                self.told = applied;
            }
            Err(error) => halts.trouble("state", &error.to_string()),
        }
    }

    /// Whether a process that is to run until synced is done.
    async fn ended(&self) -> Option<Ended> {
        let end = self.end.as_ref()?;
        let store = &self.worker.store;
        let covered = store.covers(end, self.log.epoch(), self.log.partitions()).await.ok()?;
        let status = store.status().await.ok()?;
        let tried = status.waiting_tried.is_some_and(|times| times > 0);
        let waits_for_good =
            tried && status.waiting_newest_seconds.is_some_and(|newest| newest > WAITS_FOR_GOOD_SECONDS);
        leader::ended(&status, if covered { End::Reached } else { End::Ahead }, waits_for_good)
    }
}
