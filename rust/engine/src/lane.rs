//! Lanes: each works on one task after the other, as long as the scheduler has something for it.
//!
//! A lane is one tokio task. Starting a fresh one for every download would mean moving and freeing a large future for every small file.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fetchbox_failpoint::fail_point;
use fetchbox_model::failure::Code;
use futures_util::FutureExt;
use futures_util::future::{AbortHandle, AbortRegistration, Abortable};

use crate::api::{FailedAttempt, Finished, FinishedKind};
use crate::breaker::Verdict;
use crate::core::{Core, Item, now_ms};
use crate::failure::Failure;
use crate::fetch::patience::Timer;
use crate::fetch::transfer::{Kept, Stored, Unsynced};
use crate::fetch::{attempt, before};
use crate::flight::Flight;
use crate::outcome::{self, Learned};
use crate::retry::{Decision, Failed, decide};
use crate::reuse;
use crate::schedule::tempo::Sign;
use crate::schedule::{HostId, LONGEST_WAIT, Next};
use crate::store::local_failure;
use crate::sync::lock;

/// A host's wish to be left alone (Retry-After) holds for its other tasks as well, but no longer than this.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Tasks of a resting host given back at a time, so that others get their turn in between.
const GIVE_BACK: usize = 256;
/// Tasks given back are due over this span after their host's rest, so that they do not come back all at once.
const SPREAD_MS: u64 = 5_000;

/// A task that has a slot.
struct Start {
    host: HostId,
    item: Box<Item>,
    run: u64,
    handle: AbortHandle,
    registration: AbortRegistration,
    /// Whether its host has answered before.
    proven: bool,
}

/// A body that is whole, with all that its outcome needs.
struct Whole {
    item: Box<Item>,
    learned: Learned,
    stored: Stored,
    run: u64,
    handle: AbortHandle,
    took: Duration,
}

/// How an attempt ended.
enum Ended {
    Kept(Kept),
    /// There is nothing to reuse: its host is asked, in its turn.
    Elsewhere,
    Failed(Failure),
    /// Its deadline had passed before it began.
    Expired,
    Cancelled,
}

impl Core {
    /// Starts everything that can be started.
    pub fn pump(self: &Arc<Self>) {
        if let Some(start) = self.next_start() {
            self.handle.spawn(self.clone().lane(start));
        }
    }

    /// Starts everything that can be started, but leaves the first of it to the caller.
    fn next_start(self: &Arc<Self>) -> Option<Start> {
        let mut first = None;
        let mut given_back = Vec::new();
        let wake_at = loop {
            let mut scheduler = lock(&self.scheduler);
            if self.closing.load(Ordering::Acquire) {
                break None;
            }
            match scheduler.next(Instant::now()) {
                Next::Start(host, entry) => {
                    let (handle, registration) = AbortHandle::new_pair();
                    let run = self.next_run.fetch_add(1, Ordering::Relaxed);
                    let proven = scheduler.is_proven(host);
                    lock(&self.running).insert(run, (entry.job, handle.clone()));
                    drop(scheduler);
                    let start = Start { host, item: entry.task, run, handle, registration, proven };
                    if first.is_none() {
                        first = Some(start);
                    } else {
                        self.handle.spawn(self.clone().lane(start));
                    }
                }
                Next::GiveBack(entry, until) => {
                    given_back.push((entry.task, until));
                    if given_back.len() >= GIVE_BACK {
                        break Some(Instant::now());
                    }
                }
                Next::Nothing => break scheduler.next_wake(),
            }
        };
        for (item, until) in given_back {
            self.give_back(item, until);
        }
        self.arm(wake_at);
        first
    }

    /// A task whose host rests for long counts an attempt, so that a host that is dead for good uses its tasks up.
    fn give_back(&self, mut item: Box<Item>, until: Instant) {
        let wait = until.saturating_duration_since(Instant::now()) + Duration::from_millis(fastrand::u64(0..SPREAD_MS));
        let failure = Failure::new(Code::DownloadHostUnavailable, "the host rests after failures in a row");
        self.note(&mut item, &failure);
        match decide(self.facts_of(&item, &failure), item.profile.rules, 0.0) {
            Decision::Fail => self.fail(item, Learned::default(), failure, true),
            Decision::Again(_) => self.later(item, wait, failure.code.as_str(), &failure.message),
        }
    }

