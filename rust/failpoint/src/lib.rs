//! Named points where tests may kill the process, as `kill -9` would.
//!
//! `fail_point!("hub::commit::before")` marks a moment; `fail_point!("hub::publish::before", topic)` one that has a subject. Without the feature
//! `enabled` both are nothing: not even their arguments are compiled.
//!
//! With it, a point asks the directory that the environment names in `FETCHBOX_FAILPOINTS`, which child processes inherit. A file with the point's
//! name arms it, at any time and for whichever process comes by:
//!
//! ```text
//! TOKEN N          the N-th hit, counted by each process from when it first sees this token, kills
//! SUBJECT          optional: only hits whose subject contains this count
//! again            optional: stays armed, and kills the next process too; else an arming kills exactly one
//! ```
//!
//! The process that dies leaves `hit/TOKEN.PID` in that directory.

/// Kills the process here if a test has armed this point.
#[cfg(feature = "enabled")]
#[macro_export]
macro_rules! fail_point {
    ($name:expr) => {
        $crate::enabled::hit($name, "")
    };
    ($name:expr, $subject:expr) => {
        $crate::enabled::hit($name, $subject)
    };
}

/// Nothing, in this build.
#[cfg(not(feature = "enabled"))]
#[macro_export]
macro_rules! fail_point {
    ($($anything:tt)*) => {};
}

#[cfg(feature = "enabled")]
pub mod enabled;

#[cfg(not(feature = "enabled"))]
const _: () = {
    // Compiles only while the points are nothing.
    fail_point!(there_is_no_such_name, and_no_such_subject);
};
