//! From accept to settled over a real socket.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use fetchbox_hub::*;
use fetchbox_model::batch;
use fetchbox_model::manifest::partition_of;
use fetchbox_model::message::{DownloadTask, JobStatus, ResourceState};
use fetchbox_model::stream::Topic;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_from_accepted_to_settled_and_is_the_same_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(config(dir.path()));
    let api = running.client("api", Role::Api).await;
    let worker = running.client("worker", Role::Worker).await;
    let id = new_id();
    let reply = api.accept(accept_request(&id, 3, None)).await.unwrap();
    assert!(reply.created && reply.job_id == id && reply.resource_count == 3);
    assert_eq!(job(&api, &id).await["status"], "queued");

    let assignment = worker.join(join("w")).await.unwrap();
    assert_eq!(assignment.partitions.len(), 8);
    let polled = worker.poll(poll("w", &assignment, 5000)).await.unwrap();
    let [delivered] = &polled.batches[..] else { panic!("{polled:?}") };
    let tasks = batch::decode::<DownloadTask>(&delivered.bytes).unwrap();
    assert_eq!((delivered.base_offset, delivered.count, tasks.len()), (0, 3, 3));

    let entries = vec![status(&id, vec![outcome(2, ResourceState::Stored, "a"), outcome(0, ResourceState::Failed, "")])];
    report(&worker, entries.clone()).await;
    let settled = worker.settled(vec![id.clone(), new_id()]).await.unwrap();
    assert!(settled[0].known && !settled[0].all && !settled[1].known);
    assert!(settled[0].covers(0, 0) && !settled[0].covers(1, 0) && settled[0].covers(2, 0));
    let now = job(&api, &id).await;
    assert_eq!(
        (&now["status"], &now["resource_pending"], &now["last_error"]["code"]),
        (&json!("in_progress"), &json!(1), &json!("DOWNLOAD_TIMEOUT"))
    );
    let page = ask(&api, "resources", json!({"job_id": id, "state": "pending"})).await;
    assert_eq!((&page["resources"][0]["id"], &page["resources"][0]["url"]), (&json!("r1"), &json!("http://h/1?sig=REDACTED")));

    // The same again, with the rest and the commit: what counted before counts no more.
    let commits = vec![Commit { topic: Topic::Tasks as u32, group: "workers".into(), partition: delivered.partition, offset: 3 }];
    let entries = [entries, vec![status(&id, vec![outcome(1, ResourceState::Stored, "b")])]].concat();
    let reply = worker.append(AppendRequest { member: "w".into(), entries, commits }).await.unwrap();
    assert_eq!(reply.offsets.len(), 2);
    let before = job(&api, &id).await;
    assert_eq!(
        (&before["status"], &before["resource_completed"], &before["resource_failed"], &before["bytes_stored"]),
        (&json!("partial"), &json!(2), &json!(1), &json!(20))
    );
    assert!(before["finished_at"].is_string());
    assert!(running.hub().metrics_text().contains("fetchbox_hub_outcomes_ignored_total{reason=\"duplicate\"} 2"));
    assert!(running.hub().metrics_text().contains("fetchbox_queue_lag{topic=\"jobs.tasks\",group=\"workers\"} 0"));

    let resources = ask(&api, "resources", json!({"job_id": id, "limit": 2})).await;
    let rest = ask(&api, "resources", json!({"job_id": id, "cursor": resources["next_cursor"]})).await;
    let states: Vec<_> = resources["resources"]
        .as_array()
        .unwrap()
        .iter()
        .chain(rest["resources"].as_array().unwrap())
        .map(|r| r["state"].clone())
        .collect();
    assert_eq!((states, &rest["next_cursor"]), (vec![json!("failed"), json!("stored"), json!("stored")], &json!(null)));

    let logs = ask(&api, "logs", json!({"job_id": id})).await;
    let messages: Vec<_> = logs["logs"].as_array().unwrap().iter().map(|l| l["message"].clone()).collect();
    assert_eq!((messages, &logs["end"]), (vec![json!("accepted"), json!("settled")], &json!(true)));
    let receipt = ask(&api, "receipt", json!({"job_id": id})).await;
    assert_eq!(receipt["conservation"]["settled"], 3);

    running.stop().await;
    let running = Running::start(config(dir.path()));
    let api = running.client("api", Role::Api).await;
    assert_eq!(job(&api, &id).await, before);
    assert_eq!(ask(&api, "receipt", json!({"job_id": id})).await, receipt);
    let worker = running.client("worker", Role::Worker).await;
    let assignment = worker.join(join("w2")).await.unwrap();
    assert!(assignment.partitions.iter().any(|p| p.committed == 3));
    assert!(worker.poll(poll("w2", &assignment, 0)).await.unwrap().batches.is_empty());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settling_writes_one_event() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(config(dir.path()));
    let all = running.client("all", Role::Operator).await;
    let id = new_id();
    all.accept(accept_request(&id, 1, None)).await.unwrap();
    for _ in 0..3 {
        report(&all, vec![status(&id, vec![outcome(0, ResourceState::Stored, "a")])]).await;
    }
    let events = JoinRequest { topic: Topic::Events as u32, group: "finalizers".into(), member: "f".into(), partitions: vec![] };
    let assignment = all.join(events).await.unwrap();
    let request = PollRequest { topic: Topic::Events as u32, group: "finalizers".into(), ..poll("f", &assignment, 1000) };
    let polled = all.poll(request).await.unwrap();
    let events: Vec<JobStatus> =
        polled.batches.iter().flat_map(|b| batch::decode::<JobStatus>(&b.bytes).unwrap()).map(Result::unwrap).collect();
    let [event] = &events[..] else { panic!("{events:?}") };
    assert_eq!((event.job_id.as_str(), event.resources_completed, polled.batches[0].partition), (id.as_str(), 1, partition_of(&id, 2)));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_duplicate_with_other_content_changes_the_description_and_no_count() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(config(dir.path()));
    let all = running.client("all", Role::Operator).await;
    let id = new_id();
    all.accept(accept_request(&id, 2, None)).await.unwrap();
    // In one commit and across commits.
    report(&all, vec![status(&id, vec![outcome(0, ResourceState::Stored, "a"), outcome(0, ResourceState::Stored, "b")])]).await;
    let first = |page: serde_json::Value| page["resources"][0]["sha256"].clone();
    assert_eq!(first(ask(&all, "resources", json!({"job_id": id})).await), "62");
    report(&all, vec![status(&id, vec![outcome(0, ResourceState::Stored, "c")])]).await;
    report(&all, vec![status(&id, vec![outcome(0, ResourceState::Failed, "")])]).await;
    assert_eq!(first(ask(&all, "resources", json!({"job_id": id})).await), "63");
    let now = job(&all, &id).await;
    assert_eq!((&now["resource_completed"], &now["resource_pending"], &now["bytes_stored"]), (&json!(1), &json!(1), &json!(10)));
    running.stop().await;
}

