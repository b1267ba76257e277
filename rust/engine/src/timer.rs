//! Wakes the scheduler when something is due, and sweeps idle connections.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;

use crate::core::Core;
use crate::sync::lock;

/// How often idle connections and tasks that stand still are looked through.
const SWEEP: Duration = Duration::from_secs(5);
/// The same for the latter while many wait: then nobody comes in who would make the engine look.
const CROWDED: Duration = Duration::from_millis(250);

impl Core {
    /// Asks to be woken at `at`, or earlier.
    pub fn arm(&self, at: Option<Instant>) {
        let Some(at) = at else { return };
        let mut armed = lock(&self.armed);
        if armed.is_none_or(|armed| at < armed) {
            *armed = Some(at);
            self.rearm.notify_one();
        }
    }

    /// Starts what is due when it is due. Runs until the runtime ends.
    pub async fn keep_time(self: Arc<Self>) {
        let mut sweep = tokio::time::interval(SWEEP);
        let mut crowded = tokio::time::interval(CROWDED);
        crowded.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let at = *lock(&self.armed);
            let due = async {
                match at {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {
                    *lock(&self.armed) = None;
                    self.pump();
                }
                () = self.rearm.notified() => {}
                _ = crowded.tick(), if self.is_crowded() => self.hand_on(),
                _ = sweep.tick() => {
                    self.pool.sweep(Instant::now());
                    self.hand_on();
                }
            }
        }
    }
}
