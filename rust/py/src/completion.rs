//! A queue of finished calls behind one eventfd: natives push from any thread, the Python loop is woken once and takes all.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;

/// An eventfd: readable while something waits.
#[derive(Debug)]
pub struct Wakeup(OwnedFd);

impl Wakeup {
    /// A new one, not readable yet.
    pub fn new() -> PyResult<Self> {
        // SAFETY: eventfd has no preconditions; a non-negative result is a descriptor that nobody else owns.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(PyOSError::new_err(std::io::Error::last_os_error().to_string()));
        }
        // SAFETY: see above.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Makes it readable.
    pub fn notify(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: the buffer is 8 bytes as eventfd asks. A full counter means that it is readable already.
        unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Makes it unreadable.
    pub fn reset(&self) {
        let mut counter = [0u8; 8];
        // SAFETY: the buffer is 8 bytes as eventfd asks; EAGAIN means that it was not readable.
        unsafe { libc::read(self.0.as_raw_fd(), counter.as_mut_ptr().cast(), counter.len()) };
    }

    /// The descriptor to watch.
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Finished calls in the order they finished.
#[derive(Debug)]
pub struct Queue<T> {
    items: Mutex<Vec<T>>,
    wakeup: Wakeup,
}

impl<T> Queue<T> {
    pub fn new() -> PyResult<Self> {
        Ok(Self { items: Mutex::new(Vec::new()), wakeup: Wakeup::new()? })
    }

    /// Adds an item; wakes the reader when it is the first.
    pub fn push(&self, item: T) {
        let mut items = lock(&self.items);
        items.push(item);
        if items.len() == 1 {
            self.wakeup.notify();
        }
    }

    /// Takes everything.
    pub fn take(&self) -> Vec<T> {
        let mut items = lock(&self.items);
        self.wakeup.reset();
        std::mem::take(&mut items)
    }

    pub fn fd(&self) -> RawFd {
        self.wakeup.fd()
    }
}

/// A lock whose holder panicked guards plain data that is still whole.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