    async fn lane(self: Arc<Self>, first: Start) {
        let slot = Flight::slot(self.flight.as_ref());
        let mut next = Some(first);
        let mut timer = Timer::new();
        while let Some(Start { host, mut item, run, handle, registration, proven }) = next.take() {
            slot.begin(&item.task);
            #[cfg(feature = "failpoints")]
            crate::deadly::check(&item.task.url);
            self.metrics.started();
            let started = Instant::now();
            let mut learned = Learned::default();
            learned.times.queued = started - item.queued;
            let answered = || {
                if !proven {
                    lock(&self.scheduler).prove(host, Instant::now());
                    self.pump();
                }
            };
            let ended = if self.until_deadline(&item.task).is_some_and(|left| left.is_zero()) {
                Ended::Expired
            } else {
                let attempt = async {
                    if item.is_unasked() {
                        answered();
                        let kept = before::unasked(&self, &mut item, &mut learned).await?;
                        return Ok(kept.map_or(Ended::Elsewhere, Ended::Kept));
                    }
                    attempt::run(&self, &mut item, &mut learned, &mut timer, answered).await.map(Ended::Kept)
                };
                // Pinned where it is: moved into one wrapper after the other it would be copied each time, and it is large.
                let attempt = std::pin::pin!(attempt);
                match Abortable::new(AssertUnwindSafe(attempt).catch_unwind(), registration).await {
                    Ok(Ok(Ok(ended))) => ended,
                    Ok(Ok(Err(failure))) => Ended::Failed(failure),
                    // The panic hook has told the rest; the slot and the task may not be lost to it.
                    Ok(Err(_)) => Ended::Failed(Failure::new(Code::SystemInternal, "the download panicked")),
                    Err(_) => Ended::Cancelled,
                }
            };
            self.metrics.ended();
            match ended {
                Ended::Kept(Kept { stored, unsynced }) => {
                    let sign = Sign::Answered(learned.times.first_byte);
                    let busy = self.free(host, Verdict::Good, None, Some((sign, started)));
                    let whole = Whole { item, learned, stored, run, handle, took: started.elapsed() };
                    match unsynced {
                        None => self.stored(whole, busy),
                        // The next download begins meanwhile.
                        Some(unsynced) => self.sync(unsynced, whole).await,
                    }
                }
                Ended::Elsewhere => {
                    self.free(host, Verdict::Good, None, None);
                    item.ask();
                    self.wait_again(item, Duration::ZERO, &handle);
                    lock(&self.running).remove(&run);
                }
                Ended::Failed(failure) => {
                    let longest = LONGEST_PAUSE.min(item.profile.rules.retry_after_max);
                    let pause = failure.retry_after.map(|pause| pause.min(longest));
                    let busy = self.free(host, verdict(&failure), pause, Some((sign(&failure, &learned), started)));
                    self.failed(item, learned, failure, busy, &handle);
                    lock(&self.running).remove(&run);
                }
                Ended::Expired => {
                    let busy = self.free(host, Verdict::Neutral, None, None);
                    self.fail(item, learned, Failure::new(Code::DownloadExpired, "the task's deadline has passed"), busy);
                    lock(&self.running).remove(&run);
                }
                Ended::Cancelled => {
                    let busy = self.free(host, Verdict::Neutral, None, None);
                    self.drop_item(item, busy);
                    lock(&self.running).remove(&run);
                }
            }
            next = self.next_start();
        }
    }

    /// Gives a slot back; returns whether there is other work. `learned` is what an attempt that began then says of its host's load.
    fn free(&self, host: HostId, verdict: Verdict, pause: Option<Duration>, learned: Option<(Sign, Instant)>) -> bool {
        let now = Instant::now();
        let mut scheduler = lock(&self.scheduler);
        if let Some((sign, sent)) = learned {
            scheduler.learn(host, sign, sent, now);
        }
        scheduler.finish(host, verdict, pause, now);
        scheduler.running() + scheduler.queued() > 0
    }

    /// Leaves a whole file to the syncing thread.
    async fn sync(self: &Arc<Self>, unsynced: Unsynced, mut whole: Whole) {
        let core = self.clone();
        let since = Instant::now();
        let then = move |result: std::io::Result<()>| {
            let waited = since.elapsed();
            whole.learned.times.store += waited;
            whole.took += waited;
            match result {
                Ok(()) => {
                    fail_point!("engine::store::after");
                    core.stored(whole, true);
                }
                Err(error) => {
                    let Whole { item, learned, run, handle, .. } = whole;
                    let failure = local_failure(&error).status(learned.http_status);
                    core.failed(item, learned, failure, true, &handle);
                    lock(&core.running).remove(&run);
                    core.pump();
                }
            }
        };
        unsynced.publish(then).await;
    }

