//! The background tasks, driven by hand against a real database and a clock that the test moves.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fetchbox_model::batch::{Batch, BatchBuilder};
use fetchbox_model::message::{DownloadTask, JobStatus, ResourceOutcome, ResourceState};
use fetchbox_model::stream::Topic;
use serde_json::{Value, json};

use crate::clock::fake::FakeClock;
use crate::config::{Broker, HubConfig};
use crate::core::Core;
use crate::db::Space;
use crate::error::HubError;
use crate::frame::*;
use crate::group::Group;
use crate::hub::Hub;
use crate::query;
use crate::retention::Retainer;
use crate::retry_mover::Mover;
use crate::upkeep::MOVER;
use crate::writer::Command;

pub(crate) const JOB: &str = "0190b6d4-0000-7000-8000-000000000001";
pub(crate) const START_MS: u64 = 1_700_000_000_000;
const DAY_MS: u64 = 86_400_000;

pub(crate) struct Bed {
    pub hub: Hub,
    pub clock: Arc<FakeClock>,
    pub dir: tempfile::TempDir,
}

impl Bed {
    pub fn new(change: impl FnOnce(&mut HubConfig)) -> Bed {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(FakeClock::default());
        clock.advance(START_MS);
        let mut config = HubConfig::new(dir.path().join("hub"), dir.path().join("sock"));
        config.partitions = 4;
        change(&mut config);
        let hub = Hub::open_with(config, clock.clone()).unwrap();
        Bed { hub, clock, dir }
    }

    pub fn core(&self) -> &Core {
        self.hub.core()
    }

    pub fn accept(&self, job_id: &str, resources: u32, change: impl FnOnce(&mut AcceptRequest)) -> Result<AcceptReply, HubError> {
        let task =
            |index| DownloadTask { job_id: job_id.into(), url: format!("http://h/{index}"), resource_index: index, ..Default::default() };
        let Batch { count, bytes } = batch((0..resources).map(task));
        let facts = JobFacts {
            job_id: job_id.into(),
            job_type: "..".into(),
            resource_count: resources,
            created_ms: START_MS,
            ..Default::default()
        };
        let tasks = vec![PartitionBatch { partition: 1, count, bytes }];
        let mut request = Box::new(AcceptRequest { facts, tasks, ..Default::default() });
        change(&mut request);
        self.core().ask(|reply| Command::Accept { request, reply })
    }

    pub fn append(&self, member: &str, entries: Vec<Entry>, commits: Vec<Commit>) -> Result<AppendReply, HubError> {
        let request = AppendRequest { member: member.into(), entries, commits };
        self.core().ask(|reply| Command::Append { request, reply })
    }

    pub fn query(&self, name: &str, params: Value) -> Value {
        let body = query::answer(self.core(), name, &serde_json::to_vec(&params).unwrap()).unwrap();
        serde_json::from_slice(&body).unwrap()
    }
}

pub(crate) fn batch<M: prost::Message>(messages: impl IntoIterator<Item = M>) -> Batch {
    let mut builder = BatchBuilder::default();
    messages.into_iter().for_each(|message| builder.push(&message));
    builder.finish().unwrap()
}

pub(crate) fn stored(indexes: impl IntoIterator<Item = u32>) -> Entry {
    let outcome = |index| ResourceOutcome { resource_index: index, state: ResourceState::Stored as i32, ..Default::default() };
    let outcomes = indexes.into_iter().map(outcome).collect();
    Entry::new(Topic::Status, 0, batch([JobStatus { job_id: JOB.into(), outcomes, ..Default::default() }]))
}

fn failed(indexes: impl IntoIterator<Item = u32>) -> Entry {
    let task = |index| DownloadTask { job_id: JOB.into(), url: "http://h/".into(), resource_index: index, ..Default::default() };
    let outcome = |index| ResourceOutcome {
        resource_index: index,
        state: ResourceState::Failed as i32,
        code: "DOWNLOAD_TLS".into(),
        task: Some(task(index)),
        ..Default::default()
    };
    let outcomes = indexes.into_iter().map(outcome).collect();
    Entry::new(Topic::Status, 0, batch([JobStatus { job_id: JOB.into(), outcomes, ..Default::default() }]))
}

