//! How the service stands, and the logs of many jobs at once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::*;
use fetchbox_hub::*;
use fetchbox_model::manifest::partition_of;
use fetchbox_model::message::ResourceState;
use serde_json::{Value, json};

/// Asks until the answer is as wanted, within seconds.
async fn until(client: &HubClient, name: &str, params: Value, wanted: impl Fn(&Value) -> bool) -> Value {
    for _ in 0..200 {
        let answer = ask(client, name, params.clone()).await;
        if wanted(&answer) {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{name} did not become as wanted: {}", ask(client, name, params).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workers_word_counts_while_it_is_connected() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(config(dir.path()));
    let api = running.client("api", Role::Api).await;
    let health = ask(&api, "health", json!({})).await;
    let components = &health["components"];
    assert_eq!((&components["workers"]["status"], &components["proxy_pools"]["status"]), (&json!("degraded"), &json!("ok")));
    assert!(components["hub"]["since"].is_string());

    let worker = running.client("worker", Role::Worker).await;
    worker.join(join("w")).await.unwrap();
    let state = json!({"member": "w", "host": "h1", "name": "worker 0", "running": 3, "held": 9, "pools_out": ["dc"]});
    worker.query("worker_state", Bytes::from(serde_json::to_vec(&state).unwrap())).await.unwrap();
    let red = ask(&api, "health", json!({})).await["components"]["proxy_pools"].clone();
    assert_eq!((&red["status"], &red["reason"]), (&json!("degraded"), &json!("no endpoint works of proxy pool dc")));
    // Nobody else may say it, and nobody but workers of themselves.
    assert!(api.query("worker_state", Bytes::from_static(b"{}")).await.is_err());
    assert!(worker.query("broker_queues", Bytes::from_static(b"{\"queues\": []}")).await.is_err());
    let overview = ask(&api, "overview", json!({})).await;
    let said = &overview["workers"][0];
    assert_eq!((&said["name"], &said["partitions"], &said["running"]), (&json!("worker 0"), &json!(8), &json!(3)));
    assert_eq!(overview["workers"].as_array().unwrap().len(), 1);
    // Asked again, it is so since the same moment.
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(ask(&api, "health", json!({})).await["components"]["proxy_pools"]["since"], red["since"]);

    worker.close();
    let green = until(&api, "health", json!({}), |health| health["components"]["proxy_pools"]["status"] == "ok").await;
    assert_ne!(green["components"]["proxy_pools"]["since"], red["since"]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_overview_counts_what_the_ledger_counts() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(config(dir.path()));
    let all = running.client("all", Role::Operator).await;
    let id = new_id();
    all.accept(accept_request(&id, 3, None)).await.unwrap();
    let waiting = ask(&all, "overview", json!({})).await;
    assert_eq!(
        (&waiting["resources"]["pending"], &waiting["active_jobs"], &waiting["queues"][0]["lag"]),
        (&json!(3), &json!(1), &json!(3))
    );
    report(&all, vec![status(&id, vec![outcome(0, ResourceState::Stored, "a"), outcome(1, ResourceState::Failed, "")])]).await;
    let now = ask(&all, "overview", json!({})).await;
    let resources = &now["resources"];
    assert_eq!((&resources["accepted"], &resources["pending"], &now["bytes_stored"]), (&json!(3), &json!(1), &json!(10)));
    assert_eq!((&resources["settled"]["stored"], &resources["settled"]["failed"]), (&json!(1), &json!(1)));
    assert_eq!(now["history"], Value::Null);
    let noted = until(&all, "overview", json!({"history": true}), |seen| seen["history"].as_array().unwrap().len() > 1).await;
    let last = noted["history"].as_array().unwrap().last().unwrap();
    assert_eq!((&last[1], &last[4], &last[6], &last[7]), (&json!(1), &json!(1), &json!(10), &json!(1)));
    running.stop().await;
}

/// Lines by job of an answer to `tail`, and whether they are the last.
fn told(answer: &Value, id: &str) -> (Vec<String>, bool) {
    let job = &answer["jobs"][id];
    let lines = job["logs"].as_array().map(|lines| lines.iter().map(|line| line["message"].as_str().unwrap().to_owned()).collect());
    (lines.unwrap_or_default(), job["end"] == true)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_logs_of_many_jobs_are_read_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(config(dir.path()));
    let all = running.client("all", Role::Operator).await;
    let ids: Vec<String> = (0..20).map(|_| new_id()).collect();
    let mut asked: std::collections::BTreeMap<String, (u64, Vec<String>)> = std::collections::BTreeMap::new();
    for id in &ids {
        all.accept(accept_request(id, 1, None)).await.unwrap();
        asked.entry(partition_of(id, 4).to_string()).or_default().1.push(id.clone());
    }
    let first = ask(&all, "tail", json!({ "partitions": asked })).await;
    for id in &ids {
        assert_eq!(told(&first, id), (vec!["accepted".to_owned()], false));
    }
    for (partition, (since, _)) in &mut asked {
        *since = first["next"][partition].as_u64().unwrap();
    }
    // Nothing was added: nothing is said, not even where to go on.
    assert_eq!(ask(&all, "tail", json!({ "partitions": asked })).await, json!({"jobs": {}, "next": {}}));
    report(&all, vec![status(&ids[3], vec![outcome(0, ResourceState::Stored, "a")])]).await;
    let second = ask(&all, "tail", json!({ "partitions": asked })).await;
    assert_eq!(told(&second, &ids[3]), (vec!["settled".to_owned()], true));
    assert_eq!(second["jobs"].as_object().unwrap().len(), 1);

    // Whoever comes later to a job that is settled, or is not there, is told so when everything is looked at.
    let partition = partition_of(&ids[3], 4).to_string();
    let next = second["next"][&partition].as_u64().unwrap();
    let strangers = json!({ "partitions": { partition: [next, [ids[3], "00000000-0000-7000-8000-000000000000"]] }, "all": true });
    let third = ask(&all, "tail", strangers).await;
    assert_eq!(told(&third, &ids[3]), (vec![], true));
    assert_eq!(third["jobs"]["00000000-0000-7000-8000-000000000000"]["gone"], true);
    running.stop().await;
}
