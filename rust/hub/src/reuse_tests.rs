//! What is remembered of URLs, for how long, and of what nothing is.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use fetchbox_model::message::{JobStatus, ResourceOutcome, ResourceState};
use fetchbox_model::reuse::Remembered;
use fetchbox_model::stream::Topic;

use crate::db::Space;
use crate::frame::{CancelRequest, Entry};
use crate::retention::Retainer;
use crate::reuse;
use crate::upkeep_tests::{Bed, JOB, batch};
use crate::writer::Command;

const DAY_MS: u64 = 86_400_000;
const OTHER: &str = "0190b6d4-0000-7000-8000-000000000002";

fn name(number: u8) -> Bytes {
    Bytes::from(vec![number; 32])
}

fn outcome(index: u32, state: ResourceState, change: impl FnOnce(&mut ResourceOutcome)) -> ResourceOutcome {
    let mut outcome = ResourceOutcome {
        resource_index: index,
        state: state as i32,
        sha256: vec![index as u8; 32].into(),
        size: 10,
        etag: format!("\"{index}\""),
        storage_url: format!("s3://b/{index}"),
        reuse_key: name(index as u8),
        ..Default::default()
    };
    change(&mut outcome);
    outcome
}

fn stored(index: u32) -> ResourceOutcome {
    outcome(index, ResourceState::Stored, |_| {})
}

fn report(bed: &Bed, job: &str, outcomes: Vec<ResourceOutcome>) {
    let status = JobStatus { job_id: job.into(), manifest_key: "file:///manifest".into(), outcomes, ..Default::default() };
    bed.append("", vec![Entry::new(Topic::Status, 0, batch([status]))], vec![]).unwrap();
}

fn known(bed: &Bed, number: u8) -> Option<Remembered> {
    let mut found = reuse::known(bed.core(), &[name(number), name(255)]).unwrap();
    assert!(found.len() <= 1);
    found.pop().map(|known| {
        assert_eq!(known.key, name(number));
        known.remembered
    })
}

fn kept(bed: &Bed) -> usize {
    bed.core().db.range(Space::Reuse, b"", b"\xff").count()
}

fn step(bed: &Bed, retainer: &mut Retainer) {
    bed.clock.advance(31_000);
    while retainer.step(bed.core()).unwrap() {}
}

#[test]
fn what_counts_is_remembered_with_its_age_and_survives_the_hub() {
    let bed = Bed::new(|_| {});
    bed.accept(JOB, 3, |_| {}).unwrap();
    report(&bed, JOB, vec![stored(0), outcome(1, ResourceState::Reused, |_| {})]);
    bed.clock.advance(5_000);
    for index in [0, 1] {
        let remembered = known(&bed, index).unwrap();
        assert_eq!((remembered.etag, remembered.size, remembered.age_ms), (format!("\"{index}\""), 10, 5_000));
        assert_eq!((remembered.storage_url, remembered.sha256), (format!("s3://b/{index}"), vec![index; 32].into()));
    }
    assert_eq!((known(&bed, 2), bed.core().remembered.load(Ordering::Relaxed)), (None, 2));
    // A clock that was set back: nobody knows how old it is.
    bed.clock.wall.fetch_sub(60_000, Ordering::Relaxed);
    assert_eq!(known(&bed, 0).unwrap().age_ms, u64::MAX);
    let Bed { hub, clock, dir } = bed;
    drop(hub);
    let mut config = crate::config::HubConfig::new(dir.path().join("hub"), dir.path().join("sock"));
    config.partitions = 4;
    let hub = crate::hub::Hub::open_with(config, clock).unwrap();
    assert_eq!(reuse::known(hub.core(), &[name(0), name(1)]).unwrap().len(), 2);
    assert_eq!(hub.core().remembered.load(Ordering::Relaxed), 2);
}

#[test]
fn nothing_is_written_of_what_does_not_count_or_brings_no_name() {
    let bed = Bed::new(|_| {});
    bed.accept(JOB, 6, |_| {}).unwrap();
    let nameless = |index| outcome(index, ResourceState::Stored, |outcome| outcome.reuse_key = Bytes::new());
    let short = outcome(1, ResourceState::Stored, |outcome| outcome.reuse_key = Bytes::from_static(b"short"));
    let failed = outcome(2, ResourceState::Failed, |_| {});
    report(&bed, JOB, vec![nameless(0), short, failed, outcome(3, ResourceState::Filtered, |_| {})]);
    report(&bed, OTHER, vec![stored(0)]);
    let order = |reply| Command::Cancel { request: CancelRequest { job_id: JOB.into(), tenant: None }, reply };
    bed.core().ask(order).unwrap();
    report(&bed, JOB, vec![stored(4)]);
    assert_eq!(kept(&bed), 0);
}

