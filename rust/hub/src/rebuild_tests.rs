//! Ledgers that were lost, wholly or in part, and what is made of them again.

use fetchbox_model::key::{ObjectKey, file_url};
use fetchbox_model::message::{DownloadTask, JobStatus, ResourceOutcome, ResourceState};
use fetchbox_model::stream::Topic;
use serde_json::{Value, json};

use crate::db::{Batch, Space};
use crate::frame::*;
use crate::job::Counts;
use crate::keys;
use crate::rebuild;
use crate::upkeep_tests::{Bed, JOB, batch};
use crate::writer::Command;

/// What the tool asks for: the job of `accept_named`, from its manifest.
fn request(resources: u32, digests: bool) -> RebuildRequest {
    let task = |index: u32| DownloadTask {
        job_id: JOB.into(),
        job_type: "..".into(),
        resource_id: index.to_string(),
        url: format!("http://h/{index}"),
        resource_index: index,
        ..Default::default()
    };
    let all = batch((0..resources).map(task));
    let facts = JobFacts {
        job_id: JOB.into(),
        job_type: "..".into(),
        tenant: "t".into(),
        created_ms: 1_700_000_000_000,
        resource_count: resources,
        ..Default::default()
    };
    let tasks = vec![PartitionBatch { partition: 1, count: all.count, bytes: all.bytes }];
    RebuildRequest { accept: AcceptRequest { facts, tasks, log: Default::default(), manifest: None }, digests }
}

fn job(bed: &Bed) -> Value {
    bed.query("job", json!({"job_id": JOB}))
}

