//! Idempotency keys: repeated, concurrent, conflicting, given up, left behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::Duration;

use common::*;
use fetchbox_hub::*;

fn request(job_id: &str, body: &str) -> ReserveRequest {
    ReserveRequest {
        tenant: "t".into(),
        job_type: "default".into(),
        key: "k".into(),
        body_sha256: body.into(),
        job_id: job_id.into(),
        ..Default::default()
    }
}

fn release(job_id: &str) -> ReleaseRequest {
    ReleaseRequest { tenant: "t".into(), job_type: "default".into(), key: "k".into(), job_id: job_id.into() }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_post_is_one_job_and_another_body_a_conflict() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(config(dir.path()));
    let api = running.client("api", Role::Api).await;
    let (a, b) = (new_id(), new_id());
    assert!(api.accept(accept_request(&a, 2, Some("k"))).await.unwrap().created);
    let again = api.accept(accept_request(&b, 2, Some("k"))).await.unwrap();
    assert!(!again.created && again.job_id == a && again.resource_count == 2);
    // Also when the same call is only repeated, with and without a key.
    assert!(!api.accept(accept_request(&a, 2, Some("k"))).await.unwrap().created);
    let c = new_id();
    assert!(api.accept(accept_request(&c, 1, None)).await.unwrap().created);
    assert!(!api.accept(accept_request(&c, 1, None)).await.unwrap().created);
    let mut other = accept_request(&b, 2, Some("k"));
    other.facts.reservation = Some(Reservation { key: "k".into(), body_sha256: "other".into() });
    let HubError::Refused { code, job_id, .. } = api.accept(other).await.unwrap_err() else { panic!() };
    assert_eq!((code.as_str(), job_id), ("IDEMPOTENCY_CONFLICT", Some(a.clone())));
    let reserved = api.reserve(request(&b, "body")).await.unwrap();
    assert!(reserved.accepted && reserved.job_id == a && reserved.resource_count == 2);
    assert_eq!(code_of(api.reserve(request(&b, "other")).await), "IDEMPOTENCY_CONFLICT");
    running.stop().await;
    let running = Running::start(config(dir.path()));
    let api = running.client("api", Role::Api).await;
    assert_eq!(api.accept(accept_request(&b, 2, Some("k"))).await.unwrap().job_id, a);
    running.stop().await;
}

fn code_of<T: std::fmt::Debug>(result: Result<T, HubError>) -> String {
    code(result.unwrap_err())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_posts_at_once_make_one_job() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(config(dir.path()));
    let api = running.client("api", Role::Api).await;
    let posts = (0..100).map(|_| {
        let api = api.clone();
        tokio::spawn(async move { api.accept(accept_request(&new_id(), 1, Some("k"))).await.unwrap() })
    });
    let mut replies = Vec::new();
    for post in posts.collect::<Vec<_>>() {
        replies.push(post.await.unwrap());
    }
    assert_eq!(replies.iter().filter(|reply| reply.created).count(), 1);
    assert!(replies.iter().all(|reply| reply.job_id == replies[0].job_id));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_reserve_waits_for_the_first_to_accept_release_or_die() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(config(dir.path()));
    let first = running.client("api 0", Role::Api).await;
    let second = running.client("api 1", Role::Api).await;
    let (a, b) = (new_id(), new_id());
    assert_eq!(first.reserve(request(&a, "body")).await.unwrap().job_id, a);
    let limited = ReserveRequest { wait_ms: 20, ..request(&b, "body") };
    assert_eq!(code_of(second.reserve(limited).await), "HUB_UNAVAILABLE");
    // Released: the waiter gets the key for its own job.
    let waiting = tokio::spawn({
        let (second, b) = (second.clone(), b.clone());
        async move { second.reserve(request(&b, "body")).await.unwrap() }
    });
    settle_in(&first).await;
    first.release(release(&a)).await.unwrap();
    assert_eq!(waiting.await.unwrap().job_id, b);
    // Its owner dies: the next takes the reservation over, with its id.
    let waiting = tokio::spawn({
        let (first, a) = (first.clone(), a.clone());
        async move { first.reserve(request(&a, "body")).await.unwrap() }
    });
    settle_in(&first).await;
    second.close();
    let taken = waiting.await.unwrap();
    assert!(taken.job_id == b && !taken.accepted);
    // Accepted: whoever waits is told.
    let third = running.client("api 2", Role::Api).await;
    let waiting = tokio::spawn(async move { third.reserve(request(&new_id(), "body")).await.unwrap() });
    settle_in(&first).await;
    assert!(first.accept(accept_request(&b, 1, Some("k"))).await.unwrap().created);
    let told = waiting.await.unwrap();
    assert!(told.accepted && told.job_id == b);
    // A release that comes too late changes nothing.
    first.release(release(&b)).await.unwrap();
    assert!(first.reserve(request(&a, "body")).await.unwrap().accepted);
    running.stop().await;
}

