//! The wire form of messages, byte by byte: `messages.hex` is read by the Python tests too, so that both languages agree.
//!
//! After a wanted change of `proto/jobs.proto` the assertion prints the new line.

use fetchbox_model::message::{
    DeadLetterTask, DownloadTask, HttpHeader, JobLog, JobState, JobStatus, LogLevel, ProxyHint, ResourceOutcome, ResourceState,
    StorageHint, TaskAttributes, Timings,
};
use prost::Message;
use std::collections::BTreeMap;

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
}

fn task() -> DownloadTask {
    DownloadTask {
        job_id: "0192f5c2-7d3a-7b1e-8c4d-1234567890ab".into(),
        job_type: "default".into(),
        resource_id: "../é".into(),
        url: "https://example.com/a.jpg".into(),
        headers: vec![HttpHeader { name: "referer".into(), value: "https://example.com/".into() }],
        proxy_hint: Some(ProxyHint { primary_pool: "fast".into(), fallbacks: vec!["slow".into(), "last".into()] }),
        storage_hint: Some(StorageHint {
            bucket: "b".into(),
            key_prefix: "p".into(),
            metadata: map(&[("a", "1"), ("b", "2")]),
            key: "k/1".into(),
        }),
        attributes: Some(TaskAttributes {
            tags: map(&[("checksum_hint", "md5:00")]),
            checksum_hint: "md5:00".into(),
            mime_hint: "image/jpeg".into(),
            extra: vec![0, 255].into(),
        }),
        manifest_key: "file:///m.json".into(),
        attempt: 1,
        tenant: "acme".into(),
        trace_id: "4bf92f3577b34da6a3ce929d0e0e4736".into(),
        resource_index: 300,
        resources_total: 1000,
        generation: 2,
        not_before_ms: 1_700_000_000_000,
        deadline_ms: u64::MAX,
        traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into(),
    }
}

fn outcome() -> ResourceOutcome {
    ResourceOutcome {
        resource_id: "r".into(),
        resource_index: 7,
        generation: 1,
        state: ResourceState::Failed.into(),
        code: "DOWNLOAD_TRUNCATED".into(),
        message: "m".into(),
        http_status: 200,
        final_url: "https://example.com/b".into(),
        redirects: 1,
        attempts: 5,
        proxy: "fast".into(),
        size: 1 << 40,
        sha256: vec![0xab; 32].into(),
        etag: "\"e\"".into(),
        last_modified: "Mon, 23 Nov 2026 12:00:00 GMT".into(),
        content_type: "text/html".into(),
        sniffed_type: "image/png".into(),
        storage_url: "s3://b/k%2525".into(),
        storage_etag: "s".into(),
        timings: Some(Timings { dns: 1, connect: 2, tls: 3, first_byte: 4, body: 5, store: 6, queued: 7 }),
        finished_at_ms: 1_700_000_000_001,
        task: Some(task()),
        context: map(&[("url", "https://example.com/a.jpg")]),
        reuse_key: vec![0xcd; 32].into(),
    }
}

fn status() -> JobStatus {
    JobStatus {
        job_id: "j".into(),
        job_type: "t".into(),
        state: JobState::InProgress.into(),
        resources_total: 10,
        resources_completed: 1,
        resources_failed: 2,
        manifest_key: "k".into(),
        tenant: "n".into(),
        last_error_code: "C".into(),
        last_error_message: "M".into(),
        log_offset: 11,
        timestamp_ms: 12,
        resources_reused: 3,
        resources_filtered: 4,
        resources_cancelled: 0,
        outcomes: vec![ResourceOutcome { resource_id: "r".into(), ..Default::default() }],
    }
}

fn log() -> JobLog {
    JobLog {
        job_id: "j".into(),
        resource_id: String::new(),
        level: LogLevel::Warn.into(),
        message: "accepted".into(),
        fields: map(&[("z", "1"), ("a", "2")]),
        timestamp_ms: 5,
        trace_id: "t".into(),
    }
}

fn dead() -> DeadLetterTask {
    DeadLetterTask {
        task: Some(task()),
        failure_code: "C".into(),
        failure_message: "M".into(),
        attempts: 5,
        failed_at_ms: 6,
        context: map(&[("host", "h")]),
    }
}

fn line(name: &str, message: &impl Message) -> String {
    let hex: String = message.encode_to_vec().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{name} {hex}")
}

#[test]
fn the_bytes_are_those_of_the_sample() {
    let lines = [
        line("DownloadTask", &task()),
        line("ResourceOutcome", &outcome()),
        line("JobStatus", &status()),
        line("JobLog", &log()),
        line("DeadLetterTask", &dead()),
    ];
    let sample: Vec<&str> = include_str!("messages.hex").lines().collect();
    assert_eq!(lines.iter().map(String::as_str).collect::<Vec<_>>(), sample, "\n{}\n", lines.join("\n"));
}

#[test]
fn an_empty_message_is_no_bytes_and_unknown_fields_are_passed_over() {
    assert_eq!(DownloadTask::default().encode_to_vec(), Vec::<u8>::new());
    let mut bytes = log().encode_to_vec();
    // Field 100, a varint.
    bytes.extend([0xa0, 0x06, 0x01]);
    assert_eq!(JobLog::decode(bytes.as_slice()), Ok(log()));
}