pub(crate) fn retry(tier: u32, target: u32) -> Entry {
    Entry::retry(tier, target, batch([DownloadTask { job_id: JOB.into(), url: "http://h/".into(), ..Default::default() }]))
}

#[test]
fn retries_come_back_when_due_each_once_and_in_their_partition() {
    let bed = Bed::new(|_| {});
    let core = bed.core();
    bed.append("", vec![retry(0, 3), retry(0, 2), retry(1, 3)], vec![]).unwrap();
    let mut mover = Mover::default();
    bed.clock.advance(14_999);
    mover.step(core).unwrap();
    assert_eq!(core.next.get(Topic::Tasks, 3), 0);
    bed.clock.advance(1);
    mover.step(core).unwrap();
    mover.step(core).unwrap();
    assert_eq!((core.next.get(Topic::Tasks, 3), core.next.get(Topic::Tasks, 2)), (1, 1));
    assert_eq!(core.committed(Topic::Retry, MOVER, 0), 2);
    bed.clock.advance(45_000);
    mover.step(core).unwrap();
    assert_eq!(core.next.get(Topic::Tasks, 3), 2);
}

#[test]
fn a_clock_that_jumps_back_an_hour_does_not_stall_retries() {
    let bed = Bed::new(|_| {});
    bed.append("", vec![retry(0, 3)], vec![]).unwrap();
    bed.clock.wall.fetch_sub(3_600_000, Ordering::Relaxed);
    let mut mover = Mover::default();
    mover.step(bed.core()).unwrap();
    assert_eq!(bed.core().next.get(Topic::Tasks, 3), 0);
    bed.clock.advance(15_000);
    mover.step(bed.core()).unwrap();
    assert_eq!(bed.core().next.get(Topic::Tasks, 3), 1);
}

/// A clock that jumps: every retry comes when it is due, each a second after the one before, neither at once nor one by one.
#[test]
fn retries_keep_their_times_whatever_happens_to_the_clock() {
    for jump_ms in [-3_600_000i64, 3_600_000] {
        let bed = Bed::new(|_| {});
        let core = bed.core();
        let mut mover = Mover::default();
        mover.step(core).unwrap();
        for _ in 0..10 {
            bed.append("", vec![retry(0, 3)], vec![]).unwrap();
            mover.step(core).unwrap();
            bed.clock.advance(1000);
        }
        bed.clock.wall.store(bed.clock.wall.load(Ordering::Relaxed).saturating_add_signed(jump_ms), Ordering::Relaxed);
        mover.step(core).unwrap();
        assert_eq!(core.next.get(Topic::Tasks, 3), 0, "{jump_ms}: nothing is due");
        bed.clock.advance(5000);
        for moved in 1..=10 {
            mover.step(core).unwrap();
            assert_eq!(core.next.get(Topic::Tasks, 3), moved, "{jump_ms}");
            bed.clock.advance(1000);
        }
    }
}

#[test]
fn only_what_is_old_and_committed_is_trimmed() {
    let bed = Bed::new(|_| {});
    let core = bed.core();
    bed.accept(JOB, 4, |_| {}).unwrap();
    let start = || core.start.get(Topic::Tasks, 1);
    bed.clock.advance(8 * DAY_MS);
    Retainer::default().step(core).unwrap();
    assert_eq!(start(), 0, "nothing is committed");
    let mut group = Group::new(4);
    group.join("w", 1, &[], Duration::ZERO);
    core.groups.lock().insert((Topic::Tasks as u8, "workers".into()), group);
    let commit = |offset| vec![Commit { topic: Topic::Tasks as u32, group: "workers".into(), partition: 1, offset }];
    bed.append("w", vec![], commit(3)).unwrap();
    Retainer::default().step(core).unwrap();
    assert_eq!(start(), 0, "a record goes as a whole");
    bed.append("w", vec![], commit(4)).unwrap();
    bed.append("stranger", vec![], commit(1)).unwrap();
    bed.append("w", vec![], commit(9)).unwrap();
    assert_eq!(core.committed(Topic::Tasks, "workers", 1), 4, "forward only, and not beyond the end");
    Retainer::default().step(core).unwrap();
    assert_eq!((start(), core.next.get(Topic::Tasks, 1)), (4, 4));
    // The job does not suffer from it: only where a pending resource came from is no longer known.
    assert_eq!(bed.query("resources", json!({"job_id": JOB}))["resources"][3]["state"], "pending");
    bed.accept("0190b6d4-0000-7000-8000-000000000002", 1, |_| {}).unwrap();
    assert_eq!(core.next.get(Topic::Tasks, 1), 5);
}

