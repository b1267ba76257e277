//! Finished tasks, and when the caller is told of them.
//!
//! Waking a sleeping thread costs as much as a small download. So while there is other work under way the caller is told once for many.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;

use crate::api::Finished;
use crate::sync::lock;

/// How long the first of a batch waits for company.
const LINGER: Duration = Duration::from_millis(1);
/// A batch of this size is told of at once.
const BATCH: usize = 64;

#[derive(Default)]
struct State {
    queue: VecDeque<Finished>,
    /// The caller knows that there is something.
    told: bool,
}

/// The queue and its caller.
pub struct Done {
    state: Mutex<State>,
    wake: Arc<dyn Fn() + Send + Sync>,
    first: Notify,
}

impl Done {
    /// `wake` is called when there is something to drain.
    pub fn new(wake: Arc<dyn Fn() + Send + Sync>) -> Self {
        Self { state: Mutex::default(), wake, first: Notify::new() }
    }

    /// Adds a finished task. `busy` says that more are to be expected soon.
    pub fn push(&self, finished: Finished, busy: bool) {
        let (tell, first) = {
            let mut state = lock(&self.state);
            state.queue.push_back(finished);
            let tell = !state.told && (!busy || state.queue.len() >= BATCH);
            state.told |= tell;
            (tell, !state.told && state.queue.len() == 1)
        };
        if tell {
            (self.wake)();
        } else if first {
            self.first.notify_one();
        }
    }

    /// Takes up to `max`, oldest first. The caller is woken again only after it has taken everything.
    pub fn drain(&self, max: usize) -> Vec<Finished> {
        let mut state = lock(&self.state);
        let count = max.min(state.queue.len());
        let taken = state.queue.drain(..count).collect();
        if state.queue.is_empty() {
            state.told = false;
        }
        taken
    }

    /// Tasks not drained yet.
    pub fn len(&self) -> usize {
        lock(&self.state).queue.len()
    }

    /// Tells the caller of what lingers. Runs until the runtime ends.
    pub async fn keep_telling(&self) {
        loop {
            self.first.notified().await;
            tokio::time::sleep(LINGER).await;
            let tell = {
                let mut state = lock(&self.state);
                let tell = !state.told && !state.queue.is_empty();
                state.told |= tell;
                tell
            };
            if tell {
                (self.wake)();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::api::FinishedKind;

    fn finished() -> Finished {
        Finished { token: 0, task: Box::default(), attempts: Vec::new(), result: FinishedKind::Dropped }
    }

    fn done() -> (Arc<Done>, Arc<AtomicUsize>) {
        let woken = Arc::new(AtomicUsize::new(0));
        let count = woken.clone();
        (
            Arc::new(Done::new(Arc::new(move || {
                count.fetch_add(1, Ordering::SeqCst);
            }))),
            woken,
        )
    }

    #[test]
    fn an_idle_engine_tells_at_once_and_a_full_batch_too() {
        let (done, woken) = done();
        done.push(finished(), false);
        done.push(finished(), false);
        assert_eq!(woken.load(Ordering::SeqCst), 1);
        assert_eq!((done.drain(1).len(), done.drain(9).len(), done.len()), (1, 1, 0));
        for _ in 0..BATCH {
            assert_eq!(woken.load(Ordering::SeqCst), 1);
            done.push(finished(), true);
        }
        assert_eq!(woken.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn what_lingers_is_told_of_once() {
        let (done, woken) = done();
        let telling = tokio::spawn({
            let done = done.clone();
            async move { done.keep_telling().await }
        });
        for round in 1..=3 {
            for _ in 0..10 {
                done.push(finished(), true);
            }
            assert_eq!(woken.load(Ordering::SeqCst), round - 1);
            tokio::time::sleep(2 * LINGER).await;
            assert_eq!(woken.load(Ordering::SeqCst), round);
            assert_eq!(done.drain(100).len(), 10);
        }
        telling.abort();
    }
}
