//! Fetches a list of URLs into a directory as fast as it can and says what that cost.
//!
//! `fetch_bench URLS.txt OUT_DIR [CONCURRENCY] [THREADS] [sync] [KEY_TEMPLATE]`

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use fetchbox_engine::{Engine, EngineConfig, FetchConfig, FinishedKind, StorageConfig, Submission};
use fetchbox_model::message::DownloadTask;

/// As in the native module.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn usage() -> (f64, f64, i64) {
    // SAFETY: getrusage fills the struct it is given; a zeroed one is valid.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    (seconds(usage.ru_utime), seconds(usage.ru_stime), usage.ru_maxrss)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [list, out, rest @ ..] = &args[..] else {
        return Err("usage: fetch_bench URLS.txt OUT_DIR [CONCURRENCY] [THREADS] [sync|nosync] [TEMPLATE]".into());
    };
    let concurrency = rest.first().map_or(Ok(64), |text| text.parse())?;
    let threads = rest.get(1).map_or(Ok(0), |text| text.parse())?;
    let sync_files = rest.get(2).is_some_and(|text| text == "sync");
    let key_template = rest.get(3).cloned().or_else(|| Some("{shard}/{resource_id}".to_owned()));
    let urls: Vec<String> = std::fs::read_to_string(list)?.lines().map(str::to_owned).collect();
    std::fs::create_dir_all(out)?;
    let root = Path::new(out).canonicalize()?;
    let config = EngineConfig {
        concurrency,
        runtime_threads: threads,
        sync_files,
        fetch: FetchConfig {
            per_host_concurrency: concurrency,
            allow_networks: vec!["127.0.0.0/8".parse()?, "::1/128".parse()?],
            ..FetchConfig::default()
        },
        storage: StorageConfig { url: format!("file://{}", root.display()), key_template, ..StorageConfig::default() },
        ..EngineConfig::default()
    };
    let (wake, woken) = sync_channel(1);
    let engine = Engine::start(
        config,
        None,
        Arc::new(move || {
            // A full queue knows already.
            let _ = wake.try_send(());
        }),
    )?;
    let total = urls.len();
    let tasks = urls.into_iter().enumerate().map(|(index, url)| {
        let task = DownloadTask {
            job_id: "bench".into(),
            job_type: "bench".into(),
            resource_id: index.to_string(),
            url,
            ..DownloadTask::default()
        };
        Submission::new(task, index as u64)
    });
    let tasks: Vec<Submission> = tasks.collect();
    let (user_before, system_before, _) = usage();
    let started = Instant::now();
    engine.submit(tasks);
    let (mut done, mut stored, mut bytes, mut codes) = (0, 0usize, 0u64, std::collections::BTreeMap::new());
    while done < total {
        woken.recv_timeout(Duration::from_secs(120))?;
        loop {
            let finished = engine.drain(1024);
            if finished.is_empty() {
                break;
            }
            for item in finished {
                done += 1;
                match item.result {
                    FinishedKind::Outcome(outcome) if outcome.code.is_empty() => {
                        stored += 1;
                        bytes += outcome.size;
                    }
                    FinishedKind::Outcome(outcome) => *codes.entry(format!("{}: {}", outcome.code, outcome.message)).or_insert(0) += 1,
                    FinishedKind::Later { code, .. } => *codes.entry(format!("later {code}")).or_insert(0) += 1,
                    FinishedKind::Dropped => *codes.entry("dropped".to_owned()).or_insert(0) += 1,
                }
            }
        }
    }
    let wall = started.elapsed().as_secs_f64();
    let (user, system, peak) = usage();
    let per_file = |seconds: f64| seconds * 1e6 / total as f64;
    println!(
        "{stored}/{total} stored, {:.1} MB, {wall:.3} s, {:.0} files/s, {:.1} MB/s, CPU {:.1} us/file (user {:.1}, system {:.1}), peak {} MiB",
        bytes as f64 / 1e6,
        total as f64 / wall,
        bytes as f64 / 1e6 / wall,
        per_file(user - user_before + system - system_before),
        per_file(user - user_before),
        per_file(system - system_before),
        peak / 1024
    );
    for (code, count) in codes {
        println!("  {count} × {code}");
    }
    engine.close(Duration::from_secs(5));
    Ok(())
}
