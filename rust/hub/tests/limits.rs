//! Limits of tenants: jobs, resources, bytes of a day.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::*;
use fetchbox_hub::*;
use fetchbox_model::message::ResourceState;

const DAY_MS: u64 = 86_400_000;

/// A clock that stands still until it is set.
struct Stopped(AtomicU64);

impl Clock for Stopped {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.now_ms())
    }
}

fn of(tenant: &str, resources: u32, limits: impl FnOnce(&mut JobFacts)) -> AcceptRequest {
    let mut request = accept_request(&new_id(), resources, None);
    request.facts.tenant = tenant.into();
    limits(&mut request.facts);
    request
}

fn refused<T: std::fmt::Debug>(result: Result<T, HubError>) -> (String, u64) {
    match result.unwrap_err() {
        HubError::Refused { code, retry_after_ms, .. } => (code, retry_after_ms.unwrap()),
        other => panic!("{other:?} is no refusal"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn resources_are_counted_where_they_are_known_and_once() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(config(dir.path()));
    let api = running.client("api", Role::Api).await;
    let limit = Some(RateLimit { per_second: 0.01, burst: 5 });
    let limited = |tenant: &str, resources: u32| of(tenant, resources, |facts| facts.resource_limit = limit);
    assert!(api.accept(limited("a", 3)).await.unwrap().created);
    let (code, wait) = refused(api.accept(limited("a", 3)).await);
    assert!(code == "RATE_LIMITED_RESOURCES" && (90_000..=100_000).contains(&wait), "{code} {wait}");
    assert!(api.accept(limited("a", 2)).await.unwrap().created, "a refusal takes nothing");
    assert!(api.accept(limited("b", 5)).await.unwrap().created);
    // A reservation takes them when it says how many, and its accept takes none.
    let id = new_id();
    let reserve = ReserveRequest {
        tenant: "c".into(),
        job_type: "default".into(),
        key: "k".into(),
        body_sha256: "body".into(),
        job_id: id.clone(),
        resource_limit: limit,
        resources: 4,
        ..Default::default()
    };
    assert!(!api.reserve(reserve.clone()).await.unwrap().accepted);
    let other = ReserveRequest { key: "other".into(), job_id: new_id(), ..reserve };
    assert_eq!(refused(api.reserve(other).await).0, "RATE_LIMITED_RESOURCES");
    let mut accept = accept_request(&id, 4, Some("k"));
    accept.facts.tenant = "c".into();
    assert!(api.accept(accept).await.unwrap().created);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bytes_of_a_day_outlive_a_restart_and_end_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(Stopped(AtomicU64::new(20_000 * DAY_MS + 1000)));
    let limited = |tenant: &str| of(tenant, 3, |facts| facts.daily_bytes = 25);
    let running = Running::start_with(config(dir.path()), clock.clone());
    let (api, worker) = (running.client("api", Role::Api).await, running.client("worker", Role::Worker).await);
    let first = limited("a");
    let id = first.facts.job_id.clone();
    assert!(api.accept(first).await.unwrap().created);
    let outcomes = |indexes: std::ops::Range<u32>| vec![status(&id, indexes.map(|n| outcome(n, ResourceState::Stored, "x")).collect())];
    report(&worker, outcomes(0..2)).await;
    assert!(api.accept(limited("a")).await.unwrap().created, "20 bytes of 25");
    // The same again counts nothing.
    report(&worker, outcomes(0..2)).await;
    assert!(api.accept(limited("a")).await.unwrap().created);
    report(&worker, outcomes(2..3)).await;
    assert_eq!(refused(api.accept(limited("a")).await), ("RATE_LIMITED_BYTES".to_owned(), DAY_MS - 1000));
    assert!(api.accept(limited("b")).await.unwrap().created);
    assert!(api.accept(of("a", 3, |_| {})).await.unwrap().created, "no limit any more");
    running.stop().await;

    let running = Running::start_with(config(dir.path()), clock.clone());
    let api = running.client("api", Role::Api).await;
    assert_eq!(refused(api.accept(limited("a")).await).0, "RATE_LIMITED_BYTES");
    // A clock that is set back by a day gives no day back, and a new day begins at nothing.
    clock.0.fetch_sub(DAY_MS, Ordering::Relaxed);
    assert_eq!(refused(api.accept(limited("a")).await).0, "RATE_LIMITED_BYTES");
    clock.0.fetch_add(2 * DAY_MS, Ordering::Relaxed);
    let next = limited("a");
    let id = next.facts.job_id.clone();
    assert!(api.accept(next).await.unwrap().created);
    let worker = running.client("worker", Role::Worker).await;
    report(&worker, vec![status(&id, (0..3).map(|n| outcome(n, ResourceState::Stored, "x")).collect())]).await;
    assert_eq!(refused(api.accept(limited("a")).await).0, "RATE_LIMITED_BYTES");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_token_holds_for_whoever_connects_next() {
    let dir = tempfile::tempdir().unwrap();
    let mut old = config(dir.path());
    old.token = Some("old".into());
    let running = Running::start(old.clone());
    let url = format!("unix://{}", running.socket.display());
    let options =
        |token: &str| ClientOptions { url: url.clone(), token: Some(token.into()), tls_ca: None, name: "api".into(), role: Role::Api };
    let before = HubClient::start(&tokio::runtime::Handle::current(), options("old"));
    before.wait_connected(LIMIT).await.unwrap();
    running.hub().reload(&HubConfig { token: Some("new".into()), ..old }).unwrap();
    assert!(before.accept(accept_request(&new_id(), 1, None)).await.unwrap().created, "whoever is there stays");
    let late = HubClient::start(&tokio::runtime::Handle::current(), options("old"));
    assert!(late.wait_connected(Duration::from_millis(500)).await.is_err());
    late.set_token(Some("new".into()));
    late.wait_connected(LIMIT).await.unwrap();
    running.stop().await;
}
