//! The hub with its streams elsewhere, killed at each point around its outbox: ten times before and ten times after each step.
//!
//! The other points are met by `tests/process/test_failpoints.py`, in a whole service.
#![cfg(feature = "failpoints")]
// The child is configured through its environment and ends like the real process.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::*;
use fetchbox_failpoint::enabled::VARIABLE;
use fetchbox_hub::*;
use fetchbox_model::batch;
use fetchbox_model::message::{DownloadTask, JobStatus, ResourceState};
use fetchbox_model::stream::Topic;
use prost::Message;

const DIR: &str = "HUB_TEST_DIR";
const TIMES: u32 = 10;
const RESOURCES: u32 = 3;
const POINTS: [&str; 4] = ["hub::outbox::before", "hub::outbox::after", "hub::published::before", "hub::published::after"];

/// Not a test: what the child runs.
#[test]
#[ignore = "run by the other test as a child"]
fn child_hub() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut config = config(Path::new(&dir));
    config.broker = Broker::External;
    let hub = Hub::open(config).unwrap();
    runtime.block_on(hub.serve()).unwrap();
}

struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn spawn(dir: &Path) -> KillOnDrop {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child_hub", "--ignored", "--nocapture"]).stdout(Stdio::null()).stderr(Stdio::null());
    KillOnDrop(command.env(DIR, dir).env(VARIABLE, dir.join("points")).spawn().unwrap())
}

/// Waits until the child is dead.
async fn end_of(child: &mut KillOnDrop, what: &str) {
    let begun = Instant::now();
    while child.0.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < LIMIT, "nobody died of {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Repeats a call until the hub answers, as every client does.
async fn insist<T, F: Future<Output = Result<T, HubError>>>(client: &HubClient, call: impl Fn() -> F) -> T {
    let begun = Instant::now();
    loop {
        match call().await {
            Ok(answer) => return answer,
            Err(HubError::Unavailable(_)) => client.wait_connected(LIMIT).await.unwrap(),
            Err(other) => panic!("{other:?}"),
        }
        assert!(begun.elapsed() < LIMIT, "no answer");
    }
}

/// Accepts a job and reports all of it, again and again; the ids.
async fn work(client: HubClient, stop: Arc<AtomicBool>, lane: u32) -> Vec<String> {
    let mut ids = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let (id, key) = (new_id(), format!("{lane}-{}", ids.len()));
        let accepted = insist(&client, || client.accept(accept_request(&id, RESOURCES, Some(&key)))).await;
        assert_eq!(accepted.job_id, id);
        let outcomes: Vec<_> = (0..RESOURCES).map(|index| outcome(index, ResourceState::Stored, "a")).collect();
        let entries = vec![status(&id, outcomes)];
        insist(&client, || client.append(AppendRequest { entries: entries.clone(), ..Default::default() })).await;
        ids.push(id);
    }
    ids
}

/// What the broker holds: the entries of each sequence, as often as it was published.
type Published = BTreeMap<u64, Vec<Vec<Entry>>>;

/// Publishes the outbox as the hub's feed would: what was not acknowledged as done comes again.
async fn publish(client: HubClient, stop: Arc<AtomicBool>) -> Published {
    let mut published = Published::new();
    let peek = OutboxPeekRequest { after: 0, max_bytes: 1 << 20, wait_ms: 50 };
    loop {
        let last = stop.load(Ordering::Relaxed);
        let items = insist(&client, || client.outbox_peek(peek)).await.items;
        let Some(up_to) = items.last().map(|item| item.sequence) else {
            if last {
                return published;
            }
            continue;
        };
        for item in items {
            published.entry(item.sequence).or_default().push(item.entries);
        }
        // A lost answer is not asked for again: the next peek shows whether it was done.
        match client.outbox_done(OutboxDoneRequest { up_to }).await {
            Ok(()) | Err(HubError::Unavailable(_)) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_the_outbox_is_lost_wherever_the_hub_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let points = dir.path().join("points");
    std::fs::create_dir(&points).unwrap();
    let mut child = spawn(dir.path());
    let client = client(&dir.path().join("hub.sock"), "all", Role::Operator);
    client.wait_connected(LIMIT).await.unwrap();
    let (working, publishing) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let workers: Vec<_> = (0..4).map(|lane| tokio::spawn(work(client.clone(), Arc::clone(&working), lane))).collect();
    let publisher = tokio::spawn(publish(client.clone(), Arc::clone(&publishing)));
    for time in 0..TIMES {
        for (number, point) in POINTS.into_iter().enumerate() {
            // Another hit each time, so that the group that dies holds different things.
            let hit = 1 + (time + number as u32) % 4;
            let token = format!("{point}-{time}");
            std::fs::write(points.join("aside"), format!("{token} {hit}\n")).unwrap();
            std::fs::rename(points.join("aside"), points.join(point)).unwrap();
            end_of(&mut child, point).await;
            let journaled = points.join("hit").join(format!("{token}.{}", child.0.id()));
            assert!(journaled.exists(), "the hub died of something else than {point}");
            child = spawn(dir.path());
        }
    }
    working.store(true, Ordering::Relaxed);
    let mut accepted = Vec::new();
    for worker in workers {
        accepted.extend(worker.await.unwrap());
    }
    publishing.store(true, Ordering::Relaxed);
    let published = publisher.await.unwrap();

    let kills = TIMES as usize * POINTS.len();
    assert!(accepted.len() > kills, "{} jobs met {kills} kills", accepted.len());
    // No gap, and what comes again is the same.
    assert!(published.keys().copied().eq(1..=published.len() as u64));
    assert!(published.values().all(|times| times.iter().all(|entries| *entries == times[0])));
    // Beyond the first, a kill republishes at most what was not acknowledged as done when it struck.
    let again = published.values().filter(|times| times.len() > 1).count();
    assert!(again > 0, "no kill hit what was being published");
    let mut tasks: HashSet<(String, u32)> = HashSet::new();
    let mut events: HashMap<String, u32> = HashMap::new();
    for entry in published.values().flat_map(|times| &times[0]) {
        let messages = batch::unpack(&entry.bytes).unwrap();
        assert_eq!(messages.len(), entry.count as usize);
        for message in messages {
            if entry.topic == Topic::Tasks as u32 {
                let task = DownloadTask::decode(message).unwrap();
                assert!(tasks.insert((task.job_id.clone(), task.resource_index)), "{task:?} is in the outbox under two sequences");
            } else if entry.topic == Topic::Events as u32 {
                *events.entry(JobStatus::decode(message).unwrap().job_id).or_default() += 1;
            }
        }
    }
    assert_eq!(tasks.len(), accepted.len() * RESOURCES as usize);
    assert_eq!(events.len(), accepted.len());
    for id in &accepted {
        assert!((0..RESOURCES).all(|index| tasks.contains(&(id.clone(), index))), "tasks of {id} are missing");
        assert_eq!(events.get(id), Some(&1), "one event for {id}");
        let now = job(&client, id).await;
        assert_eq!((&now["resource_completed"], &now["resource_pending"]), (&RESOURCES.into(), &0.into()));
    }
    client.close();
}