#[test]
fn settled_jobs_are_pruned_with_their_reservation_and_unsettled_ones_never() {
    let bed = Bed::new(|_| {});
    let reservation = Reservation { key: "k".into(), body_sha256: "b".into() };
    bed.accept(JOB, 2, |request| request.facts.reservation = Some(reservation.clone())).unwrap();
    bed.append("", vec![stored([0])], vec![]).unwrap();
    bed.clock.advance(31 * DAY_MS);
    Retainer::default().step(bed.core()).unwrap();
    assert_eq!(bed.query("jobs", json!({}))["jobs"][0]["status"], "in_progress");
    bed.append("", vec![stored([1])], vec![]).unwrap();
    Retainer::default().step(bed.core()).unwrap();
    assert_eq!(bed.query("jobs", json!({}))["jobs"][0]["status"], "completed");
    bed.clock.advance(31 * DAY_MS);
    Retainer::default().step(bed.core()).unwrap();
    assert_eq!(bed.query("jobs", json!({}))["jobs"], json!([]));
    assert!(query::answer(bed.core(), "job", format!("{{\"job_id\":\"{JOB}\"}}").as_bytes()).is_err());
    let again = bed.accept("0190b6d4-0000-7000-8000-000000000002", 2, |request| request.facts.reservation = Some(reservation)).unwrap();
    assert!(again.created);
}

#[test]
fn dead_letters_keep_their_job_longer_and_go_with_it() {
    let shelved = |bed: &Bed| {
        let entries = |replayed: bool| bed.query("dlq", json!({"replayed": replayed}))["entries"].as_array().unwrap().len();
        let keys = bed.core().db.range(Space::Index, b"d", b"f").count();
        (entries(false), entries(true), keys)
    };
    for purge in [false, true] {
        let bed = Bed::new(|_| {});
        bed.accept(JOB, 3, |_| {}).unwrap();
        bed.append("", vec![failed([0, 1])], vec![]).unwrap();
        assert_eq!(bed.query("dlq_replay", json!({"filter": {"id": format!("{JOB}.0.0")}}))["count"], 1);
        let late = ResourceOutcome { resource_index: 0, generation: 1, state: ResourceState::Stored as i32, ..Default::default() };
        let late = Entry::new(Topic::Status, 0, batch([JobStatus { job_id: JOB.into(), outcomes: vec![late], ..Default::default() }]));
        bed.append("", vec![stored([2]), late], vec![]).unwrap();
        assert_eq!(bed.query("jobs", json!({}))["jobs"][0]["status"], "partial");
        assert_eq!(shelved(&bed), (1, 1, 2));
        if purge {
            assert_eq!(bed.query("dlq_purge", json!({"filter": {}}))["count"], 1);
            assert_eq!(shelved(&bed), (0, 0, 0));
        }
        bed.clock.advance(31 * DAY_MS);
        Retainer::default().step(bed.core()).unwrap();
        assert_eq!(bed.query("jobs", json!({}))["jobs"].as_array().unwrap().len(), usize::from(!purge));
        bed.clock.advance(60 * DAY_MS);
        Retainer::default().step(bed.core()).unwrap();
        assert_eq!((bed.query("jobs", json!({}))["jobs"].clone(), shelved(&bed)), (json!([]), (0, 0, 0)));
    }
}