/// On one thread, where the connection is made and used, or has failed, before anybody could subscribe.
#[tokio::test]
async fn who_subscribes_from_the_start_hears_of_the_first_connection_and_of_the_first_failure() {
    let dir = tempfile::tempdir().unwrap();
    let start = || {
        let url = format!("unix://{}", dir.path().join("hub.sock").display());
        let options = ClientOptions { url, token: None, tls_ca: None, name: "all".into(), role: Role::Operator };
        HubClient::start_subscribed(&tokio::runtime::Handle::current(), options)
    };
    let (client, mut pushes, trouble) = start();
    let mut failed = client.trouble();
    tokio::time::timeout(LIMIT, failed.wait_for(|reason| reason.starts_with("cannot connect"))).await.unwrap().unwrap();
    assert!(trouble.has_changed().unwrap() && pushes.try_recv().is_err());
    client.close();

    let running = Running::start(config(dir.path()));
    let (client, mut pushes, _) = start();
    client.wait_connected(LIMIT).await.unwrap();
    ask(&client, "jobs", json!({})).await;
    assert_eq!(pushes.try_recv(), Ok(Push::Connected));
    assert!(pushes.try_recv().is_err());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_settles_what_is_pending_pushes_and_changes_a_settled_job_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(config(dir.path()));
    let all = running.client("all", Role::Operator).await;
    let mut pushes = all.subscribe();
    let id = new_id();
    all.accept(accept_request(&id, 3, None)).await.unwrap();
    report(&all, vec![status(&id, vec![outcome(1, ResourceState::Stored, "a")])]).await;
    let request = CancelRequest { job_id: id.clone(), tenant: Some("other".into()) };
    assert_eq!(code(all.cancel(request.clone()).await.unwrap_err()), "NOT_FOUND");
    let request = CancelRequest { tenant: Some("t".into()), ..request };
    let cancelled: serde_json::Value = serde_json::from_slice(&all.cancel(request.clone()).await.unwrap()).unwrap();
    assert_eq!(
        (&cancelled["status"], &cancelled["resource_cancelled"], &cancelled["resource_completed"]),
        (&json!("cancelled"), &json!(2), &json!(1))
    );
    let push = tokio::time::timeout(LIMIT, pushes.recv()).await.unwrap().unwrap();
    assert_eq!(push, Push::Cancelled { job_id: id.clone() });
    // A late outcome and a second cancel change nothing.
    report(&all, vec![status(&id, vec![outcome(0, ResourceState::Stored, "x")])]).await;
    let again: serde_json::Value = serde_json::from_slice(&all.cancel(request).await.unwrap()).unwrap();
    assert_eq!(again, cancelled);
    let page = ask(&all, "resources", json!({"job_id": id, "state": "cancelled"})).await;
    let ids: Vec<_> = page["resources"].as_array().unwrap().iter().map(|r| (r["id"].clone(), r["url"].clone())).collect();
    assert_eq!(ids, [(json!("r0"), json!("http://h/0?sig=REDACTED")), (json!("r2"), json!("http://h/2?sig=REDACTED"))]);
    assert!(all.settled(vec![id]).await.unwrap()[0].all);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_refused_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(config(dir.path()));
    let all = running.client("all", Role::Operator).await;
    let id = new_id();
    let invalid = |error: HubError| assert!(matches!(error, HubError::Invalid(_)), "{error:?}");
    let good = accept_request(&id, 2, None);
    let mut bad = good.clone();
    bad.facts.resource_count = 3;
    invalid(all.accept(bad).await.unwrap_err());
    let mut bad = good.clone();
    bad.tasks[0].partition = 8;
    invalid(all.accept(bad).await.unwrap_err());
    let mut bad = good.clone();
    bad.facts.job_id = "nonsense".into();
    invalid(all.accept(bad).await.unwrap_err());
    let mut bad = status(&id, vec![]);
    bad.count = 9;
    invalid(all.append(AppendRequest { entries: vec![status(&id, vec![]), bad], ..Default::default() }).await.unwrap_err());
    invalid(all.query("nonsense", bytes::Bytes::new()).await.unwrap_err());
    for (name, params) in [("jobs", r#"{"cursor":"!!"}"#), ("jobs", r#"{"status":"odd"}"#), ("jobs", "[")] {
        assert_eq!(code(all.query(name, params.into()).await.unwrap_err()), "INVALID_PAYLOAD", "{params}");
    }
    let topics = ask(&all, "topics", json!({})).await;
    assert!(topics["topics"].as_array().unwrap().iter().all(|topic| topic["messages"] == 0), "{topics}");
    let worker = running.client("worker", Role::Worker).await;
    assert_eq!(code(worker.accept(good).await.unwrap_err()), "FORBIDDEN");
    let tasks = Entry { topic: Topic::Tasks as u32, ..status(&id, vec![]) };
    assert_eq!(code(worker.append(AppendRequest { entries: vec![tasks], ..Default::default() }).await.unwrap_err()), "FORBIDDEN");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_listed_newest_first_by_every_filter_and_page() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(config(dir.path()));
    let all = running.client("all", Role::Operator).await;
    let mut ids = Vec::new();
    for i in 0..20u32 {
        let id = new_id();
        let mut request = accept_request(&id, 1, None);
        request.facts.created_ms += u64::from(i / 2);
        request.facts.tenant = if i % 3 == 0 { "a".into() } else { "b".into() };
        request.facts.crawl_id = if i == 7 { "c".into() } else { String::new() };
        all.accept(request).await.unwrap();
        if i % 4 == 0 {
            report(&all, vec![status(&id, vec![outcome(0, ResourceState::Stored, "a")])]).await;
        }
        ids.push((i, id));
    }
    ids.reverse();
    let listed = async |params: serde_json::Value| {
        let mut params = params;
        params["limit"] = json!(3);
        let mut found = Vec::new();
        loop {
            let page = ask(&all, "jobs", params.clone()).await;
            found.extend(page["jobs"].as_array().unwrap().iter().map(|job| job["job_id"].as_str().unwrap().to_owned()));
            if page["next_cursor"].is_null() {
                return found;
            }
            params["cursor"] = page["next_cursor"].clone();
        }
    };
    let expected = |keep: &dyn Fn(u32) -> bool| ids.iter().filter(|(i, _)| keep(*i)).map(|(_, id)| id.clone()).collect::<Vec<_>>();
    assert_eq!(listed(json!({})).await, expected(&|_| true));
    assert_eq!(listed(json!({"status": "completed"})).await, expected(&|i| i % 4 == 0));
    assert_eq!(listed(json!({"status": "queued"})).await, expected(&|i| i % 4 != 0));
    assert_eq!(listed(json!({"tenant": "a"})).await, expected(&|i| i % 3 == 0));
    assert_eq!(listed(json!({"tenant": "a", "status": "queued"})).await, expected(&|i| i % 3 == 0 && i % 4 != 0));
    assert_eq!(listed(json!({"crawl_id": "c"})).await, expected(&|i| i == 7));
    assert_eq!(listed(json!({"job_type": "default"})).await, expected(&|_| true));
    assert!(listed(json!({"tenant": "nobody"})).await.is_empty());
    running.stop().await;
}
