//! Whether and when a failed attempt is followed by another. Pure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fetchbox_model::failure::Code;

/// What the configuration says about attempts.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Attempts, the first counted.
    pub max_attempts: u32,
    /// Ceiling of the first back-off.
    pub base: Duration,
    /// Ceiling of every back-off.
    pub max: Duration,
    /// Longest Retry-After that is honoured as it stands.
    pub retry_after_max: Duration,
    /// Whether tasks outlast a full store and a worker without descriptors or memory: they are not the task's failure, and pass.
    pub outlast_full_store: bool,
}

/// A failed attempt.
#[derive(Debug, Clone, Copy)]
pub struct Failed {
    /// Its code.
    pub code: Code,
    /// Attempts made, this one included.
    pub attempts: u32,
    /// What the origin asked for.
    pub retry_after: Option<Duration>,
    /// Time until the task's deadline, if it has one.
    pub deadline: Option<Duration>,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Try again after so long.
    Again(Duration),
    /// Settle it as failed.
    Fail,
}

/// Exponential back-off with full jitter (`random` in 0..1); Retry-After wins over it, cut to its maximum.
pub fn decide(failed: Failed, rules: Rules, random: f64) -> Decision {
    let outlast = rules.outlast_full_store && matches!(failed.code, Code::StorageFull | Code::SystemResources);
    if !failed.code.is_retryable() || (failed.attempts >= rules.max_attempts && !outlast) {
        return Decision::Fail;
    }
    let delay = match failed.retry_after {
        Some(asked) => asked.min(rules.retry_after_max),
        None => {
            let doubled = rules.base.as_secs_f64() * 2f64.powi(failed.attempts.saturating_sub(1).min(32) as i32);
            Duration::from_secs_f64(doubled.min(rules.max.as_secs_f64()) * random.clamp(0.0, 1.0))
        }
    };
    match failed.deadline {
        Some(left) if delay >= left => Decision::Fail,
        _ => Decision::Again(delay),
    }
}

/// A Retry-After header's wait: seconds or an HTTP date (past ones are zero); `None` for what is neither.
pub fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        // Too many digits for a number is still a plain wish for "very long".
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::from(u32::MAX))).min(Duration::from_secs(u64::from(u32::MAX))));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    let left = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Some(left(date).saturating_sub(left(now)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules {
        max_attempts: 5,
        base: Duration::from_secs(1),
        max: Duration::from_secs(6),
        retry_after_max: Duration::from_secs(3600),
        outlast_full_store: false,
    };

    fn failed(code: Code, attempts: u32) -> Failed {
        Failed { code, attempts, retry_after: None, deadline: None }
    }

    #[test]
    fn every_code_follows_its_class_until_attempts_run_out() {
        for code in Code::ALL {
            for attempts in 1..=6 {
                let again = decide(failed(*code, attempts), RULES, 0.5) != Decision::Fail;
                assert_eq!(again, code.is_retryable() && attempts < 5, "{code} after {attempts}");
            }
        }
    }

    /// The document is what operators go by, so each of its rows is decided on.
    #[test]
    fn every_row_of_the_document_is_decided_as_it_says() {
        let text = include_str!("../../../docs/failures.md");
        let rows: Vec<Vec<&str>> =
            text.lines().filter(|line| line.starts_with("| `")).map(|line| line.split('|').map(str::trim).collect()).collect();
        assert_eq!(rows.len(), Code::ALL.len());
        for row in rows {
            let code: Code = row[1].trim_matches('`').parse().unwrap();
            let expected = match row[2] {
                "retryable" => Decision::Again(RULES.max),
                "permanent" => Decision::Fail,
                other => panic!("{code}: {other:?} is no class"),
            };
            assert_eq!(decide(failed(code, 4), RULES, 1.0), expected, "{code}");
            assert_eq!(decide(failed(code, 5), RULES, 1.0), Decision::Fail, "{code}, the last attempt");
        }
    }

    #[test]
    fn a_service_outlasts_its_own_machines_troubles_and_nothing_else() {
        let rules = Rules { outlast_full_store: true, ..RULES };
        for code in [Code::StorageFull, Code::SystemResources] {
            assert_eq!(decide(failed(code, 500), rules, 1.0), Decision::Again(RULES.max));
            assert_eq!(decide(failed(code, 500), RULES, 1.0), Decision::Fail);
        }
        assert_eq!(decide(failed(Code::DownloadReset, 500), rules, 1.0), Decision::Fail);
    }

    /// | attempts | random | wait |
    #[test]
    fn table_of_backoff() {
        let table = [(1, 0.0, 0), (1, 1.0, 1000), (2, 1.0, 2000), (3, 1.0, 4000), (4, 1.0, 6000), (2, 0.25, 500)];
        for (attempts, random, millis) in table {
            let got = decide(failed(Code::DownloadReset, attempts), RULES, random);
            assert_eq!(got, Decision::Again(Duration::from_millis(millis)), "{attempts} {random}");
        }
        let many = Rules { max_attempts: 10_000, ..RULES };
        assert_eq!(decide(failed(Code::DownloadReset, 9_000), many, 1.0), Decision::Again(RULES.max));
    }

    /// | Retry-After | deadline in | decision |
    #[test]
    fn table_of_retry_after_and_deadline() {
        let seconds = Duration::from_secs;
        let table = [
            (Some(7), None, Decision::Again(seconds(7))),
            (Some(0), None, Decision::Again(seconds(0))),
            (Some(10 * 365 * 86_400), None, Decision::Again(seconds(3600))),
            (Some(7), Some(8), Decision::Again(seconds(7))),
            (Some(7), Some(7), Decision::Fail),
            (None, Some(0), Decision::Fail),
        ];
        for (retry_after, deadline, expected) in table {
            let input =
                Failed { retry_after: retry_after.map(seconds), deadline: deadline.map(seconds), ..failed(Code::DownloadHttp429, 1) };
            assert_eq!(decide(input, RULES, 0.5), expected, "{retry_after:?} {deadline:?}");
        }
    }

    /// | header | wait |
    #[test]
    fn table_of_retry_after_headers() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let table = [
            ("120", Some(120)),
            (" 5 ", Some(5)),
            ("0", Some(0)),
            ("99999999999999999999999999", Some(u64::from(u32::MAX))),
            ("-5", None),
            ("1.5", None),
            ("soon", None),
            ("", None),
            ("Sun, 09 Sep 2001 01:46:50 GMT", Some(10)),
            ("Sun, 09 Sep 2001 01:46:30 GMT", Some(0)),
            ("Sunday, 09-Sep-01 01:46:50 GMT", Some(10)),
        ];
        for (header, seconds) in table {
            assert_eq!(parse_retry_after(header, now), seconds.map(Duration::from_secs), "{header:?}");
        }
    }
}
