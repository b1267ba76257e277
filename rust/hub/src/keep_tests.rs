//! Sweeper, collector and check against a real database that is damaged on purpose, with a clock that the tests move.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fetchbox_model::batch::unpack;
use fetchbox_model::key::{ObjectKey, file_url};
use fetchbox_model::message::{DownloadTask, JobStatus, ResourceOutcome, ResourceState};
use fetchbox_model::stream::Topic;
use prost::Message;
use serde_json::{Value, json};

use crate::core::WORKERS;
use crate::db::{Batch, Space};
use crate::dlq::{self, Letter, Letters, Shelf};
use crate::error::HubError;
use crate::frame::*;
use crate::group::Group;
use crate::hub::Hub;
use crate::job::{JobRecord, parse_id};
use crate::keys::{self, Listing};
use crate::retention::Retainer;
use crate::retry_mover::Mover;
use crate::sweep::Swept;
use crate::upkeep_tests::{Bed, JOB, batch, retry, stored};
use crate::writer::Command;
use crate::{keep, ledger, listing, outcome};

const QUIET_MS: u64 = 900_000;
const OTHER: &str = "0190b6d4-0000-7000-8000-000000000002";

impl Bed {
    /// Nothing happens by itself.
    pub(crate) fn still(change: impl FnOnce(&mut crate::config::HubConfig)) -> Bed {
        Bed::new(|config| {
            config.keeping.sweep_after = 0.0;
            config.keeping.collect_every = 0.0;
            change(config);
        })
    }

    /// With a local store.
    pub(crate) fn with_store() -> Bed {
        Bed::still(|config| config.store_root = Some(config.path.with_file_name("store")))
    }

    /// Opens the database again: nothing is remembered.
    pub(crate) fn reopen(self) -> Bed {
        let Bed { hub, clock, dir } = self;
        let config = hub.core().config.clone();
        hub.close();
        Bed { hub: Hub::open_with(config, clock.clone()).unwrap(), clock, dir }
    }

    /// A worker commits an offset of partition 1, whatever became of the tasks below.
    fn commit(&self, offset: u64) {
        let mut group = Group::new(4);
        group.join("w", 1, &[], Duration::ZERO);
        self.core().groups.lock().insert((Topic::Tasks as u8, WORKERS.into()), group);
        let commit = Commit { topic: Topic::Tasks as u32, group: WORKERS.into(), partition: 1, offset };
        self.append("w", vec![], vec![commit]).unwrap();
        assert_eq!(self.core().committed(Topic::Tasks, WORKERS, 1), offset);
    }

    fn sweep(&self) -> Swept {
        keep::sweep(self.core(), QUIET_MS).unwrap()
    }

    /// Indexes of the tasks of partition 1 from an offset on.
    pub(crate) fn tasks(&self, from: u64) -> Vec<u32> {
        let next = self.core().next.get(Topic::Tasks, 1);
        let parts = crate::log::read(self.core(), Topic::Tasks, 1, from, next).unwrap();
        let messages = parts.iter().flat_map(|(_, part)| unpack(&part.bytes).unwrap());
        messages.map(|message| DownloadTask::decode(message).unwrap().resource_index).collect()
    }

    fn cancel(&self) {
        let request = CancelRequest { job_id: JOB.into(), tenant: None };
        self.core().ask(|reply| Command::Cancel { request, reply }).unwrap();
    }

    pub(crate) fn ask(&self, name: &str, params: Value) -> Value {
        serde_json::from_slice(&ledger::answer(self.core(), name, params.to_string().as_bytes()).unwrap()).unwrap()
    }

    /// All pieces of a check: what was found, as kind and index.
    pub(crate) fn check(&self, order: Value) -> Vec<(String, Option<u64>)> {
        let (mut found, mut cursor) = (Vec::new(), None::<String>);
        loop {
            let mut order = order.clone();
            order["cursor"] = json!(cursor);
            let piece = self.ask("check", order);
            for finding in piece["findings"].as_array().unwrap() {
                found.push((finding["kind"].as_str().unwrap().to_owned(), finding["index"].as_u64()));
            }
            cursor = piece["next_cursor"].as_str().map(str::to_owned);
            if cursor.is_none() {
                return found;
            }
        }
    }

