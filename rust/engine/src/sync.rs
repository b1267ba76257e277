//! Locks that go on after a panic elsewhere: the data they guard is valid after every statement.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, poisoned or not.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
