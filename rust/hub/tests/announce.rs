//! Failed resources are told of as they fail, in the commit that counts them, where a manifest asks for it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use fetchbox_hub::*;
use fetchbox_model::batch;
use fetchbox_model::message::{JobState, JobStatus, ResourceState};
use fetchbox_model::stream::Topic;
use serde_json::json;

/// All events there are, by a member that has not read any.
async fn events(worker: &HubClient, member: &str) -> Vec<JobStatus> {
    let topic = Topic::Events as u32;
    let join = JoinRequest { topic, group: member.into(), member: member.into(), partitions: vec![] };
    let assignment = worker.join(join).await.unwrap();
    let request = PollRequest { topic, group: member.into(), ..poll(member, &assignment, 100) };
    let polled = worker.poll(request).await.unwrap();
    polled.batches.iter().flat_map(|batch| batch::decode::<JobStatus>(&batch.bytes).unwrap()).map(Result::unwrap).collect()
}

fn wanting(id: &str, events: &[&str]) -> AcceptRequest {
    let mut request = accept_request(id, 4, None);
    request.facts.callback_url = "http://receiver/".into();
    request.facts.callback_events = events.iter().map(|&event| event.into()).collect();
    request
}

async fn finished(client: &HubClient, id: &str, failures: bool) -> serde_json::Value {
    let answer = ask(client, "finished", json!({"job_ids": [id], "job_types": [], "failures": failures})).await;
    answer["jobs"].get(0).cloned().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_have_events_of_their_own_before_the_job_is_settled_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(config(dir.path()));
    let worker = running.client("worker", Role::Worker).await;
    let (id, quiet) = (new_id(), new_id());
    let api = running.client("api", Role::Api).await;
    api.accept(wanting(&id, &["job.settled", "resource.failed"])).await.unwrap();
    api.accept(wanting(&quiet, &["job.settled"])).await.unwrap();
    let mixed =
        |id: &str| vec![failed(id, 2, 0, "DOWNLOAD_TLS"), outcome(0, ResourceState::Stored, "a"), failed(id, 1, 0, "DOWNLOAD_HTTP_4XX")];
    for _ in 0..2 {
        // Repeated reports are told of once.
        report(&worker, vec![status(&id, mixed(&id)), status(&quiet, mixed(&quiet))]).await;
    }
    running.stop().await;

    let running = Running::start(config(dir.path()));
    let (api, worker) = (running.client("api", Role::Api).await, running.client("worker", Role::Worker).await);
    let [told] = &events(&worker, "first").await[..] else { panic!("one event was expected") };
    assert_eq!((&told.job_id, told.state()), (&id, JobState::InProgress));
    let named: Vec<_> = told.outcomes.iter().map(|o| (o.resource_index, o.generation, o.state(), o.code.as_str())).collect();
    assert_eq!(named, [(2, 0, ResourceState::Failed, "DOWNLOAD_TLS"), (1, 0, ResourceState::Failed, "DOWNLOAD_HTTP_4XX")]);
    let entry = finished(&worker, &id, true).await;
    assert_eq!((&entry["callback_url"], &entry["over"], &entry["untold"]), (&json!("http://receiver/"), &json!(false), &json!(false)));
    // Workers of before do not ask for what is not over.
    assert_eq!(finished(&worker, &id, false).await, json!(null));
    let page = ask(&worker, "resources", json!({"job_id": id, "state": "failed", "indexes": [0, 1, 3]})).await;
    assert_eq!((page["resources"].as_array().unwrap().len(), &page["resources"][0]["index"]), (1, &json!(1)));

    // The last one fails as well: its event stands before that of the settled job.
    report(&worker, vec![status(&id, vec![failed(&id, 3, 0, "DOWNLOAD_RESET")])]).await;
    let all = events(&worker, "second").await;
    assert_eq!(all.iter().map(|event| event.outcomes.len()).collect::<Vec<_>>(), [2, 1, 0]);
    assert_eq!(all[2].state(), JobState::Partial);
    assert_eq!(
        (&finished(&worker, &id, false).await["over"], &finished(&worker, &id, true).await["untold"]),
        (&json!(true), &json!(false))
    );

    // Put back to work, and failed again: another event, of the next generation.
    let order = json!({"filter": {"job": id, "code": "DOWNLOAD_RESET"}});
    assert_eq!(ask(&api, "dlq_replay", order).await["count"], json!(1));
    report(&worker, vec![status(&id, vec![failed(&id, 3, 1, "DOWNLOAD_RESET")])]).await;
    let all = events(&worker, "third").await;
    assert_eq!(all.iter().flat_map(|event| &event.outcomes).filter(|o| (o.resource_index, o.generation) == (3, 1)).count(), 1);
    assert_eq!(finished(&worker, &id, true).await["untold"], json!(false));
    running.stop().await;
}
