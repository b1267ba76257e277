//! What all parts of the hub share: the database, what of it is visible to readers, and the way to the writer.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fetchbox_model::stream::Topic;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{broadcast, mpsc, watch};

use crate::background::Signal;
use crate::clock::Clock;
use crate::config::{Broker, HubConfig};
use crate::db::{Db, DbError};
use crate::error::HubError;
use crate::frame::Role;
use crate::group::{Group, REJOIN};
use crate::health::Told;
use crate::job::{JobHash, JobId};
use crate::keep::Keep;
use crate::metrics::Metrics;
use crate::pace::Rest;
use crate::reclaim::Reclaim;
use crate::tail::Tail;
use crate::writer::Command;

/// What is said when hardly any more files can be opened.
pub const SHORT: &str = "the hub runs out of file descriptors: raise its limit (`ulimit -n`)";

/// Name of the group that works on `jobs.tasks`; retention and lag look at it.
pub const WORKERS: &str = "workers";

/// Offsets by topic and partition, readable at any time.
pub struct Offsets(Vec<Vec<AtomicU64>>);

impl Offsets {
    /// Zero everywhere.
    pub fn new(partitions: impl Fn(Topic) -> u32) -> Self {
        let of = |topic| (0..partitions(topic)).map(|_| AtomicU64::new(0)).collect();
        // Topics are numbered from 1.
        Self(std::iter::once(Vec::new()).chain(Topic::ALL.into_iter().map(of)).collect())
    }

    /// The offset; 0 for a partition that is not there.
    pub fn get(&self, topic: Topic, partition: u32) -> u64 {
        self.0[topic as usize].get(partition as usize).map_or(0, |offset| offset.load(Ordering::Acquire))
    }

    /// Sets the offset.
    pub fn set(&self, topic: Topic, partition: u32, value: u64) {
        if let Some(offset) = self.0[topic as usize].get(partition as usize) {
            offset.store(value, Ordering::Release);
        }
    }
}

/// The shared part.
pub struct Core {
    pub db: Db,
    pub config: HubConfig,
    /// What clients must show, when set.
    pub token: RwLock<Option<String>>,
    pub clock: Arc<dyn Clock>,
    /// Partitions of `jobs.tasks`, as the database was created with.
    pub task_partitions: u32,
    /// Next offset of each partition, as far as durable.
    pub next: Offsets,
    /// The newest records of `jobs.tasks`.
    pub tail: Tail,
    /// Jobs with something pending and nothing settled, as far as remembered: workers ask of every job, and of most just after it came.
    pub untouched: Mutex<HashSet<JobId, JobHash>>,
    /// First offset that each partition still holds.
    pub start: Offsets,
    /// Committed offsets by topic, group and partition.
    pub committed: RwLock<BTreeMap<(u8, String), BTreeMap<u32, u64>>>,
    pub groups: Mutex<HashMap<(u8, String), Group>>,
    /// The hub before this one ended while workers were at work, or nobody knows.
    pub interrupted: bool,
    /// Since when clients can come.
    pub serving: OnceLock<Duration>,
    /// Connections that are up. What one of the others asked for may still be on its way: it must not come to own anything.
    pub connections: Mutex<HashMap<u64, Role>>,
    /// Wakes pollers of a topic: after an append, and when a group changed.
    pub wake: Vec<watch::Sender<u64>>,
    /// Wakes whoever publishes the outbox.
    pub outbox_wake: watch::Sender<u64>,
    /// Jobs with something pending, by time of creation. In memory because in the index deletions would pile up at its newest end.
    pub active: RwLock<BTreeSet<(u64, JobId)>>,
    /// Ids of jobs that were cancelled.
    pub cancelled: broadcast::Sender<String>,
    /// Why the hub must end.
    pub fatal: watch::Sender<Option<String>>,
    /// The file system has less space left than is kept in reserve.
    pub full: AtomicBool,
    /// The ledger is larger than allowed, and nothing in it may be forgotten.
    pub overfull: AtomicBool,
    /// The same of the local store's.
    pub store_full: AtomicBool,
    /// Hardly any more files can be opened.
    pub short: AtomicBool,
    /// Told when commands come steadily by the thousand.
    pub rest: Rest,
    pub outbox_bytes: AtomicU64,
    /// Names in the packs of what is remembered of URLs.
    pub remembered: AtomicU64,
    pub metrics: Metrics,
    /// Wakes and ends the upkeep thread.
    pub upkeep: Signal,
    /// Wakes and ends the thread that writes manifests.
    pub manifests: Signal,
    /// Gives back the space of what was deleted.
    pub reclaim: Reclaim,
    /// What keeps ledger and store in order.
    pub keep: Keep,
    /// Why manifests cannot be written.
    pub manifest_trouble: Mutex<Option<String>>,
    /// What workers and whoever publishes to an external broker say.
    pub told: Told,
    pub commands: mpsc::Sender<Command>,
    /// Dropped last: whoever holds the other end learns that the database is closed.
    pub _closed: std::sync::mpsc::SyncSender<Infallible>,
}

