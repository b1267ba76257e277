//! How long an attempt is waited for: without a byte, below the lowest speed, and in all.
//!
//! One timer serves all three, and all attempts of a lane one after the other. It is moved only when it fires, because moving it with every piece of
//! every body would cost more than the piece; one that fires too early only looks at the limits again.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use fetchbox_model::failure::Code;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::failure::Failure;

/// The limits of one attempt.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Without a byte.
    pub read: Duration,
    /// The attempt's end, and whether it is the task's deadline.
    pub end: Option<(Instant, bool)>,
    /// Bytes per second over a window of the read time-out; 0 for none.
    pub min_speed: u64,
}

/// A timer that is used again and again.
pub struct Timer(Pin<Box<Sleep>>);

impl Timer {
    /// Armed by whoever waits first.
    pub fn new() -> Self {
        Self(Box::pin(sleep_until(Instant::now())))
    }
}

/// What one attempt waits with.
pub struct Patience<'a> {
    limits: Limits,
    timer: &'a mut Timer,
    last: Instant,
    window: Option<(Instant, u64)>,
    bytes: u64,
}

impl<'a> Patience<'a> {
    /// Starts to wait.
    pub fn new(limits: Limits, timer: &'a mut Timer) -> Self {
        let patience = Self { limits, timer, last: Instant::now(), window: None, bytes: 0 };
        let next = patience.next();
        if patience.timer.0.deadline() > next {
            patience.timer.0.as_mut().reset(next);
        }
        patience
    }

    /// Something came.
    pub fn progress(&mut self, bytes: u64) {
        self.last = Instant::now();
        self.bytes += bytes;
    }

    /// A body begins: from now on its speed counts.
    pub fn begin_body(&mut self) {
        self.last = Instant::now();
        if self.limits.min_speed > 0 {
            self.window = Some((self.last, self.bytes));
        }
    }

    /// Time that was spent waiting for our own store does not count against the origin.
    pub fn excuse(&mut self, waited: Duration) {
        self.last = Instant::now();
        if let Some((start, _)) = &mut self.window {
            *start += waited;
        }
    }

    /// Waits on our own account, which does not count against the origin; but the attempt's end comes all the same.
    pub async fn pause(&mut self, until: Instant) -> Result<(), Failure> {
        let started = Instant::now();
        sleep_until(self.limits.end.map_or(until, |(end, _)| end.min(until))).await;
        self.excuse(started.elapsed());
        self.verdict(Instant::now()).map_or(Ok(()), Err)
    }

    fn next(&self) -> Instant {
        let window = self.window.map(|(start, _)| start + self.limits.read);
        let end = self.limits.end.map(|(end, _)| end);
        [window, end].into_iter().flatten().fold(self.last + self.limits.read, Instant::min)
    }

    fn verdict(&mut self, now: Instant) -> Option<Failure> {
        if let Some((end, is_deadline)) = self.limits.end
            && now >= end
        {
            let (code, what) = if is_deadline {
                (Code::DownloadExpired, "the task's deadline passed")
            } else {
                (Code::DownloadTimeout, "total_timeout passed")
            };
            return Some(Failure::new(code, what));
        }
        if now >= self.last + self.limits.read {
            return Some(Failure::new(Code::DownloadTimeout, format!("no byte for {} s", self.limits.read.as_secs_f64())));
        }
        if let Some((start, before)) = self.window
            && now >= start + self.limits.read
        {
            let speed = (self.bytes - before) as f64 / (now - start).as_secs_f64();
            if speed < self.limits.min_speed as f64 {
                return Some(Failure::new(Code::DownloadTooSlow, format!("{speed:.0} bytes/s over {} s", (now - start).as_secs())));
            }
            self.window = Some((now, self.bytes));
        }
        None
    }

