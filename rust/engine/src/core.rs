//! What the engine's lanes share, and how tasks come in.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fetchbox_model::failure::Code;
use fetchbox_model::message::DownloadTask;
use futures_util::future::AbortHandle;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use url::Url;

use crate::api::{FailedAttempt, Finished, FinishedKind, Stats, Submission};
use crate::breaker::LONGEST_REST;
use crate::curl::Desk;
use crate::done::Done;
use crate::failure::Failure;
use crate::fetch::before;
use crate::fetch::transfer::{Memory, Transfer};
use crate::flight::Flight;
use crate::metrics::Metrics;
use crate::neighbour;
use crate::net::pool::Pool;
use crate::outcome::{self, Learned};
use crate::pair::Pairs;
use crate::profile::{Profile, Profiles};
use crate::proxy::Pools;
use crate::retry::{Decision, Failed, Rules, decide};
use crate::reuse::Reuse;
use crate::robots::Sites;
use crate::schedule::{Crowd, Entry, HandedOn, HostLimits, LONGEST_WAIT, Scheduler};
use crate::store::Stores;
use crate::sync::lock;
use crate::wall::{Wall, millis};
use crate::window::Leaving;

/// What has waited so long at a host that stands still is handed on.
const HAND_ON_AFTER: Duration = Duration::from_secs(30);
/// For how long: a tier of `jobs.retry`, so that it comes back when it is due and not before.
const HAND_ON_FOR: Duration = Duration::from_secs(60);
/// The same for tasks of hosts that had no turn yet: they may be as good as any.
const UNTRIED_FOR: Duration = Duration::from_secs(15);
/// Hosts that stand still may make so much of what may wait wait.
const STILL_SHARE: usize = 4;
/// The host of tasks whose object is reused without asking anybody. No URL's host has a space, and some have no host at all.
const NOBODY: &str = " nobody";
/// Its limits.
const FREE: HostLimits = HostLimits { concurrency: usize::MAX, interval: Duration::ZERO, adaptive: false };
/// Tasks queued under one lock.
const SUBMIT_AT_ONCE: usize = 512;

/// A task inside the engine.
pub struct Item {
    /// The caller's mark.
    pub token: u64,
    /// What to fetch.
    pub task: Box<DownloadTask>,
    /// Its URL, parsed.
    pub url: Url,
    /// Its job type's settings.
    pub profile: Arc<Profile>,
    /// What it may reuse, and the name under which its object is remembered.
    pub reuse: Option<Box<Reuse>>,
    /// A transfer that broke and can go on.
    pub transfer: Option<Transfer>,
    /// The host it is limited with.
    pub host: Arc<str>,
    /// Its job.
    pub job: Arc<str>,
    /// Failed attempts of this delivery.
    pub attempts: Vec<FailedAttempt>,
    /// When it began to wait for this attempt.
    pub queued: Instant,
    /// When it came; its attempts do not make it younger.
    pub arrived: Instant,
}

impl Item {
    /// Whether nobody is asked for it.
    pub fn is_unasked(&self) -> bool {
        *self.host == *NOBODY
    }

    /// It has to be asked for after all.
    pub fn ask(&mut self) {
        self.host = Arc::from(host_name(&self.url));
    }
}

/// What the configuration says of job types, ways and stores; replaced as a whole when it is read again.
pub struct Settings {
    /// How often it was read before.
    pub generation: usize,
    /// Settings by job type.
    pub profiles: Profiles,
    /// Ways around.
    pub proxies: Pools,
    /// Where bodies go.
    pub stores: Arc<Stores>,
}

/// The engine's shared state.
pub struct Core {
    /// What a reload replaces.
    pub settings: RwLock<Arc<Settings>>,
    /// What sites say of crawlers.
    pub robots: Sites,
    /// What curl is to fetch.
    pub curl: Arc<Desk>,
    /// Idle connections.
    pub pool: Pool,
    /// Bytes of bodies.
    pub memory: Memory,
    /// Small bodies are hashed two at a time.
    pub pairs: Pairs,
    /// Counters.
    pub metrics: Metrics,
    /// The engine's runtime.
    pub handle: Handle,
    /// The queues.
    pub scheduler: Mutex<Scheduler<Box<Item>>>,
    /// Tasks that may wait before those of hosts that stand still are handed on; `None` when there is nowhere to hand them to.
    pub most_waiting: Option<usize>,
    /// The time of day for decisions.
    pub wall: Wall,
    /// What a crash would leave behind, if anything.
    pub flight: Option<Flight>,
    /// What was finished and not drained.
    pub done: Done,
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
    /// The settings in force.
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Time until a task's deadline; `None` when it has none.
    pub fn until_deadline(&self, task: &DownloadTask) -> Option<Duration> {
        (task.deadline_ms > 0).then(|| Duration::from_millis(task.deadline_ms.saturating_sub(self.wall.cautious_ms())))
    }

