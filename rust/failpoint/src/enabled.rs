//! The points of a test build.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

/// The directory that arms points.
pub const VARIABLE: &str = "FETCHBOX_FAILPOINTS";

/// What arms a point.
#[derive(Debug, PartialEq, Eq)]
struct Arming<'a> {
    token: &'a str,
    hit: u64,
    subject: &'a str,
    again: bool,
}

/// `None` for a text that arms nothing.
fn parse(text: &str) -> Option<Arming<'_>> {
    let mut lines = text.lines();
    let (token, hit) = lines.next()?.split_once(' ')?;
    let hit = hit.trim().parse().ok()?;
    Some(Arming { token, hit, subject: lines.next().unwrap_or_default(), again: lines.next() == Some("again") })
}

/// Counts a hit of the point, and ends the process if it is the one that was asked for.
pub fn hit(name: &str, subject: &str) {
    static DIRECTORY: OnceLock<Option<PathBuf>> = OnceLock::new();
    // Test builds have no configuration for this, and a release build has no such code.
    #[allow(clippy::disallowed_methods)]
    let directory = DIRECTORY.get_or_init(|| std::env::var_os(VARIABLE).map(PathBuf::from));
    if let Some(directory) = directory {
        // Held until the end: another thread must not use up another arming while this process dies already.
        static DYING: Mutex<()> = Mutex::new(());
        let _gate = DYING.lock().unwrap_or_else(PoisonError::into_inner);
        if is_due(directory, name, subject) {
            die();
        }
    }
}

/// Whether this hit is the one; it is journaled then, and the arming used up.
fn is_due(directory: &Path, name: &str, subject: &str) -> bool {
    static SEEN: Mutex<Option<HashMap<String, (String, u64)>>> = Mutex::new(None);
    let armed = directory.join(name);
    let text = match fs::read_to_string(&armed) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return false,
        Err(error) => {
            eprintln!("fetchbox: the fail point {} cannot be read: {error}", armed.display());
            return false;
        }
    };
    let Some(arming) = parse(&text) else { return false };
    if !subject.contains(arming.subject) {
        return false;
    }
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    let count = seen.get_or_insert_default().entry(armed.to_string_lossy().into_owned()).or_default();
    if count.0 != arming.token {
        *count = (arming.token.to_owned(), 0);
    }
    count.1 += 1;
    if count.1 != arming.hit {
        return false;
    }
    let journal = directory.join("hit");
    let entry = journal.join(format!("{}.{}", arming.token, std::process::id()));
    // Of several processes that are due at once, the one whose rename succeeds dies.
    let journaled =
        fs::create_dir_all(&journal).and_then(|()| if arming.again { fs::write(&entry, &text) } else { fs::rename(&armed, &entry) });
    journaled.is_ok()
}

/// The end without any cleaning up: no handler runs, no buffer is flushed, no other thread goes on.
fn die() -> ! {
    // SAFETY: plain system calls on this very process; the signal takes effect before the second one returns.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_of_armings() {
        let table = [
            ("t 3\n", Some(("t", 3, "", false))),
            ("t 1\njobs.logs\n", Some(("t", 1, "jobs.logs", false))),
            ("t 1\n\nagain\n", Some(("t", 1, "", true))),
            ("", None),
            ("t", None),
            ("t x", None),
        ];
        for (text, expected) in table {
            let parsed = parse(text).map(|a| (a.token, a.hit, a.subject, a.again));
            assert_eq!(parsed, expected, "{text:?}");
        }
    }

    #[test]
    fn one_arming_is_due_once_at_its_hit_and_a_new_token_counts_anew() {
        let dir = tempfile::tempdir().unwrap();
        let due = |subject: &str| is_due(dir.path(), "p", subject);
        let arm = |text: &str| fs::write(dir.path().join("p"), text).unwrap();
        assert!(!due(""));
        arm("a 3\n");
        assert_eq!([due(""), due(""), due(""), due("")], [false, false, true, false]);
        assert!(dir.path().join("hit").join(format!("a.{}", std::process::id())).exists());
        arm("b 1\nred\n");
        assert_eq!([due("blue"), due("a red one"), due("red")], [false, true, false]);
        arm("c 1\n\nagain\n");
        // It would be dead by now; the next process counts by itself and meets the same.
        assert_eq!([due(""), due("")], [true, false]);
        assert!(dir.path().join("p").exists());
    }
}
