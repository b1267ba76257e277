//! The dead letters over a real socket: seen, replayed, purged.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;

use common::*;
use fetchbox_hub::*;
use fetchbox_model::batch;
use fetchbox_model::manifest::partition_of;
use fetchbox_model::message::{DownloadTask, ResourceState};
use serde_json::{Value, json};

/// A job of `total` resources of which the first `dead` failed and the others were stored.
async fn job_with_letters(all: &HubClient, total: u32, dead: u32) -> String {
    let id = new_id();
    all.accept(accept_request(&id, total, None)).await.unwrap();
    let mut outcomes: Vec<_> =
        (0..dead).map(|index| failed(&id, index, 0, ["DOWNLOAD_TLS", "DOWNLOAD_TIMEOUT"][index as usize % 2])).collect();
    outcomes.extend((dead..total).map(|index| outcome(index, ResourceState::Stored, "a")));
    report(all, vec![status(&id, outcomes)]).await;
    id
}

fn entries(page: &Value) -> Vec<(String, u64)> {
    let entry = |entry: &Value| (entry["job_id"].as_str().unwrap().to_owned(), entry["index"].as_u64().unwrap());
    page["entries"].as_array().unwrap().iter().map(entry).collect()
}

/// Every task in `jobs.tasks`, as a worker that begins at the beginning sees them.
async fn tasks(all: &HubClient) -> Vec<DownloadTask> {
    let assignment = all.join(join("reader")).await.unwrap();
    let mut request = poll("reader", &assignment, 200);
    let mut found = Vec::new();
    loop {
        let batches = all.poll(request.clone()).await.unwrap().batches;
        if batches.is_empty() {
            all.leave(join("reader")).await.unwrap();
            return found;
        }
        for polled in batches {
            found.extend(batch::decode::<DownloadTask>(&polled.bytes).unwrap().into_iter().map(Result::unwrap));
            let position = request.positions.iter_mut().find(|p| p.partition == polled.partition).unwrap();
            position.next_offset = polled.base_offset + u64::from(polled.count);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_listed_newest_first_filtered_counted_and_told_whole() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(config(dir.path()));
    let all = running.client("all", Role::Operator).await;
    let first = job_with_letters(&all, 5, 3).await;
    let second = job_with_letters(&all, 4, 4).await;
    let list = |params: Value| ask(&all, "dlq", params);
    let whole = list(json!({})).await;
    let expected: Vec<(String, u64)> =
        [3, 2, 1, 0].map(|i| (second.clone(), i)).into_iter().chain([2, 1, 0].map(|i| (first.clone(), i))).collect();
    assert_eq!((entries(&whole), &whole["next_cursor"]), (expected.clone(), &Value::Null));
    let mut paged = Vec::new();
    let mut cursor = Value::Null;
    for _ in 0..4 {
        let page = list(json!({"limit": 2, "cursor": cursor})).await;
        paged.extend(entries(&page));
        cursor = page["next_cursor"].clone();
    }
    assert_eq!((paged, cursor), (expected, Value::Null));
    for (filter, count) in [
        (json!({"job": first}), 3),
        (json!({"code": "DOWNLOAD_TLS"}), 4),
        (json!({"code": "DOWNLOAD_TLS", "job": first}), 2),
        (json!({"host": "H"}), 7),
        (json!({"host": "h:80"}), 0),
        (json!({"tenant": "t"}), 7),
        (json!({"tenant": "other"}), 0),
        (json!({"since_ms": 1}), 7),
        (json!({"since_ms": u64::MAX / 2}), 0),
        (json!({"id": format!("{first}.1.0")}), 1),
        (json!({"id": format!("{first}.4.0")}), 0),
    ] {
        assert_eq!(entries(&list(json!({"filter": filter})).await).len(), count, "{filter}");
    }
    for filter in [json!({"job": new_id()}), json!({"job": first, "tenant": "other"}), json!({"id": "x"}), json!({"job": "x"})] {
        assert_eq!(code(try_ask(&all, "dlq", json!({"filter": filter})).await.unwrap_err()), "NOT_FOUND", "{filter}");
    }
    for bad in [json!({"filter": {"jobs": "x"}}), json!({"cursor": "!!"})] {
        assert_eq!(code(try_ask(&all, "dlq", bad.clone()).await.unwrap_err()), "INVALID_PAYLOAD", "{bad}");
    }
    let groups = |by: &str| ask(&all, "dlq_groups", json!({"by": by, "limit": 1}));
    let by_code = groups("code").await;
    assert_eq!(
        (&by_code["groups"][0]["code"], &by_code["groups"][0]["count"], &by_code["others"]),
        (&json!("DOWNLOAD_TLS"), &json!(4), &json!(3))
    );
    let by_job = groups("job").await;
    assert_eq!((&by_job["groups"][0]["job"], &by_job["total"]), (&json!(second), &json!(7)));
    assert_eq!(groups("host").await["groups"][0]["host"], "h");

    let entry = &entries(&list(json!({"filter": {"job": first}})).await)[0];
    let story = ask(&all, "dlq_show", json!({"id": format!("{}.{}.0", entry.0, entry.1)})).await;
    assert_eq!(
        (&story["resource_id"], &story["task"]["url"], &story["state"]),
        (&json!("r2"), &json!("http://h/2?sig=REDACTED"), &json!("dead"))
    );
    assert_eq!((story["history"].as_array().unwrap().len(), &story["history"][0]["state"]), (1, &json!("failed")));
    assert!(!story.to_string().contains("secret"), "{story}");
    running.stop().await;
    let running = Running::start(config(dir.path()));
    let all = running.client("all", Role::Operator).await;
    assert_eq!(ask(&all, "dlq", json!({})).await, whole);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_makes_failed_ones_pending_once_with_changed_tasks_of_the_next_generation() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(config(dir.path()));
    let all = running.client("all", Role::Operator).await;
    let id = job_with_letters(&all, 3, 2).await;
    let before = job(&all, &id).await;
    assert_eq!((&before["status"], &before["resource_failed"]), (&json!("partial"), &json!(2)));
    let order = json!({"filter": {"job": id}, "headers": {"X-New": "1"}, "proxy_pool": "fast", "url_replace": {"http://h/": "https://new.example/"}});
    let mut dry = order.clone();
    dry["dry_run"] = json!(true);
    assert_eq!(ask(&all, "dlq_replay", dry).await["count"], 2);
    assert_eq!(job(&all, &id).await, before);
    assert_eq!(ask(&all, "dlq_replay", order.clone()).await["count"], 2);
    // Asked again it finds nothing more to do.
    assert_eq!(ask(&all, "dlq_replay", order).await["count"], 0);
    let now = job(&all, &id).await;
    assert_eq!(
        (
            &now["status"],
            &now["resource_pending"],
            &now["resource_failed"],
            &now["resource_completed"],
            &now["finished_at"],
            &now["last_error"]
        ),
        (&json!("in_progress"), &json!(2), &json!(0), &json!(1), &Value::Null, &Value::Null)
    );
    assert_eq!(entries(&ask(&all, "dlq", json!({})).await), []);
    let replayed = ask(&all, "dlq", json!({"replayed": true})).await;
    assert_eq!(entries(&replayed).len(), 2);
    assert!(replayed["entries"][0]["replayed_at"].is_string());

    // Old deliveries are settled, the new ones are not.
    let settled = &all.settled(vec![id.clone()]).await.unwrap()[0];
    assert!(settled.covers(0, 0) && settled.covers(1, 0) && !settled.covers(0, 1) && !settled.covers(1, 1) && settled.covers(2, 0));
    let new: Vec<DownloadTask> = tasks(&all).await.into_iter().filter(|task| task.generation == 1).collect();
    let urls: BTreeSet<&str> = new.iter().map(|task| task.url.as_str()).collect();
    assert_eq!(urls, BTreeSet::from(["https://new.example/0?sig=secret", "https://new.example/1?sig=secret"]));
    for task in &new {
        assert_eq!((task.attempt, task.headers[0].name.as_str(), task.job_id.as_str()), (0, "x-new", id.as_str()));
        assert_eq!(task.proxy_hint.as_ref().unwrap().primary_pool, "fast");
    }
    let pending = ask(&all, "resources", json!({"job_id": id, "state": "pending"})).await;
    assert_eq!(pending["resources"][0]["url"], "https://new.example/0?sig=REDACTED");
    assert_eq!(pending["resources"][0]["generation"], 1);

    // What comes late from the older generation changes nothing.
    let late = |state| status(&id, vec![outcome(0, state, "late"), outcome(1, state, "late")]);
    report(&all, vec![late(ResourceState::Stored), late(ResourceState::Failed)]).await;
    assert_eq!(job(&all, &id).await, now);
    let current =
        |index, sha: &str| fetchbox_model::message::ResourceOutcome { generation: 1, ..outcome(index, ResourceState::Stored, sha) };
    report(&all, vec![status(&id, vec![current(0, "n"), current(1, "n")])]).await;
    let done = job(&all, &id).await;
    assert_eq!((&done["status"], &done["resource_completed"], &done["bytes_stored"]), (&json!("completed"), &json!(3), &json!(30)));
    // And over the new object it describes what is there now.
    report(&all, vec![late(ResourceState::Stored)]).await;
    let described = job(&all, &id).await;
    assert_eq!(described, done);
    let first = &ask(&all, "resources", json!({"job_id": id})).await["resources"][0];
    assert_eq!((first["sha256"].as_str().unwrap(), &first["generation"]), ("6c617465", &json!(1)));
    let story = ask(&all, "dlq_show", json!({"id": format!("{id}.0.0")})).await;
    assert_eq!(story["state"], "replayed");
    let logs = ask(&all, "logs", json!({"job_id": id})).await;
    let messages: Vec<_> = logs["logs"].as_array().unwrap().iter().map(|l| l["message"].as_str().unwrap()).collect();
    assert_eq!(messages, ["accepted", "settled", "replayed", "settled"]);
    let text = running.hub().metrics_text();
    assert!(
        text.contains("\nfetchbox_resources_settled_total{state=\"failed\"} 2\n")
            && text.contains("\nfetchbox_resources_replayed_total 2\n")
    );
    running.stop().await;
    let running = Running::start(config(dir.path()));
    let all = running.client("all", Role::Operator).await;
    assert_eq!(job(&all, &id).await, done);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_replayed_is_refused_or_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(config(dir.path()));
    let all = running.client("all", Role::Operator).await;
    let id = new_id();
    all.accept(accept_request(&id, 3, None)).await.unwrap();
    report(&all, vec![status(&id, vec![failed(&id, 0, 0, "DOWNLOAD_TLS")])]).await;
    all.cancel(CancelRequest { job_id: id.clone(), tenant: None }).await.unwrap();
    let before = job(&all, &id).await;
    for filter in [json!({"job": id}), json!({"id": format!("{id}.0.0")})] {
        assert_eq!(code(try_ask(&all, "dlq_replay", json!({"filter": filter})).await.unwrap_err()), "JOB_CANCELLED");
    }
    // An outcome without its task, and a good one.
    let bare = new_id();
    all.accept(accept_request(&bare, 1, None)).await.unwrap();
    report(&all, vec![status(&bare, vec![outcome(0, ResourceState::Failed, "")])]).await;
    let good = job_with_letters(&all, 1, 1).await;
    for bad in [
        json!({"url_replace": {"http://h/": "http://user:pw@h/"}}),
        json!({"url_replace": {"http://h/": "file:///"}}),
        json!({"url_replace": [["", "x"]]}),
        json!({"headers": {"Host": "x"}}),
        json!({"headers": {"a": "b\r\nc: d"}}),
        json!({"filter": {"jobs": good}}),
        json!({"cursor": "!!"}),
    ] {
        let mut order = json!({"filter": {}});
        order.as_object_mut().unwrap().extend(bad.as_object().unwrap().clone());
        let error = try_ask(&all, "dlq_replay", order).await.unwrap_err();
        assert_eq!(code(error), "INVALID_PAYLOAD", "{bad}");
    }
    assert_eq!(job(&all, &good).await["resource_pending"], 0);
    let done = ask(&all, "dlq_replay", json!({"filter": {}})).await;
    assert_eq!((&done["count"], &done["refused"]), (&json!(1), &json!(2)));
    assert_eq!((job(&all, &id).await, &job(&all, &good).await["resource_pending"]), (before, &json!(1)));
    let worker = running.client("worker", Role::Worker).await;
    for order in ["dlq_replay", "dlq_purge"] {
        assert_eq!(code(try_ask(&worker, order, json!({"filter": {}})).await.unwrap_err()), "FORBIDDEN");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_covers_what_was_dead_when_it_began() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(config(dir.path()));
    let all = running.client("all", Role::Operator).await;
    let id = job_with_letters(&all, 1, 1).await;
    let until = ask(&all, "dlq_replay", json!({"filter": {}, "dry_run": true})).await["until"].clone();
    let later = job_with_letters(&all, 1, 1).await;
    assert_eq!(ask(&all, "dlq_replay", json!({"filter": {}, "until": until})).await["count"], 1);
    report(&all, vec![status(&id, vec![failed(&id, 0, 1, "DOWNLOAD_TLS")])]).await;
    // It failed again: a new entry, which the same order does not take.
    assert_eq!(ask(&all, "dlq_replay", json!({"filter": {}, "until": until})).await["count"], 0);
    assert_eq!(entries(&ask(&all, "dlq", json!({})).await), [(id.clone(), 0), (later, 0)]);
    assert_eq!(ask(&all, "dlq_replay", json!({"filter": {}})).await["count"], 2);
    assert_eq!(ask(&all, "dlq_show", json!({"id": format!("{id}.0.1")})).await["history"].as_array().unwrap().len(), 2);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_forgets_entries_and_leaves_counts() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(config(dir.path()));
    let all = running.client("all", Role::Operator).await;
    let (one, other) = (job_with_letters(&all, 2, 2).await, job_with_letters(&all, 2, 1).await);
    ask(&all, "dlq_replay", json!({"filter": {"id": format!("{one}.1.0")}})).await;
    let before = job(&all, &one).await;
    assert_eq!(ask(&all, "dlq_purge", json!({"filter": {"job": one}, "dry_run": true})).await["count"], 1);
    assert_eq!(ask(&all, "dlq_purge", json!({"filter": {"job": one}})).await["count"], 1);
    assert_eq!(ask(&all, "dlq_purge", json!({"filter": {"job": one}})).await["count"], 0);
    assert_eq!(entries(&ask(&all, "dlq", json!({})).await), [(other.clone(), 0)]);
    assert_eq!(entries(&ask(&all, "dlq", json!({"replayed": true})).await), []);
    assert_eq!(job(&all, &one).await, before);
    assert_eq!(ask(&all, "dlq_replay", json!({"filter": {"job": one}})).await["count"], 0);
    assert_eq!(code(try_ask(&all, "dlq_show", json!({"id": format!("{one}.0.0")})).await.unwrap_err()), "NOT_FOUND");
    assert_eq!(ask(&all, "dlq_purge", json!({"filter": {}})).await["count"], 1);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn racing_replays_cancels_and_purges_move_each_entry_once() {
    const JOBS: usize = 12;
    const EACH: u32 = 130;
    let dir = tempfile::tempdir().unwrap();
    let mut settings = config(dir.path());
    settings.durability = Durability::Buffer;
    let running = Running::start(settings);
    let all = running.client("all", Role::Operator).await;
    let mut jobs = Vec::new();
    for _ in 0..JOBS {
        jobs.push(job_with_letters(&all, EACH, EACH).await);
    }
    let replays = (0..6).map(|_| {
        let all = all.clone();
        tokio::spawn(async move { ask(&all, "dlq_replay", json!({"filter": {}})).await["count"].as_u64().unwrap() })
    });
    let purge = tokio::spawn({
        let (all, job) = (all.clone(), jobs[JOBS - 1].clone());
        async move { ask(&all, "dlq_purge", json!({"filter": {"job": job}})).await["count"].as_u64().unwrap() }
    });
    let cancel = tokio::spawn({
        let (all, job) = (all.clone(), jobs[0].clone());
        async move { all.cancel(CancelRequest { job_id: job, tenant: None }).await.unwrap() }
    });
    let replays: Vec<_> = replays.collect();
    let mut replayed = 0;
    for replay in replays {
        replayed += replay.await.unwrap();
    }
    let purged = purge.await.unwrap();
    cancel.await.unwrap();
    let new: Vec<DownloadTask> = tasks(&all).await.into_iter().filter(|task| task.generation > 0).collect();
    let distinct: BTreeSet<(&str, u32, u32)> = new.iter().map(|t| (t.job_id.as_str(), t.resource_index, t.generation)).collect();
    assert_eq!((new.len() as u64, distinct.len() as u64), (replayed, replayed));
    let mut sums = [0, 0, 0];
    for id in &jobs {
        let now = job(&all, id).await;
        let counts = ["pending", "failed", "cancelled"].map(|name| now[format!("resource_{name}")].as_u64().unwrap());
        assert_eq!(counts.iter().sum::<u64>(), u64::from(EACH));
        counts.iter().zip(&mut sums).for_each(|(count, sum)| *sum += count);
    }
    // A replay of the cancelled job that was under way may have left some of it as it was.
    assert_eq!((sums[0] + sums[2], sums[1]), (replayed, JOBS as u64 * u64::from(EACH) - replayed));
    let left = entries(&ask(&all, "dlq", json!({"limit": 1000})).await);
    assert!(left.iter().all(|(job, _)| *job == jobs[0]), "{left:?}");
    assert_eq!(left.len() as u64, sums[1] - purged);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_partition_follows_the_changed_url() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(config(dir.path()));
    let all = running.client("all", Role::Operator).await;
    let expected = partition_of("new.example", 8);
    let written = async || {
        let topics = ask(&all, "topics", json!({})).await;
        let tasks = topics["topics"].as_array().unwrap().iter().find(|topic| topic["topic"] == "jobs.tasks").unwrap().clone();
        tasks["partitions"][expected as usize]["next"].as_u64().unwrap()
    };
    let id = job_with_letters(&all, 1, 1).await;
    let before = written().await;
    let order = json!({"filter": {"job": id}, "partition_by": "host", "url_replace": {"h/": "new.example/"}});
    assert_eq!(ask(&all, "dlq_replay", order).await["count"], 1);
    assert_eq!(written().await, before + 1);
    running.stop().await;
}
