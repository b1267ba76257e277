//! Hosts side by side: dead ones slow only themselves, limits hold.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fetchbox_engine::FinishedKind;

use crate::support::origin::{Origin, Step, ok, send};
use crate::support::{Fetcher, assert_stored, outcome, task};

#[test]
fn a_dead_host_goes_back_to_the_caller_and_others_go_on() {
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let origin = Origin::always(ok(b"x"));
    let mut fetcher = Fetcher::new(|config| {
        config.fetch.max_attempts = 10;
        config.fetch.backoff_base = 0.0;
    });
    for n in 0..2000 {
        let mut task = task(&format!("http://{dead}/"));
        task.resource_id = format!("dead{n}");
        fetcher.submit(task);
    }
    let started = Instant::now();
    for n in 0..200 {
        let mut task = task(&origin.url("/"));
        task.resource_id = format!("good{n}");
        fetcher.submit(task);
    }
    let mut stored = 0;
    while stored < 200 {
        for finished in fetcher.drain(1) {
            if finished.task.resource_id.starts_with("good") {
                assert_stored(&outcome(finished));
                stored += 1;
            }
        }
    }
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    assert_eq!(fetcher.engine().stats().open_circuits, 1);
}

#[test]
fn a_task_that_is_not_due_for_long_is_handed_back_untried() {
    let origin = Origin::always(ok(b"x"));
    let mut fetcher = Fetcher::new(|_| {});
    let now = crate::origins::now_ms();
    let mut late = task(&origin.url("/"));
    late.not_before_ms = now + 100_000;
    let finished = fetcher.run(late);
    assert!(finished.attempts.is_empty());
    assert!(matches!(finished.result, FinishedKind::Later { not_before_ms, .. } if not_before_ms.abs_diff(now + 100_000) < 2_000));
    let mut soon = task(&origin.url("/"));
    soon.not_before_ms = crate::origins::now_ms() + 500;
    let started = Instant::now();
    assert_stored(&fetcher.outcome(soon));
    assert!(started.elapsed() >= Duration::from_millis(400));
}

#[test]
fn no_more_than_per_host_concurrency_at_once() {
    static RUNNING: AtomicUsize = AtomicUsize::new(0);
    let most = Arc::new(AtomicUsize::new(0));
    let seen = most.clone();
    let origin = Origin::new(move |_, _| {
        seen.fetch_max(RUNNING.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(30));
        RUNNING.fetch_sub(1, Ordering::SeqCst);
        ok(b"x")
    });
    let mut fetcher = Fetcher::new(|config| config.fetch.per_host_concurrency = 3);
    for n in 0..20 {
        let mut task = task(&origin.url("/"));
        task.resource_id = n.to_string();
        fetcher.submit(task);
    }
    fetcher.drain(20);
    assert_eq!(most.load(Ordering::SeqCst), 3);
}

#[test]
fn the_rate_per_host_holds() {
    let origin = Origin::always(ok(b"x"));
    let mut fetcher = Fetcher::new(|config| config.fetch.per_host_rate = 20.0);
    let started = Instant::now();
    for n in 0..11 {
        let mut task = task(&origin.url("/"));
        task.resource_id = n.to_string();
        fetcher.submit(task);
    }
    fetcher.drain(11);
    assert!(started.elapsed() >= Duration::from_millis(490), "{:?}", started.elapsed());
}

#[test]
fn stalled_origins_do_not_hold_up_others_beyond_their_slots() {
    let stalled = Origin::always(vec![Step::Hang]);
    let origin = Origin::always(ok(b"x"));
    let mut fetcher = Fetcher::new(|config| config.concurrency = 16);
    for n in 0..100 {
        let mut task = task(&stalled.url("/"));
        task.resource_id = format!("stalled{n}");
        fetcher.submit(task);
    }
    for n in 0..50 {
        let mut task = task(&origin.url("/"));
        task.resource_id = n.to_string();
        fetcher.submit(task);
    }
    let started = Instant::now();
    for finished in fetcher.drain(50) {
        assert_stored(&outcome(finished));
    }
    assert!(started.elapsed() < Duration::from_secs(3));
    fetcher.engine().cancel("job");
    let finished = fetcher.drain(100);
    assert!(finished.iter().all(|item| matches!(item.result, FinishedKind::Dropped)));
}

