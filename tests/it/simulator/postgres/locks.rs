//! Waiting: advisory locks with their queues, transactions that wait for others, and who is in a deadlock.
//!
//! An advisory lock is handed over in the order of the queue; a request that conflicts with one ahead of it waits
//! behind it. Whoever waits for a transaction is woken when that ends, or goes back to a savepoint, and looks again.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::Notify;

use super::store::TxId;

/// What a transaction waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitFor {
    Tx(TxId),
    Advisory(i64),
}

#[derive(Debug)]
struct Waiter {
    tx: TxId,
    on: WaitFor,
    wake: Arc<Notify>,
}

/// A request for an advisory lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Request {
    tx: TxId,
    shared: bool,
}

impl Request {
    fn conflicts(self, other: Request) -> bool {
        self.tx != other.tx && !(self.shared && other.shared)
    }
}

#[derive(Debug, Default)]
struct Advisory {
    /// A transaction is in it once for each time that it took it.
    holders: Vec<Request>,
    queue: Vec<Request>,
}

impl Advisory {
    fn is_free_for(&self, request: Request) -> bool {
        !self.holders.iter().any(|holder| holder.conflicts(request))
    }
}

#[derive(Debug, Default)]
pub struct Locks {
    advisory: BTreeMap<i64, Advisory>,
    /// By ticket: in the order in which they began to wait.
    waiters: BTreeMap<u64, Waiter>,
    next: u64,
}

/// The ticket of a transaction that waits.
pub type Ticket = u64;

impl Locks {
    /// Takes an advisory lock, or stands in line for it: false then.
    pub fn acquire(&mut self, tx: TxId, key: i64, shared: bool) -> bool {
        let request = Request { tx, shared };
        let lock = self.advisory.entry(key).or_default();
        let again = lock.holders.contains(&request);
        // Whoever holds it in another form goes before those whom it keeps waiting.
        let holds = lock.holders.iter().any(|holder| holder.tx == tx);
        let kept = |ahead: &Request| lock.holders.iter().any(|holder| holder.tx == tx && holder.conflicts(*ahead));
        let place = if holds { lock.queue.iter().position(kept) } else { None };
        let ahead = &lock.queue[..place.unwrap_or(lock.queue.len())];
        if again || (lock.is_free_for(request) && !ahead.iter().any(|other| other.conflicts(request))) {
            lock.holders.push(request);
            return true;
        }
        lock.queue.insert(place.unwrap_or(lock.queue.len()), request);
        false
    }

    /// Whether a request that stood in line has been granted.
    pub fn has(&self, tx: TxId, key: i64) -> bool {
        self.advisory.get(&key).is_none_or(|lock| !lock.queue.iter().any(|request| request.tx == tx))
    }

    pub fn release(&mut self, tx: TxId, key: i64, shared: bool) {
        if let Some(lock) = self.advisory.get_mut(&key)
            && let Some(place) = lock.holders.iter().rposition(|holder| *holder == Request { tx, shared })
        {
            lock.holders.remove(place);
        }
        self.grant(key);
    }

    /// Hands the lock over to those in line who may have it.
    fn grant(&mut self, key: i64) {
        let Some(lock) = self.advisory.get_mut(&key) else { return };
        let mut place = 0;
        let mut granted = Vec::new();
        while let Some(request) = lock.queue.get(place).copied() {
            let behind = lock.queue[..place].iter().any(|other| other.conflicts(request));
            if lock.is_free_for(request) && !behind {
                lock.queue.remove(place);
                lock.holders.push(request);
                granted.push(request.tx);
            } else {
                place += 1;
            }
        }
        if lock.holders.is_empty() && lock.queue.is_empty() {
            self.advisory.remove(&key);
        }
        self.wake(|waiter| waiter.on == WaitFor::Advisory(key) && granted.contains(&waiter.tx));
    }

    /// The transaction begins to wait.
    pub fn wait(&mut self, tx: TxId, on: WaitFor) -> (Ticket, Arc<Notify>) {
        self.next += 1;
        let wake = Arc::new(Notify::new());
        self.waiters.insert(self.next, Waiter { tx, on, wake: wake.clone() });
        (self.next, wake)
    }