    /// Queues tasks and starts what can be started.
    pub fn submit(self: &Arc<Self>, submissions: Vec<Submission>) {
        let mut last: Option<(Arc<str>, Arc<str>)> = None;
        let mut items: Vec<Box<Item>> = Vec::with_capacity(submissions.len());
        let now = Instant::now();
        let settings = self.settings();
        for Submission { task, token, reuse } in submissions {
            if self.closing.load(Ordering::Acquire) {
                self.done.push(Finished { token, task, attempts: Vec::new(), result: FinishedKind::Dropped }, true);
                continue;
            }
            let url = match neighbour::parse(&task.url, items.last().map(|item| &item.url)) {
                Ok(url) => url,
                Err(error) => {
                    let message = match error {
                        url::ParseError::RelativeUrlWithoutBase => {
                            "it has no scheme: http:// or https:// stands before the host".to_owned()
                        }
                        other => other.to_string(),
                    };
                    let failure = Failure::new(Code::DownloadBadUrl, message);
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
            let profile = settings.profiles.of(&task.job_type).clone();
            let mut item = Box::new(Item {
                token,
                task,
                url,
                profile,
                reuse,
                transfer: None,
                host,
                job,
                attempts: Vec::new(),
                queued: now,
                arrived: now,
            });
            if before::is_unasked(&item) {
                // Nobody's limits hold for it.
                item.host = Arc::from(NOBODY);
            }
            items.push(item);
        }
        let now_ms = self.wall.steady_ms();
        let mut dropped = Vec::new();
        for chunk in in_chunks(items, SUBMIT_AT_ONCE) {
            let mut scheduler = lock(&self.scheduler);
            for item in chunk {
                let mut wait = Duration::from_millis(item.task.not_before_ms.saturating_sub(now_ms));
                // Nobody asks for a longer wait between attempts: one of the two clocks was set.
                if item.task.attempt > 0 && wait > longest_wait(&item.profile.rules) {
                    wait = Duration::ZERO;
                }
                if wait > LONGEST_WAIT {
                    self.later(item, wait, "", "not due yet");
                } else if self.closing.load(Ordering::Acquire) {
                    // The queues were emptied, or will be once this lock is free.
                    dropped.push(item);
                } else {
                    self.queue(&mut scheduler, item, wait);
                }
            }
        }
        self.drop_items(dropped);
        self.pump();
        if self.is_crowded() {
            self.hand_on();
        }
    }

    /// Whether so many wait that those of hosts that stand still are in the others' way.
    pub fn is_crowded(&self) -> bool {
        self.most_waiting.is_some_and(|most| lock(&self.scheduler).queued() > most / STILL_SHARE)
    }

    /// Hands on what would only wait here: a service's tasks come back in a while, and meanwhile others have their place.
    pub fn hand_on(&self) {
        let Some(most) = self.most_waiting else { return };
        let now = Instant::now();
        let crowd = Crowd { before: now.checked_sub(HAND_ON_AFTER), still: most / STILL_SHARE, most };
        let HandedOn { still, untried } = lock(&self.scheduler).hand_on(crowd, now);
        for item in still {
            self.later(item, HAND_ON_FOR, "", "its host stands still");
        }
        for item in untried {
            self.later(item, UNTRIED_FOR, "", "its host has had no turn");
        }
    }

    /// Takes out what waits of partitions that go to somebody else; the tokens of what is delivered there again. Attempts are told of where they
    /// still may be: those tasks are handed on.
    pub fn give_up(&self, leaving: &Leaving) -> Vec<u64> {
        let removed = lock(&self.scheduler).remove_where(|item| leaving.holds(item.token), Instant::now());
        let (tried, untried): (Vec<_>, Vec<_>) =
            removed.into_iter().partition(|item| !item.attempts.is_empty() && leaving.is_asked_for(item.token));
        for item in tried {
            self.later(item, LONGEST_WAIT, "", "its partition moves");
        }
        untried.into_iter().map(|item| item.token).collect()
    }

    /// Queues a task.
    pub fn queue(&self, scheduler: &mut Scheduler<Box<Item>>, item: Box<Item>, wait: Duration) {
        let entry = Entry {
            host: item.host.clone(),
            job: item.job.clone(),
            deadline_ms: item.task.deadline_ms,
            limits: if item.is_unasked() { FREE } else { item.profile.limits },
            since: item.arrived,
            task: item,
        };
        let now = Instant::now();
        if wait.is_zero() { scheduler.push(entry, now) } else { scheduler.push_at(entry, now + wait) }
    }

    /// From now on a host is asked no more often than that.
    pub fn slow_down(&self, host: &str, delay: Duration) {
        lock(&self.scheduler).slow_down(host, delay, Instant::now());
    }

    /// Hands a task back that is due later than the engine waits.
    pub fn later(&self, item: Box<Item>, wait: Duration, code: &str, message: &str) {
        let not_before_ms = self.wall.steady_ms().saturating_add(millis(wait));
        let result = FinishedKind::Later { not_before_ms, code: code.to_owned(), message: message.to_owned() };
        self.done.push(Finished { token: item.token, task: item.task, attempts: item.attempts, result }, true);
    }

    fn fail_untried(&self, token: u64, task: Box<DownloadTask>, failure: Failure) {
        self.metrics.failed(failure.code);
        self.metrics.dead_letter();
        let outcome = outcome::failed(&task, Learned::default(), failure, task.attempt, now_ms());
        self.done.push(Finished { token, task, attempts: Vec::new(), result: FinishedKind::Outcome(Box::new(outcome)) }, true);
    }

    /// Counts an attempt that ended before the engine began: the task's job type would not let it go ahead. `name` is the failure's own where
    /// it has one that `code` does not know.
    pub fn refuse(&self, token: u64, task: Box<DownloadTask>, code: Code, name: &str, message: &str) {
        let attempt = task.attempt + 1;
        let attempts = vec![FailedAttempt { attempt, code: name.to_owned(), message: message.to_owned(), http_status: 0, at_ms: now_ms() }];
        let failed = Failed { code, attempts: attempt, retry_after: None, deadline: self.until_deadline(&task) };
        self.metrics.failed(code);
        let result = match decide(failed, self.settings().profiles.of(&task.job_type).rules, fastrand::f64()) {
            Decision::Again(wait) => {
                self.metrics.retried(code);
                let not_before_ms = self.wall.steady_ms().saturating_add(millis(wait));
                FinishedKind::Later { not_before_ms, code: name.to_owned(), message: message.to_owned() }
            }
            Decision::Fail => {
                self.metrics.dead_letter();
                let mut outcome = outcome::failed(&task, Learned::default(), Failure::new(code, message), attempt, now_ms());
                name.clone_into(&mut outcome.code);
                FinishedKind::Outcome(Box::new(outcome))
            }
        };
        self.done.push(Finished { token, task, attempts, result }, true);
    }

    /// Ends a task that killed its process while it ran alone.
    pub fn poison(&self, token: u64, task: Box<DownloadTask>, message: &str) -> Finished {
        let code = Code::SystemPoison;
        self.metrics.failed(code);
        self.metrics.dead_letter();
        let attempt = task.attempt + 1;
        let outcome = outcome::failed(&task, Learned::default(), Failure::new(code, message), attempt, now_ms());
        let attempts =
            vec![FailedAttempt { attempt, code: code.as_str().to_owned(), message: message.to_owned(), http_status: 0, at_ms: now_ms() }];
        Finished { token, task, attempts, result: FinishedKind::Outcome(Box::new(outcome)) }
    }

    /// Ends a task as dropped.
    pub fn drop_item(&self, item: Box<Item>, busy: bool) {
        self.done.push(Finished { token: item.token, task: item.task, attempts: item.attempts, result: FinishedKind::Dropped }, busy);
    }

    /// Ends waiting tasks as dropped.
    pub fn drop_items(&self, items: impl IntoIterator<Item = Box<Item>>) {
        for item in items {
            self.drop_item(item, true);
        }
    }

    /// Counts at this moment.
    pub fn stats(&self) -> Stats {
        let scheduler = lock(&self.scheduler);
        let (hosts, open_circuits) = scheduler.host_counts(Instant::now());
        Stats {
            queued: scheduler.queued(),
            running: scheduler.running(),
            finished: self.done.len(),
            hosts,
            open_circuits,
            idle_connections: self.pool.len(),
            memory_used: self.memory.used(),
        }
    }
}

/// The longest wait between two attempts that anybody asks for.
fn longest_wait(rules: &Rules) -> Duration {
    rules.retry_after_max.max(rules.max).max(2 * LONGEST_REST)
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
