use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use super::super::{Entry, HostId, HostLimits, Next, Scheduler};
use super::{Crowd, PATIENCE};
use crate::breaker::Verdict;

const LIMITS: HostLimits = HostLimits { concurrency: 8, interval: Duration::ZERO, adaptive: false };
const MOST_SILENT: usize = 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

fn entry(host: &str, task: u32, since: Instant) -> Entry<u32> {
    Entry { host: host.into(), job: "j".into(), deadline_ms: 0, limits: LIMITS, since, task }
}

fn start(scheduler: &mut Scheduler<u32>, now: Instant) -> Option<(HostId, u32)> {
    match scheduler.next(now) {
        Next::Start(id, entry) => Some((id, entry.task)),
        Next::GiveBack(..) | Next::Nothing => None,
    }
}

fn start_all(scheduler: &mut Scheduler<u32>, now: Instant) -> Vec<(HostId, u32)> {
    std::iter::from_fn(|| start(scheduler, now)).collect()
}

#[test]
fn a_silent_host_gives_its_slots_up_and_takes_them_again_when_it_speaks() {
    let now = Instant::now();
    let mut scheduler = Scheduler::new(2);
    scheduler.push(entry("silent", 1, now), now);
    scheduler.push(entry("slow", 2, now), now);
    let started = start_all(&mut scheduler, now);
    assert_eq!(started.len(), 2);
    for task in 3..6 {
        scheduler.push(entry("other", task, now), now);
    }
    assert_eq!((start(&mut scheduler, now), scheduler.next_wake()), (None, Some(now + PATIENCE)));
    let later = now + PATIENCE;
    // As many are silent as there are slots: others that nobody knows have to wait.
    assert_eq!((start(&mut scheduler, later), scheduler.running()), (None, 2));
    scheduler.prove(started[1].0, later);
    let others = start_all(&mut scheduler, later);
    assert_eq!((others.len(), scheduler.running()), (1, 3));
    for (id, _) in started.into_iter().chain(others) {
        scheduler.finish(id, Verdict::Neutral, None, later);
    }
    assert_eq!(scheduler.running(), 0);
    assert_eq!(start_all(&mut scheduler, later).len(), 2);
}

#[test]
fn who_is_known_starts_whatever_the_silent_do() {
    let now = Instant::now();
    let mut scheduler = Scheduler::new(4);
    scheduler.push(entry("good", 0, now), now);
    let (good, _) = start(&mut scheduler, now).unwrap();
    scheduler.prove(good, now);
    for host in 0..100 {
        scheduler.push(entry(&format!("dead-{host}"), host, now), now);
    }
    assert_eq!(start_all(&mut scheduler, now).len(), 3);
    let later = now + PATIENCE;
    assert_eq!(start_all(&mut scheduler, later).len(), 3);
    let later = later + PATIENCE;
    assert_eq!(start_all(&mut scheduler, later).len(), 0, "six are silent");
    for task in 200..210 {
        scheduler.push(entry("good", task, later), later);
    }
    assert_eq!(start_all(&mut scheduler, later).len(), 3);
}

#[test]
fn those_that_were_held_are_let_in_one_for_one() {
    let now = Instant::now();
    let mut scheduler = Scheduler::new(4);
    for host in 0..20 {
        scheduler.push(entry(&format!("dead-{host}"), host, now), now);
    }
    let first = start_all(&mut scheduler, now);
    let later = now + PATIENCE;
    assert!(start_all(&mut scheduler, later).is_empty());
    let mut seen = first.len();
    let mut running = first;
    while let Some((id, _)) = running.pop() {
        scheduler.finish(id, Verdict::Down, None, later);
        let next = start_all(&mut scheduler, later);
        assert!(next.len() <= 1);
        seen += next.len();
        running.extend(next);
    }
    assert_eq!((seen, scheduler.running(), scheduler.queued()), (20, 0, 0));
}

/// Nobody is handed on for having waited.
const NEVER: Crowd = Crowd { before: None, still: usize::MAX, most: usize::MAX };