/// Gives a spawned request the time to arrive; whichever way it comes out, the answer must be the same.
async fn settle_in(client: &HubClient) {
    client.query("health", bytes::Bytes::new()).await.unwrap();
    tokio::task::yield_now().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rates_are_by_tenant_and_replays_are_free() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(config(dir.path()));
    let api = running.client("api", Role::Api).await;
    let limited = |key: Option<&str>, tenant: &str| {
        let mut request = accept_request(&new_id(), 1, key);
        request.facts.tenant = tenant.into();
        request.facts.rate_limit = Some(RateLimit { per_second: 0.01, burst: 2 });
        request
    };
    assert!(api.accept(limited(Some("k"), "a")).await.unwrap().created);
    assert!(api.accept(limited(None, "a")).await.unwrap().created);
    let HubError::Refused { code, retry_after_ms, .. } = api.accept(limited(None, "a")).await.unwrap_err() else { panic!() };
    assert!(code == "RATE_LIMITED" && retry_after_ms.is_some_and(|ms| ms > 50_000), "{retry_after_ms:?}");
    assert!(!api.accept(limited(Some("k"), "a")).await.unwrap().created);
    assert!(api.accept(limited(None, "b")).await.unwrap().created);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_tokens_are_refused_and_calls_without_a_hub_end_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut with_token = config(dir.path());
    with_token.token = Some("secret".into());
    let running = Running::start(with_token);
    let stranger = client(&running.socket, "stranger", Role::Api);
    let error = stranger.wait_connected(Duration::from_millis(500)).await.unwrap_err();
    assert!(error.to_string().contains("token"), "{error}");
    assert!(matches!(stranger.query("health", bytes::Bytes::new()).await, Err(HubError::Unavailable(_))));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_reconnects_to_a_hub_that_comes_back_and_what_was_under_way_ends() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(config(dir.path()));
    let worker = running.client("worker", Role::Worker).await;
    let mut pushes = worker.subscribe();
    let assignment = worker.join(join("w")).await.unwrap();
    let polling = tokio::spawn({
        let worker = worker.clone();
        async move { worker.poll(poll("w", &assignment, 60_000)).await }
    });
    settle_in(&worker).await;
    running.stop().await;
    assert!(matches!(polling.await.unwrap(), Err(HubError::Unavailable(_))));
    // The first connection may be told of after it is up.
    while pushes.recv().await.unwrap() != Push::Disconnected {}
    let running = Running::start(config(dir.path()));
    worker.wait_connected(LIMIT).await.unwrap();
    assert_eq!(pushes.recv().await.unwrap(), Push::Connected);
    let stranger = worker.poll(poll("w", &Assignment::default(), 0)).await;
    assert_eq!(code_of(stranger), "NOT_A_MEMBER");
    running.stop().await;
}

/// Time that a test moves.
#[derive(Default)]
struct HandClock(std::sync::atomic::AtomicU64);

