//! What strangers' bytes go through, one function a kind of input: each takes any bytes and fails on an assertion when something is not as it must be.
//!
//! `rust/fuzz` drives them with libFuzzer; the test below runs them over the seeds of `rust/fuzz/seeds` and what a few edits make of those, the same
//! in every run. Compiled for tests and with the feature `fuzzing` only.

use std::net::IpAddr;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fetchbox_model::batch;
use fetchbox_model::failure::{Code, Family};
use fetchbox_model::key::{KeyTemplate, ObjectKey};
use fetchbox_model::manifest::{CompileContext, Limits, compile, parse};
use fetchbox_model::message::{DownloadTask, HttpHeader};
use url::{Host, Url};

use crate::config::EngineConfig;
use crate::fetch::request::Headers;
use crate::profile::{Profile, Profiles};
use crate::redirect::{check_scheme, next_hop};
use crate::resume::{Answer, Partial, judge, parse_content_range, plan};
use crate::retry::{Decision, Failed, Rules, decide, parse_retry_after};
use crate::verify::{Hasher, Hint, to_hex};

mod response;

pub use response::response_heads;

/// A function that takes any bytes and must not panic.
pub type Target = fn(&[u8]);

/// Every target by its name.
pub const TARGETS: [(&str, Target); 6] = [
    ("urls", urls),
    ("response_heads", response_heads),
    ("content_range", content_range),
    ("retry_after", retry_after),
    ("checksum_hints", checksum_hints),
    ("manifests", manifests),
];

/// The settings of a job type without any.
fn profile() -> &'static Profile {
    static PROFILES: OnceLock<Option<Profiles>> = OnceLock::new();
    let profiles = PROFILES.get_or_init(|| {
        let mut config = EngineConfig::default();
        // Nobody is asked.
        config.fetch.dns_servers = vec!["127.0.0.1".to_owned()];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
        let profiles = runtime.block_on(async { Profiles::new(&config, 0) });
        runtime.shutdown_background();
        profiles.ok()
    });
    assert!(profiles.is_some(), "the default configuration is good");
    match profiles {
        Some(profiles) => profiles.of(""),
        None => unreachable!(),
    }
}

/// A URL as a task's own and as a redirect's Location.
pub fn urls(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(url) = Url::parse(&text)
        && check_scheme(&url).is_ok()
    {
        fetchable(&url);
    }
    let Ok(base) = Url::parse("https://origin.example/dir/page?q=1") else { return };
    let visited = [base];
    match next_hop(&visited, Some(&text), 10) {
        Ok(next) => {
            assert!(matches!(next.scheme(), "http" | "https") && next.has_host(), "{next}");
            assert!(next.username().is_empty() && next.password().is_none() && next.fragment().is_none(), "{next}");
            assert!(!visited.contains(&next));
            assert_eq!(Url::parse(next.as_str()).as_ref(), Ok(&next));
            fetchable(&next);
        }
        Err((code, message)) => {
            assert!(matches!(code, Code::DownloadBadUrl | Code::DownloadBadScheme | Code::DownloadTooManyRedirects), "{code}: {message}");
        }
    }
}

/// Literals never reach the resolver, names never pass for literals, and no request can be split.
fn fetchable(url: &Url) {
    let text = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    match url.host() {
        Some(Host::Ipv4(ip)) => assert_eq!(text.parse(), Ok(IpAddr::V4(ip))),
        Some(Host::Ipv6(ip)) => assert_eq!(text.parse(), Ok(IpAddr::V6(ip))),
        Some(Host::Domain(name)) => assert!(name.trim_end_matches('.').parse::<IpAddr>().is_err() && !name.is_empty(), "{name}"),
        None => assert!(!url.has_host()),
    }
    let headers = Headers::of(&DownloadTask::default(), profile());
    assert!(headers.is_ok(), "no headers");
    let Ok(headers) = headers else { return };
    for http2 in [false, true] {
        match headers.request(url, http2, None) {
            Ok(request) => {
                let target = request.uri().to_string();
                assert!(target.bytes().all(|byte| byte > b' ' && byte != 0x7f), "{target:?}");
                assert_eq!(request.uri().host().is_some(), http2, "{target:?}");
            }
            Err(failure) => assert_eq!(failure.code, Code::DownloadBadUrl, "{}", failure.message),
        }
    }
}

