//! The hub killed at each of its points: ten times before and ten times after each step, with its streams inside and elsewhere.
//!
//! `tests/process/test_failpoints.py` does the same to a whole service.
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
use fetchbox_model::message::{DeadLetterTask, DownloadTask, JobLog, JobStatus, ResourceState};
use fetchbox_model::stream::Topic;
use prost::Message;

const DIR: &str = "HUB_TEST_DIR";
const EXTERNAL: &str = "HUB_TEST_EXTERNAL";
const TIMES: u32 = 10;
const RESOURCES: u32 = 3;
/// Steps with a point before and one after each, and the subject for those that have one.
const OUTBOX: [(&str, &str); 2] = [("hub::outbox", ""), ("hub::published", "")];
const STEPS: [(&str, &str); 9] = [
    ("hub::reserve", ""),
    ("hub::accept", ""),
    ("hub::manifest", ""),
    ("hub::publish", "jobs.logs"),
    ("hub::publish", "jobs.dlq"),
    ("hub::publish", "jobs.status"),
    ("hub::projection", ""),
    ("hub::event", ""),
    ("hub::commit", ""),
];

/// Not a test: what the child runs.
#[test]
#[ignore = "run by the other test as a child"]
fn child_hub() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut config = config(Path::new(&dir));
    config.store_root = Some(Path::new(&dir).join("store"));
    if std::env::var_os(EXTERNAL).is_some() {
        config.broker = Broker::External;
    }
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

