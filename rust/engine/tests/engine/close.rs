//! Cancelling and closing.

use std::time::{Duration, Instant};

use fetchbox_engine::FinishedKind;

use crate::support::origin::{Origin, Step, ok, send};
use crate::support::{Fetcher, assert_stored, outcome, task};

#[test]
fn cancel_drops_queued_and_running_tasks_of_one_job_only() {
    let hanging = Origin::always(vec![send("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nbegun"), Step::Hang]);
    let good = Origin::always(ok(b"x"));
    let mut fetcher = Fetcher::new(|_| {});
    for n in 0..50 {
        let mut task = task(&hanging.url("/"));
        (task.job_id, task.resource_id) = ("gone".into(), n.to_string());
        fetcher.submit(task);
    }
    assert_stored(&fetcher.get(&good.url("/")));
    fetcher.engine().cancel("gone");
    let finished = fetcher.drain(50);
    assert_eq!(finished.len(), 50);
    assert!(finished.iter().all(|item| matches!(item.result, FinishedKind::Dropped) && item.task.job_id == "gone"));
    let stats = fetcher.engine().stats();
    assert_eq!((stats.queued, stats.running, stats.memory_used), (0, 0, 0));
    assert_stored(&fetcher.get(&good.url("/")));
    assert_eq!(fetcher.files().len(), 1);
}

#[test]
fn begin_close_lets_running_downloads_end_and_drops_the_rest() {
    let origin = Origin::always([vec![Step::Pause(Duration::from_millis(300))], ok(b"slow")].concat());
    let mut fetcher = Fetcher::new(|config| {
        config.fetch.per_host_concurrency = 1;
    });
    for n in 0..10 {
        let mut task = task(&origin.url("/"));
        task.resource_id = n.to_string();
        fetcher.submit(task);
    }
    let until = Instant::now() + Duration::from_secs(10);
    while origin.requests().is_empty() {
        assert!(Instant::now() < until);
        std::thread::yield_now();
    }
    fetcher.engine().begin_close();
    let (dropped, mut others): (Vec<_>, Vec<_>) =
        fetcher.drain(10).into_iter().partition(|item| matches!(item.result, FinishedKind::Dropped));
    assert_eq!((dropped.len(), others.len()), (9, 1));
    assert_stored(&outcome(others.remove(0)));
    let late = fetcher.run(task(&origin.url("/")));
    assert!(matches!(late.result, FinishedKind::Dropped));
}

#[test]
fn close_ends_everything_in_time_and_leaves_no_file() {
    let origin = Origin::always(vec![
        Step::Send([b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n".to_vec(), vec![1; 3_000_000]].concat()),
        Step::Hang,
    ]);
    let mut fetcher = Fetcher::new(|_| {});
    for n in 0..4 {
        let mut task = task(&origin.url("/"));
        task.resource_id = n.to_string();
        fetcher.submit(task);
    }
    let until = Instant::now() + Duration::from_secs(10);
    while origin.requests().len() < 2 {
        assert!(Instant::now() < until);
        std::thread::yield_now();
    }
    let started = Instant::now();
    fetcher.engine.take().unwrap().close(Duration::from_secs(5));
    assert!(started.elapsed() < Duration::from_secs(3));
    assert!(fetcher.files().is_empty(), "{:?}", fetcher.files().keys());
}

#[test]
fn a_reload_holds_for_attempts_that_begin_after_it_also_of_tasks_that_wait() {
    let origin = Origin::always([vec![Step::Pause(Duration::from_millis(200))], ok(b"x")].concat());
    let with = |password: &str| {
        let auth = serde_json::json!({"auth": {"type": "basic", "username": "ann", "password": password}});
        serde_json::from_value::<fetchbox_engine::JobTypeConfig>(auth).unwrap()
    };
    let mut config = None;
    let mut fetcher = Fetcher::new(|own| {
        own.fetch.per_host_concurrency = 1;
        own.job_types.insert("guarded".into(), with("old"));
        config = Some(own.clone());
    });
    for n in 0..2 {
        let mut task = task(&origin.url("/"));
        (task.job_type, task.resource_id) = ("guarded".into(), n.to_string());
        fetcher.submit(task);
    }
    let until = Instant::now() + Duration::from_secs(10);
    while origin.requests().is_empty() {
        assert!(Instant::now() < until);
        std::thread::yield_now();
    }
    let mut changed = config.unwrap();
    changed.job_types.insert("guarded".into(), with("new"));
    fetcher.engine().reload(&changed).unwrap();
    fetcher.drain(2).into_iter().for_each(|finished| assert_stored(&outcome(finished)));
    let requests = origin.requests();
    // The origin of these tests tells requests in lower case.
    let sent =
        |password: &str| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, format!("ann:{password}")).to_ascii_lowercase();
    assert!(requests[0].contains(&sent("old")) && requests[1].contains(&sent("new")), "{requests:?}");
    // What cannot be used changes nothing.
    changed.proxy_pools.insert("p".into(), serde_json::from_value(serde_json::json!({"endpoints": ["nonsense"]})).unwrap());
    assert!(fetcher.engine().reload(&changed).is_err());
    assert_stored(&fetcher.get(&origin.url("/")));
}