    fn stored(&self, whole: Whole, busy: bool) {
        let Whole { item, learned, stored, run, took, .. } = whole;
        match stored.reused {
            None => self.metrics.stored(stored.size, took.as_secs_f64()),
            Some(how) => self.metrics.reused(how, stored.size),
        }
        let attempts = item.task.attempt + item.attempts.len() as u32 + 1;
        let how = stored.reused;
        let mut outcome = outcome::stored(&item.task, learned, stored, attempts, now_ms());
        reuse::mark(&mut outcome, item.reuse.as_deref(), how);
        let result = FinishedKind::Outcome(Box::new(outcome));
        self.done.push(Finished { token: item.token, task: item.task, attempts: item.attempts, result }, busy);
        lock(&self.running).remove(&run);
    }

    fn failed(&self, mut item: Box<Item>, learned: Learned, failure: Failure, busy: bool, handle: &AbortHandle) {
        if matches!(failure.code, Code::DownloadRobotsDenied | Code::DownloadFiltered) {
            return self.filtered(item, learned, failure, busy);
        }
        self.note(&mut item, &failure);
        match decide(self.facts_of(&item, &failure), item.profile.rules, fastrand::f64()) {
            Decision::Fail => self.fail(item, learned, failure, busy),
            Decision::Again(wait) => {
                self.metrics.retried(failure.code);
                if wait > LONGEST_WAIT {
                    self.later(item, wait, failure.code.as_str(), &failure.message);
                } else {
                    self.wait_again(item, wait, handle);
                }
            }
        }
    }

    /// Queues a task for its next attempt, unless it was cancelled or the engine closes meanwhile. Starting, queueing again and cancelling all hold
    /// the scheduler's lock, so that a task is always found in one place or the other.
    fn wait_again(&self, mut item: Box<Item>, wait: Duration, handle: &AbortHandle) {
        let mut scheduler = lock(&self.scheduler);
        if handle.is_aborted() || self.closing.load(Ordering::Acquire) {
            drop(scheduler);
            self.drop_item(item, false);
        } else {
            item.queued = Instant::now();
            self.queue(&mut scheduler, item, wait);
        }
    }

    fn facts_of(&self, item: &Item, failure: &Failure) -> Failed {
        Failed {
            code: failure.code,
            attempts: item.task.attempt + item.attempts.len() as u32,
            retry_after: failure.retry_after,
            deadline: self.until_deadline(&item.task),
        }
    }

    fn note(&self, item: &mut Item, failure: &Failure) {
        self.metrics.failed(failure.code);
        item.attempts.push(FailedAttempt {
            attempt: item.task.attempt + item.attempts.len() as u32 + 1,
            code: failure.code.as_str().to_owned(),
            message: failure.message.clone(),
            http_status: u32::from(failure.http_status),
            at_ms: now_ms(),
        });
    }

    /// Ends a task that is left out on purpose.
    fn filtered(&self, item: Box<Item>, learned: Learned, failure: Failure, busy: bool) {
        let attempts = item.task.attempt + item.attempts.len() as u32 + 1;
        let outcome = outcome::filtered(&item.task, learned, failure, attempts, now_ms());
        let result = FinishedKind::Outcome(Box::new(outcome));
        self.done.push(Finished { token: item.token, task: item.task, attempts: item.attempts, result }, busy);
    }

    fn fail(&self, item: Box<Item>, learned: Learned, mut failure: Failure, busy: bool) {
        if failure.code == Code::DownloadProxyFailed {
            failure.code = Code::DownloadProxyExhausted;
        }
        self.metrics.dead_letter();
        let attempts = item.task.attempt + item.attempts.len() as u32;
        let outcome = outcome::failed(&item.task, learned, failure, attempts, now_ms());
        let result = FinishedKind::Outcome(Box::new(outcome));
        self.done.push(Finished { token: item.token, task: item.task, attempts: item.attempts, result }, busy);
    }
}

/// What a failure says about its host's load. An answer through a proxy may be the proxy's own.
fn sign(failure: &Failure, learned: &Learned) -> Sign {
    match failure.http_status {
        429 | 503 => Sign::Busy,
        200..=499 if learned.proxy.is_empty() => Sign::Answered(learned.times.first_byte),
        _ => Sign::None,
    }
}

/// What a failure says about its host.
fn verdict(failure: &Failure) -> Verdict {
    match failure.code {
        Code::DownloadConnectTimeout
        | Code::DownloadConnectFailed
        | Code::DownloadReset
        | Code::DownloadTimeout
        | Code::DownloadDnsServfail
        | Code::DownloadDnsTimeout
        | Code::DownloadHttp429 => Verdict::Down,
        Code::DownloadHttp5xx if matches!(failure.http_status, 502..=504) => Verdict::Down,
        _ if failure.http_status != 0 => Verdict::Good,
        _ => Verdict::Neutral,
    }
}
