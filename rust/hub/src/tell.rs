//! The hub's own messages, encoded from what they speak of. Made as messages first, those of one small job would be thirty allocations.

use bytes::BufMut;
use fetchbox_model::message::{JobState, LogLevel, ResourceOutcome};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use crate::job::JobRecord;

/// What a log line says of a thing.
#[derive(Debug, Clone, Copy)]
pub enum Said<'a> {
    /// In words.
    Text(&'a str),
    /// In numbers.
    Number(u64),
}

/// A line of a job's log at level info: a `JobLog`.
pub fn log(out: &mut Vec<u8>, job: &JobRecord, message: &str, fields: &[(&str, Said<'_>)], now_ms: u64) {
    text(out, 1, &job.facts.job_id);
    number(out, 3, LogLevel::Info as u64);
    text(out, 4, message);
    for (name, said) in fields {
        let mut digits = itoa::Buffer::new();
        let value = match said {
            Said::Text(text) => text,
            Said::Number(number) => digits.format(*number),
        };
        // An entry of a map is a message of its key and its value.
        let len = [name, value].into_iter().zip(1..).map(|(part, tag)| text_len(tag, part)).sum::<usize>();
        encode_key(5, WireType::LengthDelimited, out);
        encode_varint(len as u64, out);
        text(out, 1, name);
        text(out, 2, value);
    }
    number(out, 6, now_ms);
    text(out, 7, &job.facts.trace_id);
}

/// The state of a job without its outcomes: a `JobStatus`.
pub fn status(out: &mut Vec<u8>, job: &JobRecord, now_ms: u64) {
    let (facts, counts) = (&job.facts, &job.counts);
    text(out, 1, &facts.job_id);
    text(out, 2, &facts.job_type);
    number(out, 3, job.state() as u64);
    for (tag, count) in [(4, counts.total), (5, counts.stored), (6, counts.failed)] {
        number(out, tag, count & u64::from(u32::MAX));
    }
    text(out, 7, &facts.manifest_key);
    text(out, 8, &facts.tenant);
    if let Some(error) = &job.last_error {
        text(out, 9, &error.code);
        text(out, 10, &error.message);
    }
    number(out, 11, job.log_offset);
    number(out, 12, now_ms);
    for (tag, count) in [(16, counts.reused), (17, counts.filtered), (18, counts.cancelled)] {
        number(out, tag, count & u64::from(u32::MAX));
    }
}

/// That resources of a job failed: a `JobStatus` of a job in progress, with their outcomes.
pub fn failures(out: &mut Vec<u8>, job: &JobRecord, failed: &[ResourceOutcome], now_ms: u64) {
    text(out, 1, &job.facts.job_id);
    text(out, 2, &job.facts.job_type);
    number(out, 3, JobState::InProgress as u64);
    number(out, 4, job.counts.total & u64::from(u32::MAX));
    text(out, 7, &job.facts.manifest_key);
    text(out, 8, &job.facts.tenant);
    number(out, 12, now_ms);
    for outcome in failed {
        prost::encoding::message::encode(19, outcome, out);
    }
}

fn text(out: &mut Vec<u8>, tag: u32, value: &str) {
    if !value.is_empty() {
        encode_key(tag, WireType::LengthDelimited, out);
        encode_varint(value.len() as u64, out);
        out.put_slice(value.as_bytes());
    }
}

fn text_len(tag: u32, value: &str) -> usize {
    if value.is_empty() { 0 } else { key_len(tag) + encoded_len_varint(value.len() as u64) + value.len() }
}

fn number(out: &mut Vec<u8>, tag: u32, value: u64) {
    if value != 0 {
        encode_key(tag, WireType::Varint, out);
        encode_varint(value, out);
    }
}

#[cfg(test)]
mod tests {
    use fetchbox_model::message::{JobLog, JobStatus};
    use prost::Message;

    use super::*;
    use crate::frame::JobFacts;
    use crate::job::{Counts, LastError};

    fn record() -> JobRecord {
        let text = |name: &str| format!("{name} ü");
        let facts = JobFacts {
            job_id: text("id"),
            job_type: text("type"),
            tenant: text("tenant"),
            manifest_key: "m".repeat(300),
            trace_id: text("trace"),
            ..Default::default()
        };
        let counts = Counts { total: 1000, stored: 1, reused: 2, filtered: 3, failed: 4, cancelled: 5, bytes_stored: 6, replayed: 7 };
        let last_error = Some(LastError { code: "C".into(), message: "why".into(), ..Default::default() });
        JobRecord { facts, counts, last_error, log_offset: u64::MAX, ..Default::default() }
    }

    #[test]
    fn a_status_is_read_as_it_was_meant() {
        let mut out = Vec::new();
        status(&mut out, &record(), 1_700_000_000_000);
        let expected = JobStatus {
            job_id: "id ü".into(),
            job_type: "type ü".into(),
            state: JobState::InProgress as i32,
            resources_total: 1000,
            resources_completed: 1,
            resources_failed: 4,
            manifest_key: "m".repeat(300),
            tenant: "tenant ü".into(),
            last_error_code: "C".into(),
            last_error_message: "why".into(),
            log_offset: u64::MAX,
            timestamp_ms: 1_700_000_000_000,
            resources_reused: 2,
            resources_filtered: 3,
            resources_cancelled: 5,
            outcomes: Vec::new(),
        };
        assert_eq!((JobStatus::decode(&*out).unwrap(), &out), (expected.clone(), &expected.encode_to_vec()));
        let mut out = Vec::new();
        status(&mut out, &JobRecord::default(), 0);
        assert_eq!(JobStatus::decode(&*out).unwrap(), JobStatus { state: JobState::Completed as i32, ..Default::default() });
    }

    #[test]
    fn failures_are_read_as_they_were_meant() {
        let failed = [3, 5].map(|index| ResourceOutcome { resource_index: index, generation: 2, code: "C".into(), ..Default::default() });
        let mut out = Vec::new();
        failures(&mut out, &record(), &failed, 9);
        let expected = JobStatus {
            job_id: "id ü".into(),
            job_type: "type ü".into(),
            state: JobState::InProgress as i32,
            resources_total: 1000,
            manifest_key: "m".repeat(300),
            tenant: "tenant ü".into(),
            timestamp_ms: 9,
            outcomes: failed.to_vec(),
            ..Default::default()
        };
        assert_eq!(JobStatus::decode(&*out).unwrap(), expected);
    }

    #[test]
    fn a_log_line_is_read_as_it_was_meant() {
        let long = "x".repeat(200);
        let fields = [("state", Said::Text("ü")), ("n", Said::Number(u64::MAX)), ("none", Said::Text("")), ("long", Said::Text(&long))];
        let mut out = Vec::new();
        log(&mut out, &record(), "settled", &fields, 7);
        let told = [("state", "ü"), ("n", "18446744073709551615"), ("none", ""), ("long", &long)];
        let expected = JobLog {
            job_id: "id ü".into(),
            level: LogLevel::Info as i32,
            message: "settled".into(),
            fields: told.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            timestamp_ms: 7,
            trace_id: "trace ü".into(),
            ..Default::default()
        };
        assert_eq!(JobLog::decode(&*out).unwrap(), expected);
    }
}
