//! How the service stands and since when, and the figures that say how it is doing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;

use fetchbox_model::stream::Topic;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::clock::rfc3339;
use crate::config::Broker;
use crate::core::{Core, SHORT, WORKERS};
use crate::error::HubError;
use crate::frame::Role;
use crate::streams;

/// Workers whose word is kept, and characters of a name in it: a worker says what it likes.
const MOST_POOLS: usize = 64;
const LONGEST_NAME: usize = 128;

/// How often sums are noted, and how many notes are kept: ten minutes, for who opens a dashboard.
const NOTE_MS: u64 = 2000;
const NOTES: usize = 300;

/// What a worker says of itself.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct WorkerState {
    /// The name under which it is in the workers' group.
    member: String,
    /// Where it runs.
    host: String,
    /// What it is called there.
    name: String,
    /// Downloads under way.
    running: u64,
    /// Tasks that it holds, those under way included.
    held: u64,
    /// Proxy pools of which it has found no endpoint that works.
    pools_out: Vec<String>,
}

/// How far a topic that is elsewhere was read.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Queue {
    topic: String,
    group: String,
    lag: u64,
    oldest_age_seconds: f64,
}

/// What is said of the service by those who see it.
#[derive(Default)]
pub struct Told {
    /// By connection.
    workers: Mutex<BTreeMap<u64, (WorkerState, u64)>>,
    /// Why the broker cannot be reached.
    broker: Mutex<Option<String>>,
    queues: Mutex<Vec<Queue>>,
    /// Whether each component is well, and since when, Unix ms.
    since: Mutex<BTreeMap<&'static str, (bool, u64)>>,
    /// Sums as they were, oldest first: time (Unix ms), stored, reused, filtered, failed, cancelled, bytes stored, pending, lag of the tasks.
    notes: Mutex<VecDeque<[u64; 9]>>,
}

impl Told {
    /// A connection is over, and with it what was said over it.
    pub fn forget(&self, connection: u64) {
        self.workers.lock().remove(&connection);
    }
}

/// Notes what a worker says of itself, for as long as its connection is up.
pub fn worker_state(core: &Core, connection: u64, params: &[u8]) -> Result<(), HubError> {
    let mut state: WorkerState =
        serde_json::from_slice(params).map_err(|error| HubError::refused("INVALID_PAYLOAD", format!("no worker's state: {error}")))?;
    state.pools_out.truncate(MOST_POOLS);
    for text in state.pools_out.iter_mut().chain([&mut state.member, &mut state.host, &mut state.name]) {
        *text = text.chars().filter(|c| !c.is_control()).take(LONGEST_NAME).collect();
    }
    let mut workers = core.told.workers.lock();
    // What a connection that is over had asked for may come late.
    if core.connections.lock().contains_key(&connection) {
        let since = workers.get(&connection).map_or(core.clock.now_ms(), |(_, since)| *since);
        workers.insert(connection, (state, since));
    }
    Ok(())
}

/// What whoever publishes to a broker says of it.
#[derive(Debug, Deserialize)]
pub struct BrokerState {
    #[serde(default)]
    trouble: Option<String>,
}

/// Notes it.
pub fn broker_state(core: &Core, state: BrokerState) -> Value {
    *core.told.broker.lock() = state.trouble;
    json!({})
}

/// Lags that are measured elsewhere.
#[derive(Debug, Deserialize)]
pub struct BrokerQueues {
    queues: Vec<Queue>,
}

/// Notes them.
pub fn broker_queues(core: &Core, told: BrokerQueues) -> Value {
    *core.told.queues.lock() = told.queues;
    json!({})
}

fn workers(core: &Core) -> usize {
    match core.config.broker {
        Broker::Embedded => core.groups.lock().get(&(Topic::Tasks as u8, WORKERS.to_owned())).map_or(0, |group| group.members().len()),
        // The group is the broker's; but workers are connected here as well.
        Broker::External => core.connections.lock().values().filter(|role| **role == Role::Worker).count(),
    }
}