#[test]
fn manifests_follow_into_the_store_and_leave_the_database() {
    let bed = Bed::new(|config| config.store_root = Some(config.path.with_file_name("store")));
    let path = bed.dir.path().join("store/manifests").join(fetchbox_model::key::segment("..")).join(JOB).join("manifest.json");
    // The store is not there yet: the blob stays and is readable.
    std::fs::write(bed.dir.path().join("store"), b"in the way").unwrap();
    bed.accept(JOB, 1, |request| request.manifest = Some(Bytes::from_static(b"{\"a\":1}"))).unwrap();
    let manifest = || bed.query("manifest", json!({"job_id": JOB}))["body"].clone();
    assert_eq!(manifest(), "{\"a\":1}");
    wait_until(|| bed.query("health", json!({}))["components"]["storage"]["status"] == "degraded");
    std::fs::remove_file(bed.dir.path().join("store")).unwrap();
    std::fs::create_dir(bed.dir.path().join("store")).unwrap();
    wait_until(|| manifest().is_null());
    assert_eq!(std::fs::read(&path).unwrap(), b"{\"a\":1}");
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
}

/// Waits for what another thread is about to do.
fn wait_until(done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(20), "it did not happen");
        std::thread::yield_now();
    }
}

#[test]
fn a_full_disk_is_refused_before_anything_is_written() {
    let bed = Bed::new(|config| config.reserve_bytes = Some(u64::MAX));
    wait_until(|| bed.core().full.load(Ordering::Relaxed));
    let refused = |error: HubError| matches!(error, HubError::Refused { code, retry_after_ms: Some(_), .. } if code == "LEDGER_FULL");
    assert!(refused(bed.accept(JOB, 1, |_| {}).unwrap_err()));
    assert!(refused(bed.append("", vec![stored([0])], vec![]).unwrap_err()));
    assert_eq!(bed.query("health", json!({}))["status"], "degraded");
}

#[test]
fn with_an_external_broker_everything_goes_through_the_outbox_until_it_is_full() {
    let bed = Bed::new(|config| {
        config.broker = Broker::External;
        config.outbox_max_bytes = 400;
    });
    let mut accepted = 0;
    let refusal = loop {
        match bed.accept(&format!("0190b6d4-0000-7000-8000-{accepted:012}"), 1, |_| {}) {
            Ok(_) => accepted += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refusal, HubError::Refused { code, .. } if code == "BROKER_UNAVAILABLE"));
    assert!(accepted > 0);
    let all = OutboxPeekRequest { after: 0, max_bytes: u32::MAX, wait_ms: 0 };
    let items = crate::serve_request::outbox(bed.core(), all).unwrap();
    let topics: Vec<u32> = items[0].entries.iter().map(|entry| entry.topic).collect();
    assert_eq!((items.len(), items[0].sequence, topics), (accepted, 1, vec![1, 4, 3]));
    assert_eq!(crate::serve_request::outbox(bed.core(), OutboxPeekRequest { after: 1, ..all }).unwrap().len(), accepted - 1);
    let up_to = items[accepted - 1].sequence;
    bed.core().ask(|reply| Command::OutboxDone { up_to, reply }).unwrap();
    assert!(crate::serve_request::outbox(bed.core(), all).unwrap().is_empty());
    assert_eq!(bed.core().outbox_bytes.load(Ordering::Relaxed), 0);
    bed.accept(JOB, 1, |_| {}).unwrap();
    // A copy stays here.
    assert!(bed.core().next.get(Topic::Tasks, 1) >= 2);
    // A replay takes the same way, whole.
    bed.append("", vec![failed([0])], vec![]).unwrap();
    let up_to = crate::serve_request::outbox(bed.core(), all).unwrap().last().unwrap().sequence;
    bed.core().ask(|reply| Command::OutboxDone { up_to, reply }).unwrap();
    assert_eq!(bed.query("dlq_replay", json!({"filter": {}}))["count"], 1);
    let items = crate::serve_request::outbox(bed.core(), all).unwrap();
    let topics: Vec<u32> = items.iter().flat_map(|item| item.entries.iter().map(|entry| entry.topic)).collect();
    assert_eq!((items.len(), topics), (1, vec![1, 4, 3]));
}