/// `Content-Range` of an answer to a range request; the first byte says how much was received before.
pub fn content_range(data: &[u8]) {
    let (received, data) = data.split_first().map_or((0, data), |(first, rest)| (u64::from(*first), rest));
    let text = String::from_utf8_lossy(data);
    let parsed = parse_content_range(&text);
    if let Some(range) = parsed {
        assert!(range.start <= range.end && range.total.is_none_or(|total| range.end < total), "{range:?}");
        let total = range.total.map_or("*".to_owned(), |total| total.to_string());
        assert_eq!(parse_content_range(&format!("bytes {}-{}/{total}", range.start, range.end)), parsed);
    }
    let partial = Partial { received, total: Some(200), etag: "\"a\"".to_owned(), accepts_ranges: true };
    let asked = plan(&partial).is_some();
    assert_eq!(asked, received > 0 && received < 200);
    let answer = judge(&partial, 206, Some(&text), "\"a\"");
    if answer == Answer::Continue {
        assert!(parsed.is_some_and(|range| range.start == received && range.total.is_none_or(|total| total == 200 && range.end == 199)));
    } else {
        assert_eq!(answer, Answer::AskAgain);
    }
}

/// A `Retry-After` header, and what the retry makes of it.
pub fn retry_after(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let wait = parse_retry_after(&text, now);
    let digits = !text.trim().is_empty() && text.trim().bytes().all(|byte| byte.is_ascii_digit());
    if let Some(wait) = wait {
        // HTTP dates have four digits for the year.
        assert!(wait <= Duration::from_secs(300_000_000_000), "{wait:?}");
        assert!(SystemTime::now().checked_add(wait).is_some());
    }
    assert!(!digits || wait.is_some());
    let rules = Rules {
        max_attempts: 5,
        base: Duration::from_secs(1),
        max: Duration::from_secs(60),
        retry_after_max: Duration::from_secs(3600),
        outlast_full_store: false,
    };
    for deadline in [None, Some(Duration::from_secs(30))] {
        let failed = Failed { code: Code::DownloadHttp429, attempts: 1, retry_after: wait, deadline };
        match decide(failed, rules, 0.999) {
            Decision::Again(delay) => {
                assert!(delay <= rules.retry_after_max && deadline.is_none_or(|left| delay < left));
                assert_eq!(Some(delay), wait.map(|wait| wait.min(rules.retry_after_max)).or(Some(delay)));
            }
            Decision::Fail => assert!(deadline.is_some()),
        }
    }
}

/// `checksum_hint`; what follows a zero byte is the body that it is held against.
pub fn checksum_hints(data: &[u8]) {
    let (text, body) = data.iter().position(|byte| *byte == 0).map_or((data, &[][..]), |at| (&data[..at], &data[at + 1..]));
    let text = String::from_utf8_lossy(text);
    let hint = Hint::parse(&text);
    let mut hasher = Hasher::new(hint.clone());
    // In two pieces, as bodies come.
    let (front, back) = body.split_at(body.len() / 2);
    hasher.update(front);
    hasher.update(back);
    let mut plain = Hasher::new(None);
    plain.update(body);
    let digest = plain.finish();
    match hasher.finish() {
        Ok(sha256) => assert_eq!(Ok(sha256), digest),
        Err((code, _)) => assert!(code == Code::DownloadChecksumMismatch && hint.is_some()),
    }
    let Some(hint) = hint else { return };
    let (name, bytes) = match &hint {
        Hint::Sha256(bytes) => ("sha256", bytes),
        Hint::Sha1(bytes) => ("sha1", bytes),
        Hint::Md5(bytes) => ("md5", bytes),
    };
    assert_eq!(Hint::parse(&format!("{name}:{}", to_hex(bytes))), Some(hint.clone()));
}