/// What is wrong with each component.
fn troubles(core: &Core) -> [(&'static str, Option<String>); 5] {
    let full = core.full.load(Ordering::Relaxed);
    let dead = core.fatal.borrow().clone();
    let short = core.short.load(Ordering::Relaxed);
    let ledger = dead.or_else(|| full.then(|| "the ledger's disk is full".to_owned())).or_else(|| short.then(|| SHORT.to_owned()));
    let store_full = core.store_full.load(Ordering::Relaxed);
    let storage = store_full.then(|| "the local store's disk is full".to_owned()).or_else(|| core.manifest_trouble.lock().clone());
    let broker = outbox_full(core).then(|| "the outbox is full".to_owned()).or_else(|| core.told.broker.lock().clone());
    let none = (workers(core) == 0).then(|| "no worker is connected".to_owned());
    [("hub", ledger), ("broker", broker), ("storage", storage), ("proxy_pools", pools_trouble(core)), ("workers", none)]
}

fn outbox_full(core: &Core) -> bool {
    core.outbox_bytes.load(Ordering::Relaxed) >= core.config.outbox_max_bytes
}

fn pools_trouble(core: &Core) -> Option<String> {
    let workers = core.told.workers.lock();
    let mut pools: BTreeMap<&str, usize> = BTreeMap::new();
    for (state, _) in workers.values() {
        for pool in &state.pools_out {
            *pools.entry(pool).or_default() += 1;
        }
    }
    let all = workers.len();
    let named = pools.iter().map(|(pool, seen)| if all > 1 { format!("{pool} (for {seen} of {all} workers)") } else { (*pool).to_owned() });
    let named: Vec<String> = named.collect();
    (!named.is_empty()).then(|| format!("no endpoint works of proxy pool {}", named.join(", ")))
}

/// The answer to `health`.
pub fn health(core: &Core) -> Value {
    let mut components = Map::new();
    let mut degraded = false;
    let mut since = core.told.since.lock();
    for (name, trouble) in troubles(core) {
        let well = trouble.is_none();
        degraded |= !well && !matches!(name, "proxy_pools" | "workers");
        let held = since.entry(name).or_insert_with(|| (well, core.clock.now_ms()));
        if held.0 != well {
            *held = (well, core.clock.now_ms());
        }
        let mut state = json!({"status": if well { "ok" } else { "degraded" }, "since": rfc3339(held.1)});
        if let (Some(reason), Some(state)) = (trouble, state.as_object_mut()) {
            state.insert("reason".to_owned(), reason.into());
        }
        components.insert(name.to_owned(), state);
    }
    json!({
        "status": if degraded { "degraded" } else { "ok" },
        "components": components,
        "workers": workers(core),
        "outbox_bytes": core.outbox_bytes.load(Ordering::Relaxed),
        "outbox_full": outbox_full(core),
    })
}

/// Notes how things stand, also when nobody asks.
pub fn look(core: &Core) {
    health(core);
    let now = core.clock.now_ms();
    let mut notes = core.told.notes.lock();
    // A clock that was set back starts anew.
    if notes.back().is_some_and(|last| last[0] > now) {
        notes.clear();
    }
    if notes.back().is_none_or(|last| last[0] + NOTE_MS <= now) {
        let sums = *core.metrics.totals.lock();
        let lag = match core.config.broker {
            Broker::Embedded => streams::lag(core, Topic::Tasks, WORKERS),
            Broker::External => {
                core.told.queues.lock().iter().find(|queue| queue.topic == Topic::Tasks.name()).map_or(0, |queue| queue.lag)
            }
        };
        let settled = [sums.stored, sums.reused, sums.filtered, sums.failed + sums.replayed, sums.cancelled];
        let [stored, reused, filtered, failed, cancelled] = settled;
        notes.push_back([now, stored, reused, filtered, failed, cancelled, sums.bytes_stored, sums.pending(), lag]);
        if notes.len() > NOTES {
            notes.pop_front();
        }
    }
}

/// What is asked of the overview.
#[derive(Debug, Default, Deserialize)]
pub struct Ask {
    /// Also what was in the last minutes.
    #[serde(default)]
    history: bool,
}

/// The answer to `overview`: health, sums, queues and workers in one.
pub fn overview(core: &Core, ask: &Ask) -> Value {
    let totals = *core.metrics.totals.lock();
    let queues = match core.config.broker {
        Broker::Embedded => streams::queues(core),
        Broker::External => core.told.queues.lock().clone(),
    };
    json!({
        "at": rfc3339(core.clock.now_ms()),
        "health": health(core),
        "resources": {
            "accepted": totals.total,
            "pending": totals.pending(),
            // One that was replayed settled and will settle again.
            "settled": {
                "stored": totals.stored,
                "reused": totals.reused,
                "filtered": totals.filtered,
                "failed": totals.failed + totals.replayed,
                "cancelled": totals.cancelled,
            },
            "replayed": totals.replayed,
        },
        "bytes_stored": totals.bytes_stored,
        "active_jobs": core.active.read().len(),
        "queues": queues,
        "workers": worker_list(core),
        "history": ask.history.then(|| core.told.notes.lock().iter().copied().collect::<Vec<_>>()),
        "ledger_bytes": core.metrics.disk_bytes.load(Ordering::Relaxed),
        "outbox_bytes": core.outbox_bytes.load(Ordering::Relaxed),
    })
}

fn worker_list(core: &Core) -> Vec<Value> {
    let groups = core.groups.lock();
    let members = groups.get(&(Topic::Tasks as u8, WORKERS.to_owned())).map(|group| group.members()).unwrap_or_default();
    drop(groups);
    let mut owned: BTreeMap<String, usize> = members.into_iter().collect();
    let mut list = Vec::new();
    for (state, since) in core.told.workers.lock().values() {
        let partitions = owned.remove(&state.member).unwrap_or(0);
        list.push(json!({
            "name": state.name,
            "host": state.host,
            "partitions": partitions,
            "running": state.running,
            "held": state.held,
            "pools_out": state.pools_out,
            "since": rfc3339(*since),
        }));
    }
    // Those that have not said anything yet.
    list.extend(owned.into_iter().map(|(member, partitions)| {
        json!({"name": member, "host": null, "partitions": partitions, "running": null, "held": null, "pools_out": [], "since": null})
    }));
    list
}

impl Queue {
    /// A queue of the hub's own.
    pub fn new(topic: Topic, group: &str, lag: u64, oldest_age_seconds: f64) -> Self {
        Self { topic: topic.name().to_owned(), group: group.to_owned(), lag, oldest_age_seconds }
    }
}