    /// Writes a job's record behind the hub's back.
    fn damage(&self, change: impl FnOnce(&mut JobRecord)) {
        let id = parse_id(JOB).unwrap();
        let mut record = JobRecord::decode(self.core().db.get(Space::Jobs, &id).unwrap().unwrap()).unwrap();
        change(&mut record);
        let mut batch = Batch::default();
        batch.put(Space::Jobs, id.to_vec(), record.encode_to_vec());
        self.core().db.commit(batch).unwrap();
    }

    /// The file of a resource, with its directory.
    pub(crate) fn file(&self, id: &str) -> PathBuf {
        let path = self.dir.path().join("store").join(ObjectKey::resource("..", JOB, id).as_str());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    /// A stored file and the entry that reports it.
    pub(crate) fn store(&self, index: u32, content: &str) -> Entry {
        use sha2::Digest;
        let id = index.to_string();
        std::fs::write(self.file(&id), content).unwrap();
        let outcome = ResourceOutcome {
            resource_id: id.clone(),
            resource_index: index,
            state: ResourceState::Stored as i32,
            size: content.len() as u64,
            sha256: sha2::Sha256::digest(content).to_vec().into(),
            storage_url: file_url(&self.dir.path().join("store"), &ObjectKey::resource("..", JOB, &id)),
            ..Default::default()
        };
        Entry::new(Topic::Status, 0, batch([JobStatus { job_id: JOB.into(), outcomes: vec![outcome], ..Default::default() }]))
    }

    /// Accepts a job whose resources are called by their index.
    pub(crate) fn accept_named(&self, resources: u32) {
        let task = |index: u32| DownloadTask {
            job_id: JOB.into(),
            job_type: "..".into(),
            resource_id: index.to_string(),
            url: format!("http://h/{index}"),
            resource_index: index,
            ..Default::default()
        };
        self.accept(JOB, resources, |request| {
            let all = batch((0..resources).map(task));
            request.tasks[0].bytes = all.bytes;
            request.manifest = Some(bytes::Bytes::from_static(b"{}"));
        })
        .unwrap();
    }
}

fn found(kinds: &[(&str, Option<u64>)]) -> Vec<(String, Option<u64>)> {
    kinds.iter().map(|(kind, index)| ((*kind).to_owned(), *index)).collect()
}

#[test]
fn tasks_that_were_lost_are_put_back_once() {
    let bed = Bed::still(|_| {});
    bed.accept(JOB, 4, |_| {}).unwrap();
    bed.append("", vec![stored([0])], vec![]).unwrap();
    bed.commit(4);
    assert_eq!(bed.check(json!({})), found(&[("task_lost", Some(1)), ("task_lost", Some(2)), ("task_lost", Some(3))]));
    bed.clock.advance(QUIET_MS - 1);
    assert_eq!(bed.sweep(), Swept::default(), "not quiet for long enough");
    bed.clock.advance(1);
    assert_eq!(bed.sweep(), Swept { jobs: 1, put_back: 3, gone: 0 });
    assert_eq!(bed.tasks(4), [1, 2, 3]);
    assert!(bed.hub.metrics_text().contains("\nfetchbox_ledger_swept_resources_total 3\n"));
    assert_eq!(bed.check(json!({})), []);
    bed.clock.advance(QUIET_MS);
    assert_eq!(bed.sweep(), Swept::default(), "they wait in the queue now");
    // The same again: what is put back is found by its new place.
    bed.append("", vec![stored([1, 2])], vec![]).unwrap();
    bed.commit(7);
    bed.clock.advance(QUIET_MS);
    assert_eq!((bed.sweep().put_back, bed.tasks(7)), (1, vec![3]));
    let logs = bed.query("logs", json!({"job_id": JOB}));
    assert!(logs.to_string().contains("tasks that were lost are back in the queue"), "{logs}");
}

#[test]
fn what_a_message_still_carries_is_left_alone() {
    let bed = Bed::still(|_| {});
    bed.accept(JOB, 1, |_| {}).unwrap();
    bed.clock.advance(QUIET_MS);
    assert_eq!(bed.sweep(), Swept::default(), "nothing is committed");
    bed.append("", vec![retry(4, 1)], vec![]).unwrap();
    bed.commit(1);
    let carried = Swept { jobs: 1, ..Default::default() };
    assert_eq!(bed.sweep(), carried, "it waits in jobs.retry");
    bed.clock.advance(3_600_000);
    Mover::default().step(bed.core()).unwrap();
    assert_eq!((bed.core().next.get(Topic::Tasks, 1), bed.sweep()), (2, carried), "it is back in jobs.tasks");
    bed.commit(2);
    assert_eq!(bed.sweep().put_back, 1);
}

#[test]
fn a_message_of_an_earlier_generation_carries_nothing() {
    let bed = Bed::still(|_| {});
    bed.accept(JOB, 1, |_| {}).unwrap();
    bed.append("", vec![retry(4, 1)], vec![]).unwrap();
    bed.commit(1);
    bed.damage(|record| record.generations.push(Generation { index: 0, generation: 3 }));
    let bed = bed.reopen();
    bed.clock.advance(QUIET_MS);
    assert_eq!(bed.sweep().put_back, 1);
    let parts = crate::log::read(bed.core(), Topic::Tasks, 1, 1, 2).unwrap();
    let task = DownloadTask::decode(unpack(&parts[0].1.bytes).unwrap()[0].clone()).unwrap();
    assert_eq!(task.generation, 3);
}

#[test]
fn settled_jobs_are_not_swept_and_a_change_since_the_look_stops_it() {
    let bed = Bed::still(|_| {});
    bed.accept(JOB, 2, |_| {}).unwrap();
    bed.commit(2);
    let record = JobRecord::decode(bed.core().db.get(Space::Jobs, &parse_id(JOB).unwrap()).unwrap().unwrap()).unwrap();
    let task = crate::sweep::Returned { partition: 1, index: 1, generation: 0, task: DownloadTask::default().encode_to_vec().into() };
    let put_back = |seen_ms| {
        let (id, tasks) = (parse_id(JOB).unwrap(), vec![task.clone()]);
        bed.core().ask(|reply| Command::PutBack { id, seen_ms, tasks, reply }).unwrap()
    };
    bed.clock.advance(5);
    bed.append("", vec![stored([0])], vec![]).unwrap();
    assert_eq!(put_back(record.updated_ms), 0, "an outcome came meanwhile");
    assert_eq!(put_back(record.updated_ms + 5), 1);
    bed.cancel();
    bed.clock.advance(QUIET_MS);
    assert_eq!(bed.sweep(), Swept::default());
}

#[test]
fn a_lost_task_that_the_log_has_forgotten_is_told_and_nothing_is_made_up() {
    let bed = Bed::still(|_| {});
    bed.accept(JOB, 2, |_| {}).unwrap();
    bed.commit(2);
    bed.clock.advance(8 * 86_400_000);
    Retainer::default().step(bed.core()).unwrap();
    assert_eq!(bed.core().start.get(Topic::Tasks, 1), 2);
    assert_eq!(bed.sweep(), Swept { jobs: 1, put_back: 0, gone: 2 });
    assert!(bed.hub.metrics_text().contains("\nfetchbox_ledger_gone_resources 2\n"));
}

#[test]
fn objects_that_appear_after_a_cancel_are_removed_and_stored_ones_stay() {
    let bed = Bed::with_store();
    bed.accept_named(3);
    let first = bed.store(0, "kept");
    bed.append("", vec![first], vec![]).unwrap();
    let late = bed.store(1, "late");
    std::fs::write(bed.file("2"), "still under way").unwrap();
    let collected = |early| keep::collect(bed.core(), early).unwrap().objects;
    assert_eq!(collected(true), 0, "a live job owns whatever its tasks may have made");
    bed.cancel();
    assert_eq!(collected(false), 0, "not due yet");
    assert_eq!(collected(true), 2);
    assert_eq!((bed.file("0").exists(), bed.file("1").exists(), bed.file("2").exists()), (true, false, false));
    // What was looked at early is looked at again when it is due; what is reported later, at once.
    std::fs::write(bed.file("2"), "later").unwrap();
    bed.clock.advance(900_000);
    assert_eq!(collected(false), 1);
    std::fs::write(bed.file("1"), "much later").unwrap();
    assert_eq!(collected(false), 0, "nothing is queued");
    bed.append("", vec![late], vec![]).unwrap();
    assert_eq!((collected(false), bed.file("1").exists()), (1, false));
    assert_eq!(std::fs::read_to_string(bed.file("0")).unwrap(), "kept");
    assert!(bed.hub.metrics_text().contains("\nfetchbox_collector_removed_total{kind=\"object\"} 4\n"));
    assert_eq!(bed.check(json!({"store": true, "deep": true})), []);
}

#[test]
fn a_job_without_failures_is_never_looked_at_and_one_that_is_collected_is_not_replayed() {
    let bed = Bed::with_store();
    bed.accept_named(1);
    let first = bed.store(0, "kept");
    bed.append("", vec![first], vec![]).unwrap();
    assert_eq!(keep::collect(bed.core(), true).unwrap().jobs, 0);
    let jobs = vec![parse_id(JOB).unwrap(), parse_id(OTHER).unwrap()];
    let begun = bed.core().ask(|reply| Command::CollectBegin { jobs: jobs.clone(), reply }).unwrap();
    assert_eq!(begun, [jobs[0]], "the other is unknown");
}

#[derive(Default)]
struct Remote {
    objects: parking_lot::Mutex<Vec<String>>,
    /// Keys of uploads, each begun when the clock was.
    uploads: Vec<String>,
}

impl crate::shelf::Shelf for Remote {
    fn sizes(&self, urls: &[String]) -> Result<Vec<Option<u64>>, String> {
        Ok(vec![None; urls.len()])
    }
    fn sha256(&self, _url: &str) -> Result<Option<[u8; 32]>, String> {
        Ok(None)
    }
    fn remove(&self, objects: &[(String, String)]) -> Result<Vec<(String, String)>, String> {
        let mut held = self.objects.lock();
        let there = objects.iter().filter(|(_, key)| held.contains(key)).cloned().collect();
        held.retain(|key| !objects.iter().any(|(_, doomed)| doomed == key));
        Ok(there)
    }
    fn tidy(&self, is_over: &dyn Fn(&str, u64) -> bool) -> Result<(u64, u64), String> {
        Ok((0, self.uploads.iter().filter(|key| is_over(key, crate::upkeep_tests::START_MS)).count() as u64))
    }
}

#[test]
fn manifests_of_posts_that_died_are_removed_and_the_post_cannot_be_accepted_any_more() {
    let bed = Bed::still(|_| {});
    let remote = Arc::new(Remote::default());
    bed.hub.keep_store(remote.clone());
    let reserve = |key: &str, id: &str, connection| {
        let request = ReserveRequest {
            job_type: "..".into(),
            key: key.into(),
            body_sha256: "b".into(),
            job_id: id.into(),
            stores_manifest: true,
            ..Default::default()
        };
        bed.core().connections.lock().insert(connection, crate::frame::Role::Api);
        bed.core().ask(|reply| Command::Reserve { request, connection, reply }).unwrap().job_id
    };
    let accept = |key: &str, id: &str| {
        bed.accept(id, 1, |request| {
            request.facts.reservation = Some(Reservation { key: key.into(), body_sha256: "b".into() });
            request.facts.stores_manifest = true;
        })
    };
    assert_eq!(reserve("k", JOB, 1), JOB);
    assert_eq!(reserve("\0own", OTHER, 2), OTHER);
    *remote.objects.lock() = [JOB, OTHER].map(|id| String::from(ObjectKey::manifest("..", id))).to_vec();
    assert!(accept("\0own", OTHER).unwrap().created);
    bed.clock.advance(100_000);
    let collect = || keep::collect(bed.core(), true).unwrap().manifests;
    assert_eq!(collect(), 0, "too young");
    bed.clock.advance(900_000);
    // A retry of the client takes it over: it is at it again.
    assert_eq!(reserve("k", "0190b6d4-0000-7000-8000-000000000003", 3), JOB);
    assert_eq!(collect(), 0, "it began anew");
    bed.clock.advance(900_001);
    assert_eq!(collect(), 1);
    assert_eq!(*remote.objects.lock(), [String::from(ObjectKey::manifest("..", OTHER))], "that of the accepted job stays");
    let refused = accept("k", JOB).unwrap_err();
    assert!(matches!(&refused, HubError::Refused { code, .. } if code == "HUB_UNAVAILABLE"), "{refused}");
    assert_eq!(reserve("k", "0190b6d4-0000-7000-8000-000000000004", 4), "0190b6d4-0000-7000-8000-000000000004");
    assert!(accept("k", "0190b6d4-0000-7000-8000-000000000004").unwrap().created);
    assert_eq!(bed.query("job", json!({"job_id": OTHER}))["resource_total"], 1);
    assert_eq!(bed.check(json!({})), []);
}

#[test]
fn uploads_end_when_their_resource_is_settled_or_they_are_very_old() {
    let bed = Bed::still(|config| {
        let store = config.path.with_file_name("store");
        std::fs::create_dir_all(store.join(String::from(ObjectKey::resource("..", JOB, "0"))).parent().unwrap()).unwrap();
    });
    let of = |job: &str, id: &str| format!("some/prefix/{}", ObjectKey::resource("..", job, id).as_str());
    // Twice the first: the one of a worker that was killed, and another's.
    let uploads = vec![of(JOB, "0"), of(JOB, "0"), of(JOB, "1"), of(OTHER, "0"), "resources/none/0".into()];
    bed.hub.keep_store(Arc::new(Remote { uploads, ..Remote::default() }));
    bed.accept_named(2);
    let uploads = || keep::collect(bed.core(), false).unwrap().uploads;
    bed.clock.advance(30_000);
    assert_eq!(uploads(), 0, "both resources may be under way");
    let first = bed.store(0, "first");
    bed.append("", vec![first], vec![]).unwrap();
    assert_eq!(uploads(), 2, "those of the settled resource");
    bed.cancel();
    assert_eq!(uploads(), 3, "and the cancelled one's");
    bed.clock.advance(86_400_000);
    assert_eq!(uploads(), 4, "and the strange job's; what holds no job's id is not ours");
}

#[test]
fn uploads_of_a_direct_job_that_is_only_silent_are_given_time() {
    let bed = Bed::still(|config| config.keeping.direct_idle = 60.0);
    let key = format!("resources/../{JOB}/0");
    bed.hub.keep_store(Arc::new(Remote { uploads: vec![key], ..Remote::default() }));
    let outcome = ResourceOutcome { resource_id: "a".into(), state: ResourceState::Stored as i32, ..Default::default() };
    let status = JobStatus { job_id: JOB.into(), job_type: "..".into(), outcomes: vec![outcome], ..Default::default() };
    bed.append("", vec![Entry::new(Topic::Status, 0, batch([status]))], vec![]).unwrap();
    let mut closer = crate::direct::Closer::default();
    bed.clock.advance(120_000);
    for _ in 0..2 {
        closer.step(bed.core()).unwrap();
    }
    assert_eq!(bed.query("job", json!({"job_id": JOB}))["status"], "completed");
    let uploads = || keep::collect(bed.core(), false).unwrap().uploads;
    assert_eq!(uploads(), 0);
    bed.clock.advance(900_000);
    assert_eq!(uploads(), 1);
}

#[test]
fn damage_is_found_and_mended() {
    let bed = Bed::with_store();
    bed.accept_named(4);
    for index in 0..3 {
        let entry = bed.store(index, "content");
        bed.append("", vec![entry], vec![]).unwrap();
    }
    assert_eq!(bed.check(json!({})), []);
    bed.damage(|record| {
        (record.counts.stored, record.bitmap) = (2, vec![0b1011]);
    });
    let bed = bed.reopen();
    let expected = found(&[
        ("count_differs", None),
        ("bitmap_differs", None),
        ("outcome_unsettled", Some(2)),
        ("outcome_missing", Some(3)),
        ("totals_differ", None),
    ]);
    assert_eq!(bed.check(json!({})), expected);
    assert_eq!(bed.check(json!({"job_id": JOB})), expected[..4]);
    assert_eq!(bed.ask("recount", json!({"job_id": JOB})), json!({"changed": true}));
    assert_eq!(bed.check(json!({})), [("totals_differ".to_owned(), None)], "the sums were right: they take part in the change");
}

#[test]
fn dead_letters_are_held_against_what_failed() {
    let bed = Bed::with_store();
    bed.accept_named(4);
    let failed = |index: u32| ResourceOutcome {
        resource_id: index.to_string(),
        resource_index: index,
        state: ResourceState::Failed as i32,
        code: "DOWNLOAD_TIMEOUT".into(),
        task: Some(DownloadTask { job_id: JOB.into(), resource_index: index, url: format!("http://h/{index}"), ..Default::default() }),
        ..Default::default()
    };
    let report = |outcomes| Entry::new(Topic::Status, 0, batch([JobStatus { job_id: JOB.into(), outcomes, ..Default::default() }]));
    bed.append("", vec![report(vec![failed(0), failed(1)])], vec![]).unwrap();
    bed.append("", vec![report(vec![failed(2)])], vec![]).unwrap();
    let stored = bed.store(3, "content");
    bed.append("", vec![stored], vec![]).unwrap();
    assert_eq!(bed.check(json!({})), []);

    let core = bed.core();
    let id = parse_id(JOB).unwrap();
    let [first, second] = dlq::places(&core.db.view(), &id).unwrap()[..2] else { panic!("a place for each commit") };
    let letters = |place| Letters::read(core.db.get(Space::Index, &dlq::key(Shelf::Dead, place)).unwrap().unwrap()).unwrap();
    let write = |place: &dlq::Place, shelf: Shelf, letters: &Letters| {
        let mut batch = Batch::default();
        batch.put(Space::Index, dlq::key(shelf, place), letters.encode_to_vec());
        core.db.commit(batch).unwrap();
    };
    let (sound, other) = (letters(&first), letters(&second));

    let mut damaged = sound.clone();
    damaged.take((1, 0)).unwrap();
    write(&first, Shelf::Dead, &damaged);
    assert_eq!(bed.check(json!({})), found(&[("letter_missing", Some(1))]));
    assert_eq!(bed.check(json!({"job_id": JOB})), found(&[("letter_missing", Some(1))]));
    write(&first, Shelf::Dead, &sound);

    let mut damaged = other.clone();
    damaged.insert(Letter { index: 3, code: "DOWNLOAD_TIMEOUT".into(), ..Default::default() });
    write(&second, Shelf::Dead, &damaged);
    assert_eq!(bed.check(json!({})), found(&[("letter_unfounded", Some(3))]));
    write(&second, Shelf::Dead, &other);
    assert_eq!(bed.check(json!({})), []);

    // Of a job that is not there, and at a commit that brought nothing of the job.
    write(&(first.0, parse_id(OTHER).unwrap()), Shelf::Dead, &sound);
    write(&(u64::MAX, id), Shelf::Replayed, &other);
    assert_eq!(bed.check(json!({})), found(&[("letter_unfounded", None), ("letter_unfounded", None)]));
    assert_eq!(bed.check(json!({"job_id": JOB})), []);
}

#[test]
fn listings_and_reservations_are_checked_both_ways() {
    let bed = Bed::still(|_| {});
    let reservation = Reservation { key: "k".into(), body_sha256: "b".into() };
    bed.accept(JOB, 1, |request| request.facts.reservation = Some(reservation)).unwrap();
    bed.append("", vec![stored([0])], vec![]).unwrap();
    assert_eq!(bed.check(json!({})), []);
    let id = parse_id(JOB).unwrap();
    let created = crate::upkeep_tests::START_MS;
    let mut batch = Batch::default();
    let of_type = listing::of_slot(&bed.core().db.view(), &Listing::JobType("..".into()).prefix(), listing::slot(created)).unwrap();
    batch.delete(Space::Index, of_type[0].0.clone());
    batch.put(Space::Index, keys::active(created, &id), "");
    let foreign = listing::key(&Listing::Tenant("x".into()).prefix(), listing::slot(created), 1);
    batch.put(Space::Index, foreign, listing::pack(&[(created, parse_id(OTHER).unwrap())]));
    batch.delete(Space::Index, keys::reservation("", "..", "k"));
    bed.core().db.commit(batch).unwrap();
    let expected = [("not_listed", None), ("reservation_missing", None), ("listed_wrongly", None), ("listed_wrongly", None)];
    assert_eq!(bed.check(json!({})), found(&expected));
    assert_eq!(bed.ask("recount", json!({"job_id": JOB})), json!({"changed": true}));
    assert_eq!(bed.check(json!({"job_id": JOB})), found(&[("reservation_missing", None)]));
    let mut batch = Batch::default();
    batch.delete(Space::Jobs, id.to_vec());
    bed.core().db.commit(batch).unwrap();
    assert!(bed.check(json!({})).iter().all(|(kind, _)| kind == "listed_wrongly"));
}

#[test]
fn objects_that_are_gone_cut_or_changed_are_found() {
    let bed = Bed::with_store();
    bed.accept_named(4);
    for (index, content) in [(0, "whole"), (1, "gone"), (2, "cut"), (3, "changed")] {
        let entry = bed.store(index, content);
        bed.append("", vec![entry], vec![]).unwrap();
    }
    assert_eq!(bed.check(json!({"store": true, "deep": true})), []);
    std::fs::remove_file(bed.file("1")).unwrap();
    std::fs::write(bed.file("2"), "cu").unwrap();
    std::fs::write(bed.file("3"), "CHANGED").unwrap();
    assert_eq!(bed.check(json!({})), []);
    let mut expected = found(&[("object_missing", Some(1)), ("object_size_differs", Some(2))]);
    assert_eq!(bed.check(json!({"store": true})), expected);
    expected.extend(found(&[("object_content_differs", Some(3))]));
    assert_eq!(bed.check(json!({"store": true, "deep": true})), expected);
}

#[test]
fn a_damaged_record_is_found_and_stops_nobody() {
    let bed = Bed::still(|_| {});
    bed.accept(JOB, 1, |_| {}).unwrap();
    bed.accept(OTHER, 1, |_| {}).unwrap();
    let mut batch = Batch::default();
    batch.put(Space::Jobs, parse_id(JOB).unwrap().to_vec(), "no record");
    batch.put(Space::Outcomes, outcome::key(&parse_id(OTHER).unwrap(), 9), "no pack");
    bed.core().db.commit(batch).unwrap();
    assert_eq!(bed.check(json!({})), found(&[("record_damaged", None), ("outcomes_damaged", None), ("totals_differ", None)]));
}

#[test]
fn a_backup_opens_as_the_ledger_that_it_was() {
    let bed = Bed::still(|_| {});
    bed.accept(JOB, 3, |_| {}).unwrap();
    bed.append("", vec![stored([0])], vec![]).unwrap();
    let path = bed.dir.path().join("copy");
    assert_eq!(bed.ask("backup", json!({"path": path}))["path"], json!(path));
    bed.append("", vec![stored([1])], vec![]).unwrap();
    let again = ledger::answer(bed.core(), "backup", json!({"path": path}).to_string().as_bytes()).unwrap_err();
    assert!(again.to_string().contains("exists already"), "{again}");
    let mut config = bed.core().config.clone();
    config.path = path;
    let copy = Bed { hub: Hub::open_with(config, bed.clock.clone()).unwrap(), clock: bed.clock.clone(), dir: tempfile::tempdir().unwrap() };
    assert_eq!(copy.query("job", json!({"job_id": JOB}))["resource_pending"], 2);
    assert_eq!(copy.tasks(0), [0, 1, 2]);
    assert_eq!(copy.check(json!({})), []);
    copy.append("", vec![stored([1, 2])], vec![]).unwrap();
    assert_eq!(copy.query("job", json!({"job_id": JOB}))["status"], "completed");
}

#[test]
fn an_export_holds_every_job_with_its_outcomes_and_pruning_on_demand_forgets_what_is_old() {
    let bed = Bed::still(|_| {});
    let ids: Vec<String> = (0..51).map(|n| format!("0190b6d4-0000-7000-8000-{n:012}")).collect();
    for id in &ids {
        bed.accept(id, 1, |_| {}).unwrap();
    }
    let piece = bed.ask("export", json!({}));
    assert_eq!((piece["jobs"].as_array().unwrap().len(), &piece["after"]), (50, &json!(ids[49])));
    let rest = bed.ask("export", json!({"after": piece["after"]}));
    assert_eq!((rest["jobs"][0]["job"]["job_id"].as_str(), &rest["after"]), (Some(ids[50].as_str()), &Value::Null));
    bed.append("", vec![stored([0])], vec![]).unwrap();
    assert_eq!(bed.ask("prune", json!({})), json!({"pruned": 0}));
    bed.clock.advance(31 * 86_400_000);
    assert_eq!(bed.ask("prune", json!({})), json!({"pruned": 1}));
}