fn spawn(dir: &Path, external: bool) -> KillOnDrop {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child_hub", "--ignored", "--nocapture"]).stdout(Stdio::null()).stderr(Stdio::null());
    if external {
        command.env(EXTERNAL, "1");
    }
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

/// Kills the hub at each point so many times; returns how often.
async fn strike(dir: &Path, child: &mut KillOnDrop, steps: &[(&str, &str)], external: bool) -> usize {
    let points = dir.join("points");
    let mut kills = 0;
    for time in 0..TIMES {
        for (step, subject) in steps {
            for side in ["before", "after"] {
                let point = format!("{step}::{side}");
                // Another hit each time, so that the group that dies holds different things.
                let hit = 1 + kills % 3;
                let token = format!("{point}-{subject}-{time}");
                std::fs::write(points.join("aside"), format!("{token} {hit}\n{subject}\n")).unwrap();
                std::fs::rename(points.join("aside"), points.join(&point)).unwrap();
                end_of(child, &token).await;
                let journaled = points.join("hit").join(format!("{token}.{}", child.0.id()));
                assert!(journaled.exists(), "the hub died of something else than {point}");
                *child = spawn(dir, external);
                kills += 1;
            }
        }
    }
    kills
}

/// Accepts a job and reports all of it, again and again; the ids.
async fn work(client: HubClient, stop: Arc<AtomicBool>, lane: u32) -> Vec<String> {
    let mut ids = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let (id, key) = (new_id(), format!("{lane}-{}", ids.len()));
        let reserve = ReserveRequest {
            tenant: "t".into(),
            job_type: "default".into(),
            key: key.clone(),
            body_sha256: "body".into(),
            job_id: id.clone(),
            ..Default::default()
        };
        let reserved = insist(&client, || client.reserve(reserve.clone())).await;
        assert!(reserved.job_id == id && !reserved.accepted);
        let mut request = accept_request(&id, RESOURCES, Some(&key));
        request.manifest = Some(id.clone().into_bytes().into());
        let accepted = insist(&client, || client.accept(request.clone())).await;
        assert_eq!(accepted.job_id, id);
        let outcomes: Vec<_> = (0..RESOURCES).map(|index| outcome(index, ResourceState::Stored, "a")).collect();
        let log = batch([JobLog { job_id: id.clone(), message: "done".into(), ..Default::default() }]);
        let dead = batch([DeadLetterTask { failure_code: "DOWNLOAD_TIMEOUT".into(), ..Default::default() }]);
        let entries = vec![Entry::new(Topic::Logs, 0, log), Entry::new(Topic::Dlq, 0, dead), status(&id, outcomes)];
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

/// Every job is there once, its resources are counted once, its manifest is in the store and nothing else is.
async fn check_jobs(dir: &Path, client: &HubClient, accepted: &[String]) {
    let (mut listed, mut cursor) = (HashSet::new(), serde_json::Value::Null);
    loop {
        let page = ask(client, "jobs", serde_json::json!({"limit": 500, "cursor": cursor})).await;
        for job in page["jobs"].as_array().unwrap() {
            assert!(listed.insert(job["job_id"].as_str().unwrap().to_owned()), "listed twice: {job}");
            assert_eq!((&job["resource_completed"], &job["resource_pending"]), (&RESOURCES.into(), &0.into()), "{job}");
            assert_eq!((&job["resource_total"], &job["bytes_stored"]), (&RESOURCES.into(), &(RESOURCES * 10).into()), "{job}");
        }
        cursor = page["next_cursor"].clone();
        if cursor.is_null() {
            break;
        }
    }
    assert_eq!(listed, accepted.iter().cloned().collect());
    let root = dir.join("store/manifests/default");
    let begun = Instant::now();
    // They follow their commit.
    let written = |id: &String| std::fs::read(root.join(id).join("manifest.json")).is_ok_and(|body| body == id.as_bytes());
    while !accepted.iter().all(written) {
        assert!(begun.elapsed() < LIMIT, "manifests are missing");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for directory in std::fs::read_dir(&root).unwrap() {
        let directory = directory.unwrap();
        assert!(listed.contains(directory.file_name().to_str().unwrap()), "{directory:?} is nobody's");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "{directory:?} holds more than a manifest");
    }
}

/// A directory for the hub and its points, the hub, and a client that may do anything.
async fn begin(external: bool) -> (tempfile::TempDir, KillOnDrop, HubClient) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("points")).unwrap();
    let child = spawn(dir.path(), external);
    let client = client(&dir.path().join("hub.sock"), "all", Role::Operator);
    client.wait_connected(LIMIT).await.unwrap();
    (dir, child, client)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_and_outcomes_count_once_wherever_the_hub_is_killed() {
    let (dir, mut child, client) = begin(false).await;
    let stop = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> = (0..4).map(|lane| tokio::spawn(work(client.clone(), Arc::clone(&stop), lane))).collect();
    let kills = strike(dir.path(), &mut child, &STEPS, false).await;
    stop.store(true, Ordering::Relaxed);
    let mut accepted = Vec::new();
    for worker in workers {
        accepted.extend(worker.await.unwrap());
    }
    assert!(accepted.len() > kills / 4, "only {} jobs met {kills} kills", accepted.len());
    check_jobs(dir.path(), &client, &accepted).await;
    let mut events: HashMap<String, u32> = HashMap::new();
    let member = JoinRequest { topic: Topic::Events as u32, group: "check".into(), member: "m".into(), partitions: vec![] };
    let assignment = client.join(member).await.unwrap();
    let mut request = PollRequest { topic: Topic::Events as u32, group: "check".into(), ..poll("m", &assignment, 0) };
    loop {
        let batches = client.poll(request.clone()).await.unwrap().batches;
        if batches.is_empty() {
            break;
        }
        for batch in batches {
            let position = request.positions.iter_mut().find(|position| position.partition == batch.partition).unwrap();
            position.next_offset = batch.base_offset + u64::from(batch.count);
            for message in batch::unpack(&batch.bytes).unwrap() {
                *events.entry(JobStatus::decode(message).unwrap().job_id).or_default() += 1;
            }
        }
    }
    assert_eq!(events.len(), accepted.len());
    assert!(events.values().all(|&count| count == 1), "a job was settled twice");
    client.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_the_outbox_is_lost_wherever_the_hub_is_killed() {
    let (dir, mut child, client) = begin(true).await;
    let (working, publishing) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let workers: Vec<_> = (0..4).map(|lane| tokio::spawn(work(client.clone(), Arc::clone(&working), lane))).collect();
    let publisher = tokio::spawn(publish(client.clone(), Arc::clone(&publishing)));
    let kills = strike(dir.path(), &mut child, &OUTBOX, true).await;
    working.store(true, Ordering::Relaxed);
    let mut accepted = Vec::new();
    for worker in workers {
        accepted.extend(worker.await.unwrap());
    }
    publishing.store(true, Ordering::Relaxed);
    let published = publisher.await.unwrap();

    assert!(accepted.len() > kills / 4, "only {} jobs met {kills} kills", accepted.len());
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
    }
    check_jobs(dir.path(), &client, &accepted).await;
    client.close();
}
