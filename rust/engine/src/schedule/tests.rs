use super::*;

const LIMITS: HostLimits = HostLimits { concurrency: 8, interval: Duration::ZERO, adaptive: false };

fn entry(host: &str, job: &str, task: u32) -> Entry<u32> {
    Entry { host: host.into(), job: job.into(), deadline_ms: 0, limits: LIMITS, since: Instant::now(), task }
}

fn start(scheduler: &mut Scheduler<u32>, now: Instant) -> Option<(HostId, u32)> {
    match scheduler.next(now) {
        Next::Start(id, entry) => Some((id, entry.task)),
        Next::GiveBack(..) | Next::Nothing => None,
    }
}

fn run(scheduler: &mut Scheduler<u32>, now: Instant, verdict: Verdict) -> Option<u32> {
    let (id, task) = start(scheduler, now)?;
    scheduler.finish(id, verdict, None, now);
    Some(task)
}

fn prove(scheduler: &mut Scheduler<u32>, host: &str, now: Instant) {
    scheduler.push(entry(host, "prove", 0), now);
    let (id, _) = start(scheduler, now).unwrap();
    scheduler.prove(id, now);
    // A queued task keeps the host known.
    scheduler.push(entry(host, "prove", 0), now);
    scheduler.finish(id, Verdict::Good, None, now);
    assert_eq!(start(scheduler, now), Some((id, 0)));
}

#[test]
fn hosts_take_turns_and_jobs_take_turns_within_a_host() {
    let now = Instant::now();
    let mut scheduler = Scheduler::new(64);
    for task in 0..100 {
        scheduler.push(entry("a", "big", task), now);
    }
    scheduler.push(entry("a", "small", 1000), now);
    scheduler.push(entry("b", "big", 2000), now);
    let order: Vec<u32> = (0..4).filter_map(|_| run(&mut scheduler, now, Verdict::Good)).collect();
    assert!(order.contains(&1000) && order.contains(&2000), "{order:?}");
}

#[test]
fn the_limits_per_host_and_in_all_hold() {
    let now = Instant::now();
    let mut scheduler = Scheduler::new(10);
    prove(&mut scheduler, "a", now);
    for task in 1..100 {
        scheduler.push(entry("a", "j", task), now);
        scheduler.push(entry("b", "j", task), now);
    }
    let started = std::iter::from_fn(|| start(&mut scheduler, now)).count();
    // "a" has its 8, one of them from proving it; "b" has not answered yet.
    assert_eq!((started, scheduler.running()), (7 + 2, 10));
}

#[test]
fn earlier_deadlines_go_first_but_do_not_starve_the_rest() {
    let now = Instant::now();
    let mut scheduler = Scheduler::new(64);
    for task in 0..20 {
        scheduler.push(Entry { deadline_ms: 1000 - u64::from(task), ..entry("signed", "j", task) }, now);
        scheduler.push(entry("plain", "j", 100 + task), now);
    }
    let order: Vec<u32> = (0..20).filter_map(|_| run(&mut scheduler, now, Verdict::Good)).collect();
    let signed: Vec<u32> = order.iter().copied().filter(|task| *task < 100).collect();
    assert!(signed.is_sorted_by(|a, b| a > b), "{signed:?}");
    let plain = order.iter().filter(|task| **task >= 100).count();
    assert!((2..=8).contains(&plain), "{order:?}");
}

#[test]
fn the_rate_spaces_starts() {
    let mut now = Instant::now();
    let mut scheduler = Scheduler::new(64);
    let limits = HostLimits { concurrency: 8, interval: Duration::from_millis(50), ..LIMITS };
    for task in 0..3 {
        scheduler.push(Entry { limits, ..entry("a", "j", task) }, now);
    }
    for task in 0..3 {
        assert_eq!(run(&mut scheduler, now, Verdict::Good), Some(task));
        assert_eq!(run(&mut scheduler, now, Verdict::Good), None);
        let wake = scheduler.next_wake().unwrap();
        assert_eq!(wake - now, Duration::from_millis(50));
        now = wake;
    }
}

#[test]
fn a_rate_finer_than_the_timer_is_reached_and_a_delay_is_not_made_up_for_without_end() {
    let mut now = Instant::now();
    let mut scheduler = Scheduler::new(64);
    let limits = HostLimits { concurrency: 8, interval: Duration::from_micros(200), ..LIMITS };
    for task in 0..1000 {
        scheduler.push(Entry { limits, ..entry("a", "j", task) }, now);
    }
    let mut started = 0;
    for _ in 0..100 {
        started += std::iter::from_fn(|| run(&mut scheduler, now, Verdict::Good)).count();
        now += Duration::from_millis(1);
    }
    assert!((495..=505).contains(&started), "{started} in 100 ms at 5,000 a second");
    now += Duration::from_secs(1);
    let burst = std::iter::from_fn(|| run(&mut scheduler, now, Verdict::Good)).count();
    assert!(burst <= 11, "{burst} at once after a pause");
}

#[test]
fn delayed_tasks_wait_without_a_slot() {
    let now = Instant::now();
    let mut scheduler = Scheduler::new(1);
    scheduler.push_at(entry("a", "j", 1), now + Duration::from_secs(5));
    scheduler.push(entry("a", "j", 2), now);
    assert_eq!(run(&mut scheduler, now, Verdict::Good), Some(2));
    assert_eq!(run(&mut scheduler, now, Verdict::Good), None);
    assert_eq!((scheduler.queued(), scheduler.next_wake()), (1, Some(now + Duration::from_secs(5))));
    assert_eq!(run(&mut scheduler, now + Duration::from_secs(5), Verdict::Good), Some(1));
}