impl Core {
    /// How many partitions a topic has here.
    pub fn partitions(&self, topic: Topic) -> u32 {
        if topic == Topic::Tasks { self.task_partitions } else { topic.default_partitions() }
    }

    /// A group's committed offset.
    pub fn committed(&self, topic: Topic, group: &str, partition: u32) -> u64 {
        let committed = self.committed.read();
        committed.get(&(topic as u8, group.to_owned())).and_then(|p| p.get(&partition)).copied().unwrap_or(0)
    }

    /// A group that nobody has joined yet. Workers of a hub that was interrupted may still be at work on what is not committed.
    pub fn new_group(&self, topic: Topic, name: &str) -> Group {
        let group = Group::new(self.partitions(topic));
        let until = *self.serving.get_or_init(|| self.clock.elapsed()) + REJOIN;
        if topic != Topic::Tasks || !self.interrupted || self.clock.elapsed() >= until {
            return group;
        }
        let external = self.config.broker == Broker::External;
        group.wait_for_claims(until, |partition| external || self.committed(topic, name, partition) < self.next.get(topic, partition))
    }

    /// The lowest committed offset of any group on a partition; `None` when nobody ever committed there.
    pub fn lowest_committed(&self, topic: Topic, partition: u32) -> Option<u64> {
        let committed = self.committed.read();
        committed.iter().filter(|((t, _), _)| *t == topic as u8).filter_map(|(_, p)| p.get(&partition)).copied().min()
    }

    /// Wakes the pollers of a topic.
    pub fn wake(&self, topic: Topic) {
        self.wake[topic as usize].send_modify(|n| *n += 1);
    }

    /// Ends the hub: nothing is acknowledged from here on.
    pub fn die(&self, reason: String) {
        self.fatal.send_if_modified(|fatal| {
            let first = fatal.is_none();
            fatal.get_or_insert(reason);
            first
        });
    }

    /// Why nothing is acknowledged any more.
    pub fn dead(&self) -> Option<HubError> {
        self.fatal.borrow().clone().map(HubError::Fatal)
    }

    /// Ends the threads; the writer finishes what it was given.
    pub fn close(&self) {
        // A plain thread may wait for room in the queue, also when the caller is on a runtime. A closed queue needs no telling.
        std::thread::scope(|scope| scope.spawn(|| self.commands.blocking_send(Command::Stop).is_ok()).join().is_ok());
    }

    /// Refuses new jobs also when their objects would find no room, or the hub itself nears its limits.
    pub fn check_store_space(&self) -> Result<(), HubError> {
        if self.short.load(Ordering::Relaxed) {
            return Err(HubError::refused("HUB_UNAVAILABLE", SHORT).after_ms(5000));
        }
        if self.store_full.load(Ordering::Relaxed) {
            return Err(HubError::refused("LEDGER_FULL", "the local store's disk is full").after_ms(5000));
        }
        if self.overfull.load(Ordering::Relaxed) {
            let message = "the ledger has reached retention.ledger_max_bytes with work that is not settled";
            return Err(HubError::refused("LEDGER_FULL", message).after_ms(30_000));
        }
        self.check_space()
    }

    /// Refuses what would need space when there is none.
    pub fn check_space(&self) -> Result<(), HubError> {
        if self.full.load(Ordering::Relaxed) {
            return Err(HubError::refused("LEDGER_FULL", "the ledger's disk is full").after_ms(5000));
        }
        Ok(())
    }
}

/// A failed read, for a caller.
pub fn read_failed(error: DbError) -> HubError {
    HubError::Fatal(error.0)
}