#[test]
fn what_waits_long_where_nothing_moves_is_handed_on() {
    let now = Instant::now();
    let mut scheduler = Scheduler::new(4);
    for task in 0..10 {
        scheduler.push(entry("silent", task, now), now);
        scheduler.push(entry("busy", 100 + task, now), now);
    }
    let started = start_all(&mut scheduler, now);
    let busy = started.iter().find(|(_, task)| *task >= 100).unwrap().0;
    scheduler.prove(busy, now);
    let later = now + PATIENCE;
    start_all(&mut scheduler, later);
    scheduler.push(entry("silent", 10, later), later);
    let waiting = scheduler.queued();
    let since = |before| Crowd { before: Some(before), ..NEVER };
    assert_eq!(scheduler.hand_on(since(now - PATIENCE), later).still, Vec::<u32>::new());
    let crowd = Crowd { still: waiting - 3, ..NEVER };
    assert_eq!(scheduler.hand_on(Crowd { still: waiting, ..crowd }, later).still, Vec::<u32>::new());
    // Its share is all that may wait, and it has less.
    assert_eq!(scheduler.hand_on(crowd, later).still, Vec::<u32>::new());
    assert_eq!(scheduler.hand_on(since(now), later).still, [2, 3, 4, 5, 6, 7, 8, 9], "these have waited for too long");
    assert_eq!(scheduler.queued(), waiting - 8);
}

/// Pushes 20 tasks of a host and brings it into a state.
fn host_in(state: &str, number: usize, scheduler: &mut Scheduler<u32>, now: Instant) {
    let name = format!("{state}-{number}");
    for task in 0..20 {
        scheduler.push(entry(&name, task, now), now);
    }
    let id = scheduler.names[&*name];
    let host = scheduler.hosts[id].as_mut().unwrap();
    host.proven = matches!(state, "well" | "failing" | "resting");
    let failures = match state {
        "failing" | "refusing" => 1,
        "resting" => crate::breaker::THRESHOLD,
        _ => 0,
    };
    for _ in 0..failures {
        host.breaker.record(Verdict::Down, now);
    }
    host.silent = usize::from(state == "silent");
    scheduler.replace(id, now);
}

/// | hosts | may wait where they stand still | may wait | handed on: of those that stand still, of untried ones |
#[test]
fn table_of_what_a_crowd_hands_on() {
    let table: &[(&[&str], usize, usize, usize, usize)] = &[
        // Enough room: nobody goes.
        (&["refusing", "untried"], 40, 40, 0, 0),
        (&["well", "well"], 10, 10, 0, 0),
        // What stands still goes first, down to its share.
        (&["refusing"], 8, 100, 12, 0),
        (&["refusing", "refusing"], 8, 100, 32, 0),
        (&["resting"], 8, 100, 12, 0),
        (&["silent"], 8, 100, 12, 0),
        // One failure of a host that has answered before says nothing.
        (&["failing"], 8, 10, 0, 0),
        (&["well", "refusing"], 8, 100, 12, 0),
        // Others do not take their share from them.
        (&["well", "refusing"], 25, 100, 0, 0),
        // Nothing is known of the others: they go only when there is no room at all.
        (&["untried"], 8, 20, 0, 0),
        (&["untried", "untried"], 8, 20, 0, 20),
        (&["untried", "well"], 8, 20, 0, 0),
        (&["untried", "well"], 8, 12, 0, 8),
        (&["untried", "refusing", "well"], 8, 20, 12, 10),
    ];
    for (hosts, still, most, gone_still, gone_untried) in table {
        let now = Instant::now();
        let mut scheduler = Scheduler::new(4);
        for (number, state) in hosts.iter().enumerate() {
            host_in(state, number, &mut scheduler, now);
        }
        let waiting = scheduler.queued();
        let went = scheduler.hand_on(Crowd { before: None, still: *still, most: *most }, now);
        let what = format!("{hosts:?} with room for {still} and {most}: {went:?}");
        assert_eq!((went.still.len(), went.untried.len()), (*gone_still, *gone_untried), "{what}");
        assert_eq!(scheduler.queued(), waiting - gone_still - gone_untried, "{what}");
        assert_eq!(scheduler.remove_all(now).len(), waiting - gone_still - gone_untried, "{what}");
    }
}