fn states(bed: &Bed) -> Vec<String> {
    let resources = bed.query("resources", json!({"job_id": JOB}));
    resources["resources"].as_array().unwrap().iter().map(|resource| resource["state"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_job_is_made_again_with_the_objects_that_are_there_in_one_commit() {
    let lost = Bed::with_store();
    for (index, content) in [(0, "first"), (2, "third")] {
        lost.store(index, content);
    }
    for digests in [false, true] {
        let bed = Bed::still(|config| config.store_root = Some(lost.dir.path().join("store")));
        let reply = rebuild::job(bed.core(), request(3, digests)).unwrap();
        assert_eq!(reply, RebuildReply { created: true, stored: 2, pending: 1 });
        assert_eq!(states(&bed), ["stored", "pending", "stored"]);
        assert_eq!((&job(&bed)["resource_pending"], &job(&bed)["bytes_stored"]), (&json!(1), &json!(10)));
        // A worker that asks before it fetches is told so.
        let found = bed.query("resources", json!({"job_id": JOB}))["resources"][0].clone();
        assert_eq!((&found["url"], &found["size"], found["sha256"].is_string()), (&json!("http://h/0"), &json!(5), digests));
        let url = file_url(&lost.dir.path().join("store"), &ObjectKey::resource("..", JOB, "0"));
        assert_eq!(found["storage_url"], json!(url));
        assert_eq!(bed.check(json!({"store": true, "deep": true})), [], "objects and all");
        // Once more changes nothing.
        assert_eq!(rebuild::job(bed.core(), request(3, digests)).unwrap(), RebuildReply::default());
        let bed = bed.reopen();
        assert_eq!(states(&bed), ["stored", "pending", "stored"]);
        bed.append("", vec![lost.store(1, "second")], vec![]).unwrap();
        assert_eq!(job(&bed)["status"], "completed");
        std::fs::remove_file(lost.file("1")).unwrap();
    }
}

#[test]
fn what_lies_under_a_key_of_anybodys_is_fetched_again() {
    let bed = Bed::with_store();
    bed.store(0, "first");
    let mut asked = request(1, false);
    let hint = fetchbox_model::message::StorageHint { key: "logos/logo.png".into(), ..Default::default() };
    let task =
        DownloadTask { job_id: JOB.into(), job_type: "..".into(), resource_id: "0".into(), storage_hint: Some(hint), ..Default::default() };
    asked.accept.tasks[0].bytes = batch([task]).bytes;
    std::fs::create_dir_all(bed.dir.path().join("store/logos")).unwrap();
    std::fs::write(bed.dir.path().join("store/logos/logo.png"), "another's").unwrap();
    assert_eq!(rebuild::job(bed.core(), asked).unwrap(), RebuildReply { created: true, stored: 0, pending: 1 });
}

#[test]
fn what_was_reported_counts_again_where_the_streams_are_left() {
    let bed = Bed::with_store();
    bed.accept_named(4);
    let reported = |index: u32, state: ResourceState| ResourceOutcome {
        resource_id: index.to_string(),
        resource_index: index,
        state: state as i32,
        code: if state == ResourceState::Failed { "DOWNLOAD_TIMEOUT".into() } else { String::new() },
        http_status: 200,
        ..Default::default()
    };
    let outcomes = vec![reported(1, ResourceState::Failed), reported(2, ResourceState::Filtered)];
    let status = JobStatus { job_id: JOB.into(), outcomes, ..Default::default() };
    bed.append("", vec![bed.store(0, "first"), Entry::new(Topic::Status, 0, batch([status]))], vec![]).unwrap();
    let before = bed.query("receipt", json!({"job_id": JOB}));
    // The ledger's part of the database is lost, the streams are not.
    let mut lost = Batch::default();
    for space in [Space::Jobs, Space::Outcomes, Space::Index] {
        for item in bed.core().db.range(space, &[], &[0xff; 64]) {
            lost.delete(space, item.unwrap().0);
        }
    }
    lost.put(Space::Meta, keys::TOTALS, prost::Message::encode_to_vec(&Counts::default()));
    bed.core().db.commit(lost).unwrap();
    let bed = bed.reopen();

    assert_eq!(rebuild::job(bed.core(), request(4, false)).unwrap(), RebuildReply { created: true, stored: 1, pending: 3 });
    assert_eq!(bed.ask("restate", json!({})), json!({"outcomes": 4, "settled": 2, "restart": false}));
    assert_eq!(bed.ask("restate", json!({}))["settled"], 0, "once");
    assert_eq!(states(&bed), ["stored", "failed", "filtered", "pending"]);
    let after = bed.query("receipt", json!({"job_id": JOB}));
    assert_eq!(after["conservation"], before["conservation"]);
    // The report knew the object's digest, and describes it again.
    assert_eq!(after["resources"][0]["sha256"], before["resources"][0]["sha256"]);
    assert_eq!(bed.query("dlq", json!({}))["entries"].as_array().unwrap().len(), 1);
    assert_eq!(bed.check(json!({})), []);
}

#[test]
fn with_a_broker_the_next_hub_reads_its_statuses_from_the_beginning() {
    let bed = Bed::still(|config| {
        config.broker = crate::config::Broker::External;
        config.store_root = Some(config.path.with_file_name("store"));
    });
    let fed = |bed: &Bed| crate::feed::fed(bed.core())["jobs.status"].clone();
    let feed = |base_offset: u64, entry: Entry| {
        let request = FeedRequest { topic: Topic::Status as u32, partition: 0, base_offset, count: 1, bytes: entry.bytes };
        bed.core().ask(|reply| Command::Feed { request, reply }).unwrap();
    };
    // As workers report: of a job that was posted.
    let posted = || RebuildRequest {
        accept: AcceptRequest {
            facts: JobFacts { manifest_key: "file:///m".into(), ..request(2, false).accept.facts },
            ..request(2, false).accept
        },
        digests: false,
    };
    let status = |index: u32| {
        let outcome = ResourceOutcome {
            resource_index: index,
            resource_id: index.to_string(),
            state: ResourceState::Filtered as i32,
            ..Default::default()
        };
        let about = JobStatus { job_id: JOB.into(), manifest_key: "file:///m".into(), outcomes: vec![outcome], ..Default::default() };
        Entry::new(Topic::Status, 0, batch([about]))
    };
    let reported = status(0);
    // Nobody knows the job when its report is read.
    feed(0, reported.clone());
    assert_eq!(fed(&bed), json!([1, 0, 0, 0]));
    assert_eq!(rebuild::job(bed.core(), posted()).unwrap(), RebuildReply { created: true, stored: 0, pending: 2 });
    assert_eq!(bed.ask("restate", json!({}))["restart"], true);
    feed(1, status(7));
    let bed = bed.reopen();
    assert_eq!(fed(&bed), json!([0, 0, 0, 0]));
    let request = FeedRequest { topic: Topic::Status as u32, partition: 0, base_offset: 0, count: 1, bytes: reported.bytes };
    bed.core().ask(|reply| Command::Feed { request, reply }).unwrap();
    assert_eq!(states(&bed), ["filtered", "pending"]);
    let bed = bed.reopen();
    assert_eq!(fed(&bed), json!([1, 0, 0, 0]), "once");
}