#[test]
fn an_open_circuit_waits_or_gives_back() {
    let mut now = Instant::now();
    let mut scheduler = Scheduler::new(64);
    for task in 0..50 {
        scheduler.push(entry("dead", "j", task), now);
    }
    // 5 failures rest 5 s, then one probe each for 10 and 20 s: the latter is too long to wait.
    for _ in 0..5 {
        assert!(run(&mut scheduler, now, Verdict::Down).is_some());
    }
    for rest in [5, 10] {
        assert!(start(&mut scheduler, now).is_none());
        let wake = scheduler.next_wake().unwrap();
        assert_eq!((wake - now).as_secs(), rest);
        now = wake;
        let (id, _) = start(&mut scheduler, now).unwrap();
        assert!(start(&mut scheduler, now).is_none(), "a second probe");
        scheduler.finish(id, Verdict::Down, None, now);
    }
    let mut given_back = 0;
    while let Next::GiveBack(_, until) = scheduler.next(now) {
        assert_eq!((until - now).as_secs(), 20);
        given_back += 1;
    }
    assert_eq!((given_back, scheduler.queued()), (43, 0));
    // The circuit is remembered for tasks that come later, and forgotten in the end.
    scheduler.push(entry("dead", "j", 99), now);
    assert!(matches!(scheduler.next(now), Next::GiveBack(..)));
    assert!(matches!(scheduler.next(now + Duration::from_secs(1000)), Next::Nothing));
    assert_eq!(scheduler.host_counts(now).0, 0);
}

#[test]
fn failing_hosts_share_an_eighth_of_the_slots() {
    let now = Instant::now();
    let mut scheduler = Scheduler::new(64);
    for host in 0..100 {
        for task in 0..10 {
            scheduler.push(entry(&format!("dead{host}"), "j", task), now);
        }
    }
    let first: Vec<_> = std::iter::from_fn(|| start(&mut scheduler, now)).collect();
    assert_eq!(first.len(), 64);
    for (id, _) in first {
        scheduler.finish(id, Verdict::Down, None, now);
    }
    // The hosts that were not tried yet are not suspect.
    let later: Vec<_> = std::iter::from_fn(|| start(&mut scheduler, now)).collect();
    assert_eq!(scheduler.suspects_running, 8, "of {}", later.len());
    for (id, _) in later {
        scheduler.finish(id, Verdict::Good, None, now);
    }
    assert_eq!(scheduler.suspects_running, 0);
    while run(&mut scheduler, now, Verdict::Good).is_some() {}
    assert_eq!((scheduler.queued(), scheduler.running()), (0, 0));
}

#[test]
fn a_cancelled_jobs_tasks_come_out_and_the_rest_stays() {
    let now = Instant::now();
    let mut scheduler = Scheduler::new(64);
    scheduler.push(entry("a", "gone", 1), now);
    scheduler.push(Entry { deadline_ms: 5, ..entry("b", "gone", 2) }, now);
    scheduler.push_at(entry("c", "gone", 3), now + Duration::from_secs(1));
    scheduler.push(entry("a", "kept", 4), now);
    let mut removed = scheduler.remove_job("gone", now);
    removed.sort_unstable();
    assert_eq!((removed, scheduler.queued()), (vec![1, 2, 3], 1));
    assert_eq!(run(&mut scheduler, now, Verdict::Good), Some(4));
    assert_eq!(scheduler.host_counts(now).0, 0);
}

#[test]
fn a_hundred_thousand_tasks_of_a_dead_host_cost_the_others_nothing() {
    let now = Instant::now();
    let mut scheduler = Scheduler::new(64);
    for task in 0..100_000 {
        scheduler.push(entry("dead", "j", task), now);
    }
    let mut held = Vec::new();
    for task in 0..1000 {
        scheduler.push(entry("good", "j", 1_000_000 + task), now);
    }
    let mut good = 0;
    for _ in 0..1010 {
        match start(&mut scheduler, now) {
            Some((id, task)) if task >= 1_000_000 => {
                good += 1;
                scheduler.finish(id, Verdict::Good, None, now);
            }
            Some(slot) => held.push(slot),
            None => break,
        }
    }
    assert_eq!((good, held.len()), (1000, 2), "an unproven host holds two slots while it hangs");
}

#[test]
fn chosen_tasks_are_taken_out_wherever_they_wait() {
    let now = Instant::now();
    let mut scheduler = Scheduler::new(1);
    for task in 0..8 {
        scheduler.push(entry("a", if task < 4 { "one" } else { "two" }, task), now);
        scheduler.push(Entry { deadline_ms: 1000 + u64::from(task), ..entry("b", "j", 10 + task) }, now);
        scheduler.push_at(entry("c", "j", 20 + task), now + Duration::from_secs(1));
    }
    let mut gone = scheduler.remove_where(|task| task % 2 == 0 || (4..8).contains(task), now);
    gone.sort_unstable();
    assert_eq!(gone, [0, 2, 4, 5, 6, 7, 10, 12, 14, 16, 20, 22, 24, 26]);
    assert_eq!(scheduler.queued(), 10);
    let later = now + Duration::from_secs(1);
    let left: Vec<u32> = std::iter::from_fn(|| run(&mut scheduler, later, Verdict::Good)).collect();
    assert_eq!((left.len(), left.iter().all(|task| task % 2 == 1)), (10, true), "{left:?}");
    assert!(scheduler.remove_where(|_| true, later).is_empty());
}