#[test]
fn signed_links_go_first_the_earliest_deadline_before_the_others() {
    let origin = Origin::new(|n, _| if n == 1 { [vec![Step::Pause(Duration::from_millis(300))], ok(b"x")].concat() } else { ok(b"x") });
    let other = Origin::always(ok(b"x"));
    let mut fetcher = Fetcher::new(|config| config.concurrency = 1);
    let now = crate::origins::now_ms();
    // A host that nobody knows would give the slot up while it is silent.
    assert_stored(&fetcher.outcome(task(&origin.url("/"))));
    let mut first = task(&origin.url("/"));
    first.resource_id = "holds the slot".into();
    fetcher.submit(first);
    for n in 0..10u64 {
        let mut plain = task(&other.url("/"));
        plain.resource_id = format!("plain {n}");
        fetcher.submit(plain);
        let mut signed = task(&origin.url("/"));
        signed.resource_id = format!("signed {n}");
        // The later it is submitted, the sooner it expires.
        signed.deadline_ms = now + 60_000 - n * 1000;
        fetcher.submit(signed);
    }
    let order: Vec<String> = fetcher.drain(21).into_iter().map(|finished| finished.task.resource_id).collect();
    assert_eq!(order[0], "holds the slot");
    let signed: Vec<&str> = order.iter().map(String::as_str).filter(|id| id.starts_with("signed")).collect();
    assert_eq!(signed, (0..10).rev().map(|n| format!("signed {n}")).collect::<Vec<_>>());
    // Others are not starved meanwhile, but most of the first dozen are signed.
    let early = order[1..=12].iter().filter(|id| id.starts_with("signed")).count();
    assert!(early >= 8, "{order:?}");
}

#[test]
fn what_waits_for_silent_hosts_is_handed_on_when_too_much_waits() {
    let silent = Origin::always(vec![Step::Hang]);
    let origin = Origin::always(ok(b"x"));
    let mut fetcher = Fetcher::new(|config| config.most_waiting = Some(100));
    for n in 0..500 {
        let mut task = task(&silent.url("/"));
        task.resource_id = format!("silent{n}");
        fetcher.submit(task);
    }
    let until = Instant::now() + Duration::from_secs(20);
    let mut handed_on = Vec::new();
    while handed_on.len() < 460 {
        assert!(Instant::now() < until, "{} were handed on", handed_on.len());
        // Whatever comes in makes the engine look at what waits.
        let good = task(&origin.url("/"));
        fetcher.submit(good);
        for finished in fetcher.drain(1) {
            if finished.task.resource_id.starts_with("silent") {
                handed_on.push(finished);
            } else {
                assert_stored(&outcome(finished));
            }
        }
    }
    let now = crate::origins::now_ms();
    let mut standing = 0;
    for finished in handed_on {
        assert!(finished.attempts.is_empty());
        let FinishedKind::Later { not_before_ms, .. } = finished.result else { panic!("it is not settled") };
        // Those that came before the host was known to be silent come back sooner.
        assert!(not_before_ms + 10_000 > now, "due {not_before_ms} at {now}");
        standing += u64::from(not_before_ms > now + 30_000);
    }
    assert!(standing >= 50, "{standing} were known to stand still");
    assert!(fetcher.engine().stats().queued <= 40);
}

/// One download at a time, 30 ms each; the 21st request is refused once.
#[test]
fn a_host_that_is_too_busy_is_asked_half_as_often() {
    let since = Instant::now();
    let times: Arc<Mutex<Vec<Duration>>> = Arc::default();
    let seen = times.clone();
    let origin = Origin::new(move |n, _| {
        seen.lock().unwrap().push(since.elapsed());
        let answer = if n == 20 { vec![send("HTTP/1.1 429 Slow down\r\nContent-Length: 0\r\n\r\n")] } else { ok(b"x") };
        [vec![Step::Pause(Duration::from_millis(30))], answer].concat()
    });
    let mut fetcher = Fetcher::new(|config| {
        config.fetch.per_host_concurrency = 1;
        config.fetch.max_attempts = 3;
        config.fetch.backoff_base = 0.001;
    });
    for number in 0..30 {
        fetcher.submit(task(&origin.url(&format!("/{number}"))));
    }
    fetcher.drain(30).into_iter().for_each(|finished| assert_stored(&outcome(finished)));
    let times = times.lock().unwrap();
    assert_eq!(times.len(), 31);
    let (before, after) = ((times[20] - times[0]) / 20, (times[30] - times[21]) / 9);
    assert!(after >= before * 8 / 5, "one every {before:?} before, one every {after:?} after");
}