#[test]
fn the_newest_is_remembered_and_an_object_that_was_replaced_is_not() {
    let bed = Bed::new(|_| {});
    bed.accept(JOB, 2, |_| {}).unwrap();
    bed.accept(OTHER, 1, |_| {}).unwrap();
    report(&bed, JOB, vec![stored(0), stored(1)]);
    // Another job's answer for the same URL.
    report(&bed, OTHER, vec![outcome(0, ResourceState::Stored, |outcome| outcome.storage_url = "s3://b/newer".into())]);
    assert_eq!(known(&bed, 0).unwrap().storage_url, "s3://b/newer");
    // A duplicate with the same content changes nothing, one with another replaced the object.
    report(&bed, JOB, vec![outcome(1, ResourceState::Stored, |outcome| outcome.etag = "\"unseen\"".into())]);
    assert_eq!(known(&bed, 1).unwrap().etag, "\"1\"");
    let replaced = |outcome: &mut ResourceOutcome| (outcome.sha256, outcome.etag) = (vec![9; 32].into(), "\"9\"".into());
    report(&bed, JOB, vec![outcome(1, ResourceState::Reused, replaced)]);
    assert_eq!((known(&bed, 1).unwrap().etag, known(&bed, 1).unwrap().sha256), ("\"9\"".into(), Bytes::from(vec![9; 32])));
    // What was counted as stored is told as stored, whatever brought the content that it has now.
    let told = crate::outcome::newest(&bed.core().db.view(), &crate::job::parse_id(JOB).unwrap()).unwrap();
    assert_eq!((told[&1].state(), &told[&1].sha256[..]), (ResourceState::Stored, &[9; 32][..]));
    // By one that may not be reused: then nothing is.
    let nameless = |outcome: &mut ResourceOutcome| (outcome.sha256, outcome.reuse_key) = (vec![8; 32].into(), Bytes::new());
    report(&bed, JOB, vec![outcome(1, ResourceState::Stored, nameless)]);
    assert_eq!(known(&bed, 1), None);
}

#[test]
fn what_is_old_is_forgotten_and_what_was_confirmed_since_is_not() {
    let bed = Bed::new(|config| config.retention.job_ttl = 30.0 * 86_400.0);
    let mut retainer = Retainer::default();
    bed.accept(JOB, 2, |_| {}).unwrap();
    report(&bed, JOB, vec![stored(0), stored(1)]);
    bed.clock.advance(20 * DAY_MS);
    bed.accept(OTHER, 1, |request| request.facts.created_ms += 20 * DAY_MS).unwrap();
    report(&bed, OTHER, vec![outcome(0, ResourceState::Reused, |_| {})]);
    step(&bed, &mut retainer);
    assert_eq!(kept(&bed), 4);
    bed.clock.advance(11 * DAY_MS);
    step(&bed, &mut retainer);
    assert_eq!((known(&bed, 0).is_some(), known(&bed, 1), kept(&bed)), (true, None, 2));
    bed.clock.advance(20 * DAY_MS);
    step(&bed, &mut retainer);
    assert_eq!((known(&bed, 0), kept(&bed), bed.core().remembered.load(Ordering::Relaxed)), (None, 0, 0));
}

#[test]
fn objects_of_jobs_that_were_pruned_early_are_not_offered() {
    let bed = Bed::new(|_| {});
    bed.accept(JOB, 1, |_| {}).unwrap();
    report(&bed, JOB, vec![stored(0)]);
    assert!(known(&bed, 0).is_some());
    while Retainer::limited(1).step(bed.core()).unwrap() {}
    assert_eq!(known(&bed, 0), None);
}

#[test]
fn what_is_too_much_goes_oldest_first() {
    // Room for 2,000 URLs.
    let bed = Bed::new(|config| config.retention.ledger_max_bytes = 2000 * 400 * 10);
    let many = |from: u32, count: u32| -> Vec<ResourceOutcome> {
        let named = |index: u32| {
            outcome(index, ResourceState::Stored, |outcome| outcome.reuse_key = [&index.to_be_bytes()[..], &[7; 28]].concat().into())
        };
        (from..from + count).map(named).collect()
    };
    bed.accept(JOB, 2600, |_| {}).unwrap();
    report(&bed, JOB, many(0, 1500));
    bed.clock.advance(1000);
    report(&bed, JOB, many(1500, 1100));
    let mut retainer = Retainer::default();
    step(&bed, &mut retainer);
    let found = |index: u32| !reuse::known(bed.core(), &[[&index.to_be_bytes()[..], &[7; 28]].concat().into()]).unwrap().is_empty();
    // In packs of 1,000.
    assert_eq!([0, 999, 1000, 1499, 1500, 2599].map(found), [false, false, true, true, true, true]);
}
