//! URLs that kill the process which fetches them: compiled in for tests only.

use std::sync::OnceLock;

/// Names the marker of URLs whose download aborts the process, as a defect in native code would.
const ABORT: &str = "FAILPOINT_ABORT_URL";
/// Names the marker of URLs whose download gets the process killed from outside, as the kernel does when memory runs out.
const KILL: &str = "FAILPOINT_KILL_URL";

/// Ends the process if the URL is marked.
pub fn check(url: &str) {
    static MARKERS: OnceLock<[Option<String>; 2]> = OnceLock::new();
    #[expect(clippy::disallowed_methods, reason = "not configuration: tests reach child processes through the environment")]
    let [abort, kill] = MARKERS.get_or_init(|| [ABORT, KILL].map(|name| std::env::var(name).ok()));
    if abort.as_ref().is_some_and(|marker| url.contains(marker)) {
        std::process::abort();
    }
    if kill.as_ref().is_some_and(|marker| url.contains(marker)) {
        // SAFETY: a signal to this very process.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    }
}
