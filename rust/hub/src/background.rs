//! The hub's own threads beside the writer.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use crate::core::Core;
use crate::direct::Closer;
use crate::error::HubError;
use crate::keep;
use crate::manifests;
use crate::reclaim;
use crate::reply::Reply;
use crate::retention::Retainer;
use crate::retry_mover::Mover;
use crate::writer::Command;

/// How often everything is looked after.
const TICK: Duration = Duration::from_secs(1);
/// The share of a file system that is kept free, and the most that is kept.
const RESERVE_SHARE: f64 = 0.02;
const RESERVE_MOST: u64 = 64 << 20;
/// Descriptors that are kept free for the database's own files.
const SPARE_DESCRIPTORS: u64 = 32;

/// Wakes a thread, or ends it.
#[derive(Debug, Default)]
pub struct Signal {
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Signal {
    /// There is something to do.
    pub fn notify(&self) {
        self.state.lock().1 = true;
        self.changed.notify_all();
    }

    /// The thread is to end.
    pub fn close(&self) {
        self.state.lock().0 = true;
        self.changed.notify_all();
    }

    /// Whether the thread is to end.
    pub fn closed(&self) -> bool {
        self.state.lock().0
    }

    /// Waits the time, whatever is notified meanwhile, but not once the thread is to end.
    pub fn rest(&self, time: Duration) {
        let mut state = self.state.lock();
        let until = Instant::now() + time;
        while !state.0 && !self.changed.wait_until(&mut state, until).timed_out() {}
    }

    /// Waits for a notification or the time; false when the thread is to end.
    pub fn wait(&self, timeout: Duration) -> bool {
        let mut state = self.state.lock();
        if !state.0 && !state.1 {
            self.changed.wait_for(&mut state, timeout);
        }
        state.1 = false;
        !state.0
    }
}

impl Core {
    /// Asks the writer from a plain thread and waits for the answer.
    pub fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, HubError> {
        let closed = || HubError::Unavailable("the hub is closing".into());
        let (reply, answer) = oneshot::channel();
        self.commands.blocking_send(command(Reply::Waiting(reply))).map_err(|_| closed())?;
        answer.blocking_recv().map_err(|_| closed())?
    }
}

/// What a thread runs.
pub type Work = fn(&Arc<Core>);

/// The threads by name.
pub fn tasks() -> [(&'static str, Work); 4] {
    [("hub-upkeep", upkeep), ("hub-manifests", manifests::run), ("hub-keeper", keep::run), ("hub-reclaim", reclaim::run)]
}

fn upkeep(core: &Arc<Core>) {
    let mut mover = Mover::default();
    let mut retainer = Retainer::default();
    let mut closer = Closer::default();
    loop {
        check_space(core);
        let now = core.clock.elapsed();
        let moved: Vec<u8> = core.groups.lock().iter_mut().filter_map(|((topic, _), group)| group.tick(now).then_some(*topic)).collect();
        for topic in moved.into_iter().filter_map(fetchbox_model::stream::Topic::from_id) {
            core.wake(topic);
        }
        core.metrics.disk_bytes.store(core.db.disk_bytes(), Ordering::Relaxed);
        // Looked at also when nobody asks, so that it is known since when something is as it is.
        crate::health::look(core);
        // A failed step is tried again at the next tick; what is fatal the writer has noticed itself.
        let _ = mover.step(core);
        let _ = retainer.step(core);
        let _ = closer.step(core);
        if let Err(error) = core.db.bound_journal() {
            core.die(error.0);
        }
        if !core.upkeep.wait(TICK) {
            return;
        }
    }
}

/// Refuses new work while the file system has less space than is kept in reserve.
fn check_space(core: &Core) {
    if let Some(spare) = spare(core) {
        core.full.store(spare < 0, Ordering::Relaxed);
    }
    if let Some((free, total)) = core.config.store_root.as_deref().and_then(space) {
        core.store_full.store(free < share(total), Ordering::Relaxed);
    }
    core.short.store(descriptors_left() < SPARE_DESCRIPTORS, Ordering::Relaxed);
}

/// Bytes that are kept free on a file system of this size.
fn share(total: u64) -> u64 {
    RESERVE_MOST.min((total as f64 * RESERVE_SHARE) as u64)
}

/// Bytes that the file system of the ledger has free beside what is kept in reserve; less than none when that is touched.
pub fn spare(core: &Core) -> Option<i64> {
    let (free, total) = space(&core.config.path)?;
    let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    Some(signed(free) - signed(core.config.reserve_bytes.unwrap_or_else(|| share(total))))
}

/// How many more files this process may open.
fn descriptors_left() -> u64 {
    let open = match std::fs::read_dir("/proc/self/fd") {
        // The listing's own descriptor is one of them.
        Ok(listing) => (listing.count() as u64).saturating_sub(1),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => return 0,
        // Without /proc nobody knows.
        Err(_) => return u64::MAX,
    };
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is what getrlimit fills.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return u64::MAX;
    }
    limit.rlim_cur.saturating_sub(open)
}

/// Free and total bytes of a file system.
fn space(path: &std::path::Path) -> Option<(u64, u64)> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path is NUL-terminated and `stat` has the size statvfs fills; it is read only when that succeeded.
    let stat = unsafe {
        if libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) != 0 {
            return None;
        }
        stat.assume_init()
    };
    Some((stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize))
}