/// A manifest, as a stranger posts it: what ingest takes the engine takes too.
pub fn manifests(data: &[u8]) {
    let manifest = match parse(data, &Limits::default()) {
        Ok(manifest) => manifest,
        Err(faults) => {
            assert!(!faults.is_empty());
            for fault in &faults {
                assert!(fault.pointer.is_empty() || fault.pointer.starts_with('/'), "{}", fault.pointer);
                assert_eq!(fault.code.family(), Family::Validation);
            }
            return;
        }
    };
    let json = manifest.to_json();
    assert_eq!(parse(&json, &Limits::default()).map(|again| again.to_json()).ok(), Some(json));
    let context: Result<CompileContext, _> =
        serde_json::from_str(r#"{"job_id":"0192f5c2-7d3a-7b1e-8c4d-1234567890ab","job_type":"default"}"#);
    let Ok(context) = context else { return };
    let compiled = compile(&manifest, &context);
    let mut count = 0;
    for packed in &compiled.batches {
        let tasks = batch::decode::<DownloadTask>(&packed.bytes);
        assert!(tasks.is_ok());
        for task in tasks.unwrap_or_default() {
            assert!(task.is_ok());
            task.iter().for_each(runnable);
            count += 1;
        }
    }
    assert_eq!(count, compiled.resource_count);
}

/// A task that came through ingest fails only for what the world makes of it, never for how it is written.
fn runnable(task: &DownloadTask) {
    let url = Url::parse(&task.url);
    assert!(url.is_ok(), "{:?}", task.url);
    if let Ok(url) = url {
        assert!(check_scheme(&url).is_ok() && url.username().is_empty() && url.password().is_none(), "{url}");
        fetchable(&url);
    }
    let headers = Headers::of(task, profile());
    assert!(headers.is_ok(), "{:?}", task.headers);
    assert!(task.headers.iter().all(|HttpHeader { name, .. }| *name == name.to_ascii_lowercase()));
    let key = ObjectKey::of_task(task, &KeyTemplate::default());
    assert!(key.as_ref().is_ok_and(|key| !key.as_str().split('/').any(|part| matches!(part, "" | "." | ".."))), "{key:?}");
    let hint = task.attributes.as_ref().map(|attributes| attributes.checksum_hint.as_str()).filter(|hint| !hint.is_empty());
    assert!(hint.is_none_or(|hint| Hint::parse(hint).is_some()), "{hint:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Inputs made of each target's seeds.
    const RUNS: u64 = 20_000;
    const TOKENS: [&[u8]; 16] = [
        b"\r\n",
        b"\r\n\r\n",
        b"\0",
        b"://",
        b"@",
        b"/../",
        b"\xff\xfe",
        b"\xef\xbc\x8e",
        b"99999999999999999999",
        b"-1",
        b"%00",
        b"[::1]",
        b"\"",
        b"{",
        b"\\u0000",
        b": ",
    ];

    fn seeds(target: &str) -> Vec<Vec<u8>> {
        let directory = format!("{}/../fuzz/seeds/{target}", env!("CARGO_MANIFEST_DIR"));
        let mut paths: Vec<_> = std::fs::read_dir(&directory).expect(&directory).map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
    }

    fn edit(input: &mut Vec<u8>, others: &[Vec<u8>], random: &mut fastrand::Rng) {
        let at = random.usize(..=input.len());
        let end = (at + random.usize(..16)).min(input.len());
        match random.u8(..7) {
            0 if at < input.len() => input[at] ^= 1 << random.u8(..8),
            1 if at < input.len() => input[at] = random.u8(..),
            2 => drop(input.drain(at..end)),
            3 => input.insert(at, random.u8(..)),
            4 => {
                let piece = input[at..end].to_vec();
                input.splice(at..at, piece);
            }
            5 => {
                let other = &others[random.usize(..others.len())];
                let from = random.usize(..=other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            _ => {
                input.splice(at..at, TOKENS[random.usize(..TOKENS.len())].iter().copied());
            }
        }
    }

    fn drive(name: &str, runs: u64) {
        let (_, target) = TARGETS.into_iter().find(|(known, _)| *known == name).unwrap();
        let seeds = seeds(name);
        assert!(seeds.len() >= 5, "{name} has few seeds");
        seeds.iter().for_each(|seed| target(seed));
        let mut random = fastrand::Rng::with_seed(7);
        for run in 0..runs {
            let mut input = seeds[random.usize(..seeds.len())].clone();
            for _ in 0..=random.usize(..5) {
                edit(&mut input, &seeds, &mut random);
            }
            // An input that ends in an assertion is told, so that it can become a seed.
            let guard = Told(run, input);
            target(&guard.1);
        }
    }

    struct Told(u64, Vec<u8>);

    impl Drop for Told {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("run {}: {:?}", self.0, String::from_utf8_lossy(&self.1));
            }
        }
    }

    #[test]
    fn urls_hold() {
        drive("urls", RUNS);
    }

    #[test]
    fn response_heads_hold() {
        drive("response_heads", RUNS);
    }

    #[test]
    fn content_ranges_hold() {
        drive("content_range", RUNS);
    }

    #[test]
    fn retry_afters_hold() {
        drive("retry_after", RUNS);
    }

    #[test]
    fn checksum_hints_hold() {
        drive("checksum_hints", RUNS);
    }

    #[test]
    fn manifests_hold() {
        drive("manifests", RUNS);
    }
}