#[test]
fn the_newest_are_handed_on_and_those_with_deadlines_last() {
    let now = Instant::now();
    let mut scheduler = Scheduler::new(4);
    scheduler.push(Entry { deadline_ms: 7, ..entry("silent", 7, now) }, now);
    scheduler.push(Entry { deadline_ms: 5, ..entry("silent", 5, now) }, now);
    for task in 10..14 {
        scheduler.push(Entry { job: format!("j{}", task % 2).into(), ..entry("silent", task, now) }, now);
    }
    let (id, _) = start(&mut scheduler, now).unwrap();
    scheduler.finish(id, Verdict::Down, None, now);
    let left = |still| Crowd { still, ..NEVER };
    assert_eq!(scheduler.hand_on(left(4), now).still, [13]);
    assert_eq!(scheduler.hand_on(left(1), now).still, [11, 12, 10]);
    assert_eq!(scheduler.hand_on(left(0), now).still, [7]);
    assert_eq!(scheduler.queued(), 0);
}

/// Tasks of a good host that end within `span`, when each takes 10 ms, beside `dead` hosts of 100 tasks that never answer and that come first.
/// `known` says that the good one has answered before.
fn good_ones(dead: u32, known: bool, span: Duration) -> usize {
    let begun = Instant::now();
    let mut now = begun;
    let mut scheduler = Scheduler::new(64).with_silent(MOST_SILENT);
    let limits = HostLimits { concurrency: 32, ..LIMITS };
    if known {
        scheduler.push(Entry { limits, ..entry("good", 0, now) }, now);
        let (id, _) = start(&mut scheduler, now).unwrap();
        scheduler.prove(id, now);
        scheduler.finish(id, Verdict::Good, None, now);
    }
    for task in 0..100 {
        for host in 0..dead {
            scheduler.push(entry(&format!("dead-{host}"), task, now), now);
        }
    }
    let good = |task| Entry { limits, ..entry("good", task, begun) };
    for task in 0..50_000 {
        scheduler.push(good(task), now);
    }
    let mut ends: BinaryHeap<Reverse<(Instant, HostId, bool)>> = BinaryHeap::new();
    let mut done = 0;
    loop {
        loop {
            match scheduler.next(now) {
                Next::Start(id, entry) if &*entry.host == "good" => ends.push(Reverse((now + Duration::from_millis(10), id, true))),
                Next::Start(id, _) => ends.push(Reverse((now + CONNECT_TIMEOUT, id, false))),
                Next::GiveBack(..) => {}
                Next::Nothing => break,
            }
        }
        assert!(scheduler.running() <= 2 * 64 + MOST_SILENT);
        let wake = ends.peek().map(|Reverse(end)| end.0).into_iter().chain(scheduler.next_wake()).min().unwrap();
        if wake > begun + span {
            return done;
        }
        now = now.max(wake);
        while let Some(Reverse((at, id, is_good))) = ends.peek().copied()
            && at <= now
        {
            ends.pop();
            if is_good {
                scheduler.prove(id, now);
                done += 1;
            }
            scheduler.finish(id, if is_good { Verdict::Good } else { Verdict::Down }, None, now);
        }
    }
}

#[test]
fn dead_hosts_cost_the_good_ones_less_than_a_tenth() {
    let span = Duration::from_secs(12);
    let alone = good_ones(0, true, span);
    for dead in [1, 30, 1000] {
        let beside = good_ones(dead, true, span);
        assert!(beside * 10 >= alone * 9, "{dead} dead hosts: {beside} of {alone}");
    }
}

#[test]
fn an_unknown_host_behind_a_thousand_silent_ones_gets_its_turn() {
    let (alone, beside) = (good_ones(0, false, Duration::from_secs(12)), good_ones(1000, false, Duration::from_secs(12)));
    assert!(beside * 2 >= alone, "{beside} of {alone}");
}
