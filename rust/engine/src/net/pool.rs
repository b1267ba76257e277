//! Connections kept for the next request to the same origin.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::link::Link;
use crate::sync::lock;

/// How long a connection is kept; common servers close theirs after 15 to 75 s.
const KEEP: Duration = Duration::from_secs(14);

struct Idle {
    link: Link,
    since: Instant,
}

/// The idle connections, by origin.
pub struct Pool {
    max: usize,
    idle: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    count: usize,
    origins: HashMap<String, Vec<Idle>>,
}

impl Pool {
    /// Keeps at most `max` connections.
    pub fn new(max: usize) -> Self {
        Self { max, idle: Mutex::default() }
    }

    /// The most recently used connection to an origin; a shared one stays in the pool as well.
    pub fn take(&self, origin: &str, now: Instant) -> Option<Link> {
        let mut kept = lock(&self.idle);
        let list = kept.origins.get_mut(origin)?;
        let mut dropped = 0;
        let mut found = None;
        while let Some(idle) = list.pop() {
            dropped += 1;
            if idle.link.is_closed() || now.duration_since(idle.since) > KEEP {
                continue;
            }
            if let Some(shared) = idle.link.share() {
                list.push(Idle { link: shared, since: now });
                dropped -= 1;
            }
            found = Some(idle.link);
            break;
        }
        if list.is_empty() && found.is_none() {
            kept.origins.remove(origin);
        }
        kept.count -= dropped;
        found
    }

    /// Keeps a connection unless there are too many.
    pub fn put(&self, origin: &str, link: Link, now: Instant) {
        let mut kept = lock(&self.idle);
        if link.is_closed() || kept.count >= self.max {
            return;
        }
        if let Some(list) = kept.origins.get_mut(origin) {
            if matches!(link, Link::H2(_)) && list.iter().any(|idle| matches!(idle.link, Link::H2(_)) && !idle.link.is_closed()) {
                return;
            }
            list.push(Idle { link, since: now });
        } else {
            kept.origins.insert(origin.to_owned(), vec![Idle { link, since: now }]);
        }
        kept.count += 1;
    }

    /// Drops what was not used for long.
    pub fn sweep(&self, now: Instant) {
        let mut kept = lock(&self.idle);
        let mut count = 0;
        kept.origins.retain(|_, list| {
            list.retain(|idle| now.duration_since(idle.since) <= KEEP && !idle.link.is_closed());
            count += list.len();
            !list.is_empty()
        });
        kept.count = count;
    }

    /// Connections kept.
    pub fn len(&self) -> usize {
        lock(&self.idle).count
    }
}