    /// The transaction waits no more.
    pub fn leave(&mut self, ticket: Ticket) {
        if let Some(waiter) = self.waiters.remove(&ticket)
            && let WaitFor::Advisory(key) = waiter.on
            && let Some(lock) = self.advisory.get_mut(&key)
        {
            lock.queue.retain(|request| request.tx != waiter.tx);
            self.grant(key);
        }
    }

    fn wake(&mut self, whom: impl Fn(&Waiter) -> bool) {
        self.waiters.values().filter(|waiter| whom(waiter)).for_each(|waiter| waiter.wake.notify_one());
    }

    /// The transaction has ended: its locks are free, whether it knew of them or was ended while one was handed to it.
    pub fn ended(&mut self, tx: TxId) {
        let holds = |lock: &Advisory| lock.holders.iter().any(|holder| holder.tx == tx);
        let held: Vec<i64> = self.advisory.iter().filter(|(_, lock)| holds(lock)).map(|(key, _)| *key).collect();
        for key in held {
            if let Some(lock) = self.advisory.get_mut(&key) {
                lock.holders.retain(|holder| holder.tx != tx);
            }
            self.grant(key);
        }
        let own: Vec<Ticket> =
            self.waiters.iter().filter(|(_, waiter)| waiter.tx == tx).map(|(ticket, _)| *ticket).collect();
        own.into_iter().for_each(|ticket| self.leave(ticket));
        self.touched(tx);
    }

    /// The transaction has taken writes back: whoever waits for it looks again.
    pub fn touched(&mut self, tx: TxId) {
        self.wake(|waiter| waiter.on == WaitFor::Tx(tx));
    }

    /// Those that a transaction waits for: who holds what it wants, and, if `queued`, who stands before it in line.
    fn blockers(&self, tx: TxId, queued: bool) -> Vec<TxId> {
        let mut found = Vec::new();
        for waiter in self.waiters.values().filter(|waiter| waiter.tx == tx) {
            match waiter.on {
                WaitFor::Tx(other) => found.push(other),
                WaitFor::Advisory(key) => {
                    let Some(lock) = self.advisory.get(&key) else { continue };
                    let Some(place) = lock.queue.iter().position(|request| request.tx == tx) else { continue };
                    let request = lock.queue[place];
                    found.extend(lock.holders.iter().filter(|other| other.conflicts(request)).map(|other| other.tx));
                    if queued {
                        let ahead = lock.queue[..place].iter();
                        found.extend(ahead.filter(|other| other.conflicts(request)).map(|other| other.tx));
                    }
                }
            }
        }
        found
    }

    fn waits_for_itself(&self, tx: TxId, queued: bool) -> bool {
        let mut seen = vec![tx];
        let mut next = self.blockers(tx, queued);
        while let Some(other) = next.pop() {
            if other == tx {
                return true;
            }
            if !seen.contains(&other) {
                seen.push(other);
                next.extend(self.blockers(other, queued));
            }
        }
        false
    }

    /// Whether the transaction is in a deadlock. One that comes from the order of a queue alone is resolved: this
    /// request goes to its front.
    pub fn deadlocked(&mut self, tx: TxId) -> bool {
        if self.waits_for_itself(tx, false) {
            return true;
        }
        if self.waits_for_itself(tx, true) {
            let key = self.waiters.values().find(|waiter| waiter.tx == tx).map(|waiter| waiter.on);
            if let Some(WaitFor::Advisory(key)) = key
                && let Some(lock) = self.advisory.get_mut(&key)
                && let Some(place) = lock.queue.iter().position(|request| request.tx == tx)
            {
                let request = lock.queue.remove(place);
                lock.queue.insert(0, request);
                self.grant(key);
            }
        }
        false
    }

    /// The sessions' transactions that wait now.
    pub fn waiting(&self) -> Vec<TxId> {
        self.waiters.values().map(|waiter| waiter.tx).collect()
    }
}
