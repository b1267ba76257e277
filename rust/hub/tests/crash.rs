//! Kills, damage and failing disks: a child process is the hub, this one the client that remembers what was acknowledged.

// The child is configured through its environment and ends like the real process.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::*;
use fetchbox_hub::*;
use fetchbox_model::message::ResourceState;

const DIR: &str = "HUB_TEST_DIR";
const FILE_LIMIT: &str = "HUB_TEST_FILE_LIMIT";

/// Not a test: what the child runs.
#[test]
#[ignore = "run by the other tests as a child"]
fn child_hub() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let hub = Hub::open(config(Path::new(&dir))).unwrap();
    if let Ok(limit) = std::env::var(FILE_LIMIT) {
        let limit = limit.parse().unwrap();
        // SAFETY: plain calls with valid arguments; writes beyond the limit then fail with EFBIG instead of a signal.
        unsafe {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            libc::setrlimit(libc::RLIMIT_FSIZE, &libc::rlimit { rlim_cur: limit, rlim_max: limit });
        }
    }
    let reason = runtime.block_on(async {
        tokio::select! { reason = hub.fatal() => reason, served = hub.serve() => format!("{served:?}") }
    });
    eprintln!("{reason}");
    std::process::exit(3);
}

struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn spawn(dir: &Path, limit: Option<u64>) -> KillOnDrop {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child_hub", "--ignored", "--nocapture"]).env(DIR, dir).stdout(Stdio::null()).stderr(Stdio::null());
    if let Some(limit) = limit {
        command.env(FILE_LIMIT, limit.to_string());
    }
    KillOnDrop(command.spawn().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_kill_9_and_counts_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = spawn(dir.path(), None);
    let all = client(&dir.path().join("hub.sock"), "all", Role::Operator);
    let (mut accepted, mut reported) = (Vec::new(), Vec::new());
    for round in 0..6 {
        all.wait_connected(LIMIT).await.unwrap();
        let writers: Vec<_> = (0..8)
            .map(|lane| {
                let all = all.clone();
                tokio::spawn(async move {
                    let (mut accepted, mut reported) = (Vec::new(), Vec::new());
                    for n in 0.. {
                        let (id, key) = (new_id(), format!("{round}-{lane}-{n}"));
                        if all.accept(accept_request(&id, 2, Some(&key))).await.is_err() {
                            break;
                        }
                        accepted.push((id.clone(), key));
                        let entries = vec![status(&id, vec![outcome(0, ResourceState::Stored, "a")])];
                        if all.append(AppendRequest { entries, ..Default::default() }).await.is_err() {
                            break;
                        }
                        reported.push(id);
                    }
                    (accepted, reported)
                })
            })
            .collect();
        // Killed at some moment under load, another one each time.
        tokio::time::sleep(Duration::from_millis(60 + 37 * round)).await;
        child.0.kill().unwrap();
        child.0.wait().unwrap();
        for writer in writers {
            let (a, r) = writer.await.unwrap();
            accepted.extend(a);
            reported.extend(r);
        }
        child = spawn(dir.path(), None);
    }
    all.wait_connected(LIMIT).await.unwrap();
    assert!(accepted.len() > 50, "only {} accepted", accepted.len());
    for (id, key) in &accepted {
        let again = all.accept(accept_request(&new_id(), 2, Some(key))).await.unwrap();
        assert!(!again.created && again.job_id == *id);
    }
    for id in &reported {
        // The worker that got no answer asks again: once is once.
        report(&all, vec![status(id, vec![outcome(0, ResourceState::Stored, "a")])]).await;
        let now = job(&all, id).await;
        assert_eq!((&now["resource_completed"], &now["resource_pending"]), (&1.into(), &1.into()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_is_killed_and_repeated_counts_each_entry_once() {
    const JOBS: usize = 40;
    const EACH: u32 = 100;
    let dir = tempfile::tempdir().unwrap();
    let mut child = spawn(dir.path(), None);
    let all = client(&dir.path().join("hub.sock"), "all", Role::Operator);
    all.wait_connected(LIMIT).await.unwrap();
    let mut jobs = Vec::new();
    for _ in 0..JOBS {
        let id = new_id();
        all.accept(accept_request(&id, EACH, None)).await.unwrap();
        report(&all, vec![status(&id, (0..EACH).map(|index| failed(&id, index, 0, "DOWNLOAD_TLS")).collect())]).await;
        jobs.push(id);
    }
    let order = serde_json::json!({"filter": {"code": "DOWNLOAD_TLS"}});
    let mut told = 0;
    for round in 0..5u64 {
        let replay = tokio::spawn({
            let (all, order) = (all.clone(), order.clone());
            async move { try_ask(&all, "dlq_replay", order).await }
        });
        // Killed at some moment while it works, another one each time.
        tokio::time::sleep(Duration::from_millis(2 + 3 * round)).await;
        child.0.kill().unwrap();
        child.0.wait().unwrap();
        told += replay.await.unwrap().map_or(0, |done| done["count"].as_u64().unwrap());
        child = spawn(dir.path(), None);
        all.wait_connected(LIMIT).await.unwrap();
    }
    // The client may notice the last kill only now.
    let done = loop {
        match try_ask(&all, "dlq_replay", order.clone()).await {
            Err(HubError::Unavailable(_)) => all.wait_connected(LIMIT).await.unwrap(),
            done => break done.unwrap(),
        }
    };
    told += done["count"].as_u64().unwrap();
    assert!(told <= JOBS as u64 * u64::from(EACH));
    for id in &jobs {
        let now = job(&all, id).await;
        assert_eq!((&now["resource_pending"], &now["resource_failed"], &now["status"]), (&EACH.into(), &0.into(), &"in_progress".into()));
    }
    let topics = ask(&all, "topics", serde_json::json!({})).await;
    let tasks = topics["topics"].as_array().unwrap().iter().find(|topic| topic["topic"] == "jobs.tasks").unwrap();
    // As many as were accepted, and each once more.
    assert_eq!(tasks["messages"], 2 * JOBS as u64 * u64::from(EACH));
    assert_eq!(ask(&all, "dlq", serde_json::json!({})).await["entries"], serde_json::json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_disk_ends_the_hub_within_a_second_and_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = spawn(dir.path(), Some(400_000));
    let all = client(&dir.path().join("hub.sock"), "all", Role::Operator);
    all.wait_connected(LIMIT).await.unwrap();
    let mut accepted = Vec::new();
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < LIMIT, "the limit was never reached");
        let id = new_id();
        match all.accept(accept_request(&id, 100, None)).await {
            Ok(_) => accepted.push(id),
            Err(HubError::Fatal(_) | HubError::Unavailable(_)) => break,
            Err(other) => panic!("{other:?}"),
        }
    }
    let failed = Instant::now();
    let code = tokio::task::spawn_blocking(move || child.0.wait().unwrap().code()).await.unwrap();
    assert_eq!(code, Some(3));
    assert!(failed.elapsed() < Duration::from_secs(1), "{:?}", failed.elapsed());
    let _child = spawn(dir.path(), None);
    all.wait_connected(LIMIT).await.unwrap();
    assert!(accepted.len() > 5);
    for id in &accepted {
        assert_eq!(job(&all, id).await["resource_pending"], 100);
    }
}

/// A database with a few commits, closed.
async fn written(dir: &Path) {
    let running = Running::start(config(dir));
    let all = running.client("all", Role::Operator).await;
    for _ in 0..5 {
        all.accept(accept_request(&new_id(), 50, None)).await.unwrap();
    }
    running.stop().await;
}

fn journal(dir: &Path) -> std::path::PathBuf {
    let files = std::fs::read_dir(dir.join("hub/db")).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|e| e == "jnl")).max().unwrap()
}

fn refusal(dir: &Path) -> String {
    match Hub::open(config(dir)) {
        Ok(_) => panic!("it opened"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_hub_on_the_same_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(config(dir.path()));
    assert!(refusal(dir.path()).contains("another hub"));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_tail_is_discarded() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path()).await;
    let path = journal(dir.path());
    let mut bytes = std::fs::read(&path).unwrap();
    let end = bytes.iter().rposition(|&byte| byte != 0).unwrap() + 1;
    // The first half of the journal's first batch again, as if the next commit had been cut short.
    let head: Vec<u8> = bytes[..40].to_vec();
    bytes.splice(end..end, head);
    std::fs::write(&path, bytes).unwrap();
    let running = Running::start(config(dir.path()));
    let all = running.client("all", Role::Operator).await;
    assert_eq!(ask(&all, "jobs", serde_json::json!({})).await["jobs"].as_array().unwrap().len(), 5);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_commits_that_are_gone_or_damaged_are_noticed() {
    for damage in ["cut", "flip"] {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path()).await;
        let path = journal(dir.path());
        let mut bytes = std::fs::read(&path).unwrap();
        let end = bytes.iter().rposition(|&byte| byte != 0).unwrap() + 1;
        match damage {
            "cut" => bytes.truncate(end / 2),
            _ => bytes[end / 2] ^= 0x55,
        }
        std::fs::write(&path, bytes).unwrap();
        let message = refusal(dir.path());
        assert!(message.contains("hub"), "{message}");
        if damage == "cut" {
            assert!(message.contains("acknowledged"), "{message}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_gone_is_not_silently_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path()).await;
    std::fs::remove_dir_all(dir.path().join("hub/db")).unwrap();
    assert!(refusal(dir.path()).contains("sequence"));
}
