//! What the engine's tasks share, and the loop that starts them and takes in how they ended.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fetchbox_model::failure::Code;
use fetchbox_model::message::DownloadTask;
use futures_util::future::{AbortHandle, Abortable};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use url::Url;

use crate::api::{FailedAttempt, Finished, FinishedKind, Stats, Submission};
use crate::breaker::Verdict;
use crate::failure::Failure;
use crate::fetch::attempt;
use crate::fetch::transfer::{Memory, Stored, Transfer};
use crate::metrics::Metrics;
use crate::net::pool::Pool;
use crate::outcome::{self, Learned};
use crate::profile::{Profile, Profiles};
use crate::proxy::Pools;
use crate::retry::{Decision, Failed, decide};
use crate::schedule::{Entry, HostId, LONGEST_WAIT, Next, Scheduler};
use crate::store::Stores;
use crate::sync::lock;

/// A host's wish to be left alone (Retry-After) holds for its other tasks as well, but no longer than this.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Tasks of a resting host given back at a time, so that others get their turn in between.
const GIVE_BACK: usize = 256;

/// A task inside the engine.
pub struct Item {
    /// The caller's mark.
    pub token: u64,
    /// What to fetch.
    pub task: DownloadTask,
    /// Its URL, parsed.
    pub url: Url,
    /// Its job type's settings.
    pub profile: Arc<Profile>,
    /// A transfer that broke and can go on.
    pub transfer: Option<Transfer>,
    host: Arc<str>,
    job: Arc<str>,
    attempts: Vec<FailedAttempt>,
    queued: Instant,
}

/// The engine's shared state.
pub struct Core {
    /// Settings by job type.
    pub profiles: Profiles,
    /// Ways around.
    pub proxies: Pools,
    /// Where bodies go.
    pub stores: Stores,
    /// Idle connections.
    pub pool: Pool,
    /// Bytes of bodies.
    pub memory: Memory,
    /// Counters.
    pub metrics: Metrics,
    /// The engine's runtime.
    pub handle: Handle,
    /// Called when there is something to drain.
    pub wake: Arc<dyn Fn() + Send + Sync>,
    /// The queues.
    pub scheduler: Mutex<Scheduler<Box<Item>>>,
    /// What was finished and not drained.
    pub finished: Mutex<VecDeque<Finished>>,
    /// Running tasks by number, to cancel them.
    pub running: Mutex<HashMap<u64, (Arc<str>, AbortHandle)>>,
    /// Numbers for running tasks.
    pub next_run: AtomicU64,
    /// Nothing new is started.
    pub closing: AtomicBool,
    /// When the timer fires next.
    pub armed: Mutex<Option<Instant>>,
    /// Tells the timer to look again.
    pub rearm: Notify,
}

/// Milliseconds since the epoch.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

impl Core {
    /// Time until a task's deadline; `None` when it has none.
    pub fn until_deadline(&self, task: &DownloadTask) -> Option<Duration> {
        (task.deadline_ms > 0).then(|| Duration::from_millis(task.deadline_ms.saturating_sub(now_ms())))
    }

    /// Queues tasks and starts what can be started.
    pub fn submit(self: &Arc<Self>, submissions: Vec<Submission>) {
        let mut last: Option<(Arc<str>, Arc<str>)> = None;
        let mut items = Vec::with_capacity(submissions.len());
        let now = Instant::now();
        for Submission { task, token } in submissions {
            if self.closing.load(Ordering::Acquire) {
                self.report(Finished { token, task, attempts: Vec::new(), result: FinishedKind::Dropped });
                continue;
            }
            let url = match Url::parse(&task.url) {
                Ok(url) => url,
                Err(error) => {
                    let failure = Failure::new(Code::DownloadBadUrl, error.to_string());
                    self.fail_untried(token, task, failure);
                    continue;
                }
            };
            let name = host_name(&url);
            // Neighbours mostly share their host and job.
            let (host, job) = match &last {
                Some((host, job)) if **host == *name && **job == *task.job_id => (host.clone(), job.clone()),
                _ => (Arc::from(name), Arc::from(task.job_id.as_str())),
            };
            last = Some((host.clone(), job.clone()));
            let profile = self.profiles.of(&task.job_type).clone();
            items.push(Box::new(Item { token, task, url, profile, transfer: None, host, job, attempts: Vec::new(), queued: now }));
        }
        for chunk in in_chunks(items, 512) {
            let mut scheduler = lock(&self.scheduler);
            for item in chunk {
                let wait =
                    Duration::from_millis(item.task.not_before_ms.saturating_sub(if item.task.not_before_ms == 0 { 0 } else { now_ms() }));
                if wait > LONGEST_WAIT {
                    drop(scheduler);
                    self.later(item, wait, "", "not due yet");
                    scheduler = lock(&self.scheduler);
                } else {
                    self.queue(&mut scheduler, item, wait);
                }
            }
        }
        self.pump();
    }