impl Clock for HandClock {
    fn now_ms(&self) -> u64 {
        1_700_000_000_000 + self.0.load(std::sync::atomic::Ordering::Relaxed)
    }
    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.0.load(std::sync::atomic::Ordering::Relaxed))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_hangs_loses_its_reservation_after_two_minutes_and_one_job_comes_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let clock = std::sync::Arc::new(HandClock::default());
    let running = Running::start_with(config(dir.path()), clock.clone());
    let (first, second) = (running.client("api 0", Role::Api).await, running.client("api 1", Role::Api).await);
    let (a, b) = (new_id(), new_id());
    assert_eq!(first.reserve(request(&a, "body")).await.unwrap().job_id, a);
    let impatient = ReserveRequest { wait_ms: 20, ..request(&b, "body") };
    assert_eq!(code_of(second.reserve(impatient.clone()).await), "HUB_UNAVAILABLE");
    // The owner itself may ask again, after a lost answer: that is no second post.
    assert_eq!(first.reserve(request(&a, "body")).await.unwrap().job_id, a);
    clock.0.fetch_add(120_001, std::sync::atomic::Ordering::Relaxed);
    let taken = second.reserve(impatient).await.unwrap();
    assert!(taken.job_id == a && !taken.accepted);
    assert_eq!(code_of(second.reserve(request(&b, "other")).await), "IDEMPOTENCY_CONFLICT");
    // The first wakes up, and both go on: under the one id that both were given.
    let (one, two) = tokio::join!(first.accept(accept_request(&a, 2, Some("k"))), second.accept(accept_request(&a, 2, Some("k"))));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert!(one.job_id == a && two.job_id == a && one.created != two.created);
    assert_eq!(ask(&first, "jobs", serde_json::json!({})).await["jobs"].as_array().unwrap().len(), 1);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_outlives_the_hub_and_belongs_to_whoever_asks_next() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (new_id(), new_id());
    let running = Running::start(config(dir.path()));
    let api = running.client("api", Role::Api).await;
    assert_eq!(api.reserve(request(&a, "body")).await.unwrap().job_id, a);
    running.stop().await;
    let running = Running::start(config(dir.path()));
    let api = running.client("api", Role::Api).await;
    // Another body is refused although there is no job yet: the first may have gone on.
    assert_eq!(code_of(api.reserve(request(&b, "other")).await), "IDEMPOTENCY_CONFLICT");
    let taken = api.reserve(request(&b, "body")).await.unwrap();
    assert!(taken.job_id == a && !taken.accepted);
    assert!(api.accept(accept_request(&a, 1, Some("k"))).await.unwrap().created);
    // The post that reserved it first, with the hub that it reserved it from long gone.
    let late = api.accept(accept_request(&a, 1, Some("k"))).await.unwrap();
    assert!(!late.created && late.job_id == a);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_reservers_of_one_key_at_once_make_one_job_whatever_becomes_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(config(dir.path()));
    let watcher = running.client("watcher", Role::Api).await;
    let posts: Vec<_> = (0..40)
        .map(|number| {
            let client = client(&running.socket, &format!("api {number}"), Role::Api);
            tokio::spawn(async move {
                client.wait_connected(LIMIT).await.unwrap();
                let reserved = client.reserve(request(&new_id(), "body")).await.unwrap();
                if reserved.accepted {
                    return (reserved.job_id, false);
                }
                // One in two dies between its reservation and its accept.
                if number % 2 == 0 {
                    client.close();
                    return (reserved.job_id, false);
                }
                let accepted = client.accept(accept_request(&reserved.job_id, 1, Some("k"))).await.unwrap();
                (accepted.job_id, accepted.created)
            })
        })
        .collect();
    let mut answers = Vec::new();
    for post in posts {
        answers.push(post.await.unwrap());
    }
    assert_eq!(answers.iter().filter(|(_, created)| *created).count(), 1);
    assert!(answers.iter().all(|(id, _)| *id == answers[0].0), "{answers:?}");
    assert_eq!(ask(&watcher, "jobs", serde_json::json!({})).await["jobs"].as_array().unwrap().len(), 1);
    running.stop().await;
}