    /// Ready when patience has run out.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Failure> {
        while self.timer.0.as_mut().poll(cx).is_ready() {
            if let Some(failure) = self.verdict(Instant::now()) {
                return Poll::Ready(failure);
            }
            let next = self.next();
            self.timer.0.as_mut().reset(next);
        }
        Poll::Pending
    }

    /// Waits for `future`, but no longer than patience lasts.
    pub async fn wait<F: Future>(&mut self, future: F) -> Result<F::Output, Failure> {
        let mut future = std::pin::pin!(future);
        std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending => self.poll(cx).map(Err),
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(read: u64, end: Option<u64>, min_speed: u64) -> Limits {
        Limits { read: Duration::from_secs(read), end: end.map(|end| (Instant::now() + Duration::from_secs(end), false)), min_speed }
    }

    async fn fails_after(patience: &mut Patience<'_>) -> (Code, u64) {
        let started = Instant::now();
        let failure = patience.wait(std::future::pending::<()>()).await.unwrap_err();
        (failure.code, started.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_it_and_bytes_prolong_it() {
        let mut timer = Timer::new();
        let mut patience = Patience::new(limits(10, None, 0), &mut timer);
        assert_eq!(fails_after(&mut patience).await, (Code::DownloadTimeout, 10));
        let mut patience = Patience::new(limits(10, None, 0), &mut timer);
        tokio::time::advance(Duration::from_secs(6)).await;
        patience.progress(1);
        assert_eq!(fails_after(&mut patience).await, (Code::DownloadTimeout, 10));
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_comes_whatever_happens() {
        let mut timer = Timer::new();
        let mut patience = Patience::new(limits(100, Some(7), 0), &mut timer);
        assert_eq!(fails_after(&mut patience).await, (Code::DownloadTimeout, 7));
        let limits = Limits { end: Some((Instant::now() + Duration::from_secs(3), true)), ..limits(100, None, 0) };
        let mut patience = Patience::new(limits, &mut timer);
        assert_eq!(fails_after(&mut patience).await, (Code::DownloadExpired, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn our_own_pauses_count_only_against_the_end() {
        let mut timer = Timer::new();
        let mut patience = Patience::new(limits(10, Some(100), 50), &mut timer);
        patience.begin_body();
        let in_a_minute = Instant::now() + Duration::from_secs(60);
        assert!(patience.pause(in_a_minute).await.is_ok());
        assert_eq!(Instant::now(), in_a_minute);
        let failure = patience.pause(in_a_minute + Duration::from_secs(60)).await.unwrap_err();
        assert_eq!((failure.code, in_a_minute.elapsed().as_secs()), (Code::DownloadTimeout, 40));
        let mut timer = Timer::new();
        let mut patience = Patience::new(limits(10, None, 0), &mut timer);
        assert!(patience.pause(Instant::now() + Duration::from_secs(60)).await.is_ok());
        assert_eq!(fails_after(&mut patience).await, (Code::DownloadTimeout, 10));
    }

    #[tokio::test(start_paused = true)]
    async fn too_few_bytes_in_a_window_are_too_slow() {
        let mut timer = Timer::new();
        let mut patience = Patience::new(limits(10, None, 100), &mut timer);
        patience.begin_body();
        for _ in 0..9 {
            let tick = patience.wait(tokio::time::sleep(Duration::from_secs(1))).await;
            assert!(tick.is_ok());
            patience.progress(1);
        }
        assert_eq!(fails_after(&mut patience).await, (Code::DownloadTooSlow, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_armed_by_the_attempt_before_neither_ends_the_next_one_early_nor_late() {
        let mut timer = Timer::new();
        let mut before = Patience::new(limits(10, None, 0), &mut timer);
        assert!(before.wait(tokio::time::sleep(Duration::from_secs(9))).await.is_ok());
        assert_eq!(fails_after(&mut Patience::new(limits(10, None, 0), &mut timer)).await, (Code::DownloadTimeout, 10));
        let mut before = Patience::new(limits(10, None, 0), &mut timer);
        assert!(before.wait(tokio::time::sleep(Duration::from_secs(1))).await.is_ok());
        assert_eq!(fails_after(&mut Patience::new(limits(2, None, 0), &mut timer)).await, (Code::DownloadTimeout, 2));
    }
}