    fn queue(&self, scheduler: &mut Scheduler<Box<Item>>, item: Box<Item>, wait: Duration) {
        let entry = Entry {
            host: item.host.clone(),
            job: item.job.clone(),
            deadline_ms: item.task.deadline_ms,
            limits: item.profile.limits,
            task: item,
        };
        let now = Instant::now();
        if wait.is_zero() { scheduler.push(entry, now) } else { scheduler.push_at(entry, now + wait) }
    }

    /// Starts everything that can be started.
    pub fn pump(self: &Arc<Self>) {
        let mut given_back = Vec::new();
        let wake_at = loop {
            let mut scheduler = lock(&self.scheduler);
            if self.closing.load(Ordering::Acquire) {
                break None;
            }
            match scheduler.next(Instant::now()) {
                Next::Start(host, entry) => {
                    let proven = scheduler.is_proven(host);
                    drop(scheduler);
                    self.start(host, entry.task, proven);
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
        for (mut item, until) in given_back {
            let wait = until.saturating_duration_since(Instant::now()) + Duration::from_millis(fastrand::u64(0..5_000));
            let failure = Failure::new(Code::DownloadHostUnavailable, "the host rests after failures in a row");
            self.settle_failure(&mut item, &failure);
            self.metrics.failed(failure.code);
            if decide(self.facts_of(&item, &failure), item.profile.rules, 0.0) == Decision::Fail {
                self.fail(item, Learned::default(), failure);
            } else {
                self.later(item, wait, failure.code.as_str(), &failure.message);
            }
        }
        self.arm(wake_at);
    }

    fn arm(&self, at: Option<Instant>) {
        let Some(at) = at else { return };
        let mut armed = lock(&self.armed);
        if armed.is_none_or(|armed| at < armed) {
            *armed = Some(at);
            self.rearm.notify_one();
        }
    }

    /// Fires [`Core::pump`] when something is due. Runs until the runtime ends.
    pub async fn keep_time(self: Arc<Self>) {
        let mut sweep = tokio::time::interval(Duration::from_secs(5));
        loop {
            let at = *lock(&self.armed);
            let sleep = async {
                match at {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = sleep => {
                    *lock(&self.armed) = None;
                    self.pump();
                }
                () = self.rearm.notified() => {}
                _ = sweep.tick() => self.pool.sweep(Instant::now()),
            }
        }
    }

    fn start(self: &Arc<Self>, host: HostId, item: Box<Item>, proven: bool) {
        let (handle, registration) = AbortHandle::new_pair();
        let run = self.next_run.fetch_add(1, Ordering::Relaxed);
        lock(&self.running).insert(run, (item.job.clone(), handle));
        let core = self.clone();
        self.handle.spawn(async move {
            let mut item = item;
            let mut learned = Learned::default();
            learned.times.queued = item.queued.elapsed();
            core.metrics.started();
            let started = Instant::now();
            let answered = || {
                if !proven {
                    lock(&core.scheduler).prove(host, Instant::now());
                    core.pump();
                }
            };
            let result = if core.until_deadline(&item.task).is_some_and(|left| left.is_zero()) {
                Ok(None)
            } else {
                Abortable::new(attempt::run(&core, &mut item, &mut learned, answered), registration).await.map(Some)
            };
            core.metrics.ended();
            lock(&core.running).remove(&run);
            core.finish(host, item, learned, result, started);
            core.pump();
        });
    }

    fn finish(
        self: &Arc<Self>,
        host: HostId,
        mut item: Box<Item>,
        learned: Learned,
        result: Result<Option<Result<Stored, Failure>>, futures_util::future::Aborted>,
        started: Instant,
    ) {
        let ended = |verdict, pause| lock(&self.scheduler).finish(host, verdict, pause, Instant::now());
        match result {
            Err(_) => {
                ended(Verdict::Neutral, None);
                self.report(Finished { token: item.token, task: item.task, attempts: item.attempts, result: FinishedKind::Dropped });
            }
            Ok(None) => {
                ended(Verdict::Neutral, None);
                self.fail(item, learned, Failure::new(Code::DownloadExpired, "the task's deadline has passed"));
            }
            Ok(Some(Ok(stored))) => {
                ended(Verdict::Good, None);
                self.metrics.stored(stored.size, started.elapsed().as_secs_f64());
                let attempts = item.task.attempt + item.attempts.len() as u32 + 1;
                let outcome = outcome::stored(&item.task, learned, stored, attempts, now_ms());
                let result = FinishedKind::Outcome(Box::new(outcome));
                self.report(Finished { token: item.token, task: item.task, attempts: item.attempts, result });
            }
            Ok(Some(Err(failure))) => {
                ended(verdict(&failure), failure.retry_after.map(|pause| pause.min(LONGEST_PAUSE)));
                self.settle_failure(&mut item, &failure);
                self.metrics.failed(failure.code);
                match decide(self.facts_of(&item, &failure), item.profile.rules, fastrand::f64()) {
                    Decision::Fail => self.fail(item, learned, failure),
                    Decision::Again(wait) => {
                        self.metrics.retried(failure.code);
                        if wait > LONGEST_WAIT {
                            self.later(item, wait, failure.code.as_str(), &failure.message);
                        } else if self.closing.load(Ordering::Acquire) {
                            self.report(Finished {
                                token: item.token,
                                task: item.task,
                                attempts: item.attempts,
                                result: FinishedKind::Dropped,
                            });
                        } else {
                            item.queued = Instant::now();
                            let mut scheduler = lock(&self.scheduler);
                            self.queue(&mut scheduler, item, wait);
                        }
                    }
                }
            }
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

    fn settle_failure(&self, item: &mut Item, failure: &Failure) {
        item.attempts.push(FailedAttempt {
            attempt: item.task.attempt + item.attempts.len() as u32 + 1,
            code: failure.code.as_str().to_owned(),
            message: failure.message.clone(),
            http_status: u32::from(failure.http_status),
            at_ms: now_ms(),
        });
    }

    fn fail(&self, item: Box<Item>, learned: Learned, mut failure: Failure) {
        if failure.code == Code::DownloadProxyFailed {
            failure.code = Code::DownloadProxyExhausted;
        }
        self.metrics.dead_letter();
        let attempts = item.task.attempt + item.attempts.len() as u32;
        let outcome = outcome::failed(&item.task, learned, failure, attempts, now_ms());
        self.report(Finished {
            token: item.token,
            task: item.task,
            attempts: item.attempts,
            result: FinishedKind::Outcome(Box::new(outcome)),
        });
    }

    fn fail_untried(&self, token: u64, task: DownloadTask, failure: Failure) {
        self.metrics.failed(failure.code);
        self.metrics.dead_letter();
        let outcome = outcome::failed(&task, Learned::default(), failure, task.attempt, now_ms());
        self.report(Finished { token, task, attempts: Vec::new(), result: FinishedKind::Outcome(Box::new(outcome)) });
    }

    fn later(&self, item: Box<Item>, wait: Duration, code: &str, message: &str) {
        let not_before_ms = now_ms().saturating_add(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
        let result = FinishedKind::Later { not_before_ms, code: code.to_owned(), message: message.to_owned() };
        self.report(Finished { token: item.token, task: item.task, attempts: item.attempts, result });
    }

    fn report(&self, finished: Finished) {
        let first = {
            let mut queue = lock(&self.finished);
            queue.push_back(finished);
            queue.len() == 1
        };
        if first {
            (self.wake)();
        }
    }

    /// Ends waiting tasks as dropped.
    pub fn drop_items(&self, items: Vec<Box<Item>>) {
        for item in items {
            self.report(Finished { token: item.token, task: item.task, attempts: item.attempts, result: FinishedKind::Dropped });
        }
    }

    /// Counts at this moment.
    pub fn stats(&self) -> Stats {
        let scheduler = lock(&self.scheduler);
        let (hosts, open_circuits) = scheduler.host_counts(Instant::now());
        Stats {
            queued: scheduler.queued(),
            running: scheduler.running(),
            finished: lock(&self.finished).len(),
            hosts,
            open_circuits,
            idle_connections: self.pool.len(),
            memory_used: self.memory.used(),
        }
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

/// The name under which a URL's host is limited: http and https on their own ports are one host.
fn host_name(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

fn in_chunks<T>(items: Vec<T>, size: usize) -> impl Iterator<Item = Vec<T>> {
    let mut items = items.into_iter();
    std::iter::from_fn(move || {
        let chunk: Vec<T> = items.by_ref().take(size).collect();
        (!chunk.is_empty()).then_some(chunk)
    })
}
