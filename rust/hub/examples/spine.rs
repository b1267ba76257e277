//! What the hub costs: `cargo run --release -p fetchbox-hub --example spine [directory [large|small]]`.
//!
//! Appends, polls, settles and projects tasks in batches of 256 over a real socket, then the same with one-resource jobs, whose manifests are written
//! into a store in memory. Prints the CPU per message of the hub's threads and of the client's, bytes on disk per task and jobs per second.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fetchbox_hub::*;
use fetchbox_model::batch::{Batch, BatchBuilder};
use fetchbox_model::manifest::partition_of;
use fetchbox_model::message::{DownloadTask, HttpHeader, JobStatus, ResourceOutcome, ResourceState};
use fetchbox_model::stream::Topic;
use uuid::Uuid;

const PER_JOB: u32 = 256;
const JOBS: u32 = 2000;
const SMALL_JOBS: u32 = 60_000;
const CALLERS: u32 = 64;
const PARTITIONS: u32 = 64;
/// Jobs of one resource that one report settles: what a worker drains at 5,000 a second in 50 ms.
const SMALL_REPORT: usize = 256;
/// How the client's threads are called.
const CLIENT: &str = "client";

/// CPU of the threads whose names begin so, and of all others.
fn cpu(prefix: &str) -> (Duration, Duration) {
    let (mut inside, mut outside) = (Duration::ZERO, Duration::ZERO);
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let read = |name: &str| std::fs::read_to_string(task.path().join(name));
        let (Ok(name), Ok(stat)) = (read("comm"), read("schedstat")) else { continue };
        let ran = Duration::from_nanos(stat.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0));
        *if name.starts_with(prefix) { &mut outside } else { &mut inside } += ran;
    }
    (inside, outside)
}

fn disk(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => disk(&entry.path()),
            Ok(meta) => meta.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

fn pack<M: prost::Message>(messages: impl Iterator<Item = M>) -> Batch {
    let mut builder = BatchBuilder::default();
    messages.for_each(|message| builder.push(&message));
    builder.finish().unwrap()
}

fn job(resources: u32) -> AcceptRequest {
    let job_id = Uuid::now_v7().to_string();
    let task = |index: u32| DownloadTask {
        job_id: job_id.clone(),
        job_type: "default".into(),
        resource_id: index.to_string(),
        url: format!("https://images.example.com/{:x}/{index}/photo-{}.jpg", index.wrapping_mul(2_654_435_761), index * 7919),
        headers: vec![HttpHeader { name: "user-agent".into(), value: "Mozilla/5.0 (X11; Linux x86_64)".into() }],
        manifest_key: format!("file:///data/assets/manifests/default/{job_id}/manifest.json"),
        resource_index: index,
        resources_total: resources,
        trace_id: "4bf92f3577b34da6a3ce929d0e0e4736".into(),
        ..Default::default()
    };
    let Batch { count, bytes } = pack((0..resources).map(task));
    let tasks = vec![PartitionBatch { partition: partition_of(&job_id, PARTITIONS), count, bytes }];
    let facts =
        JobFacts { job_id, job_type: "default".into(), resource_count: resources, created_ms: 1_700_000_000_000, ..Default::default() };
    AcceptRequest { facts, tasks, ..Default::default() }
}

fn report(job_id: &str, resources: u32) -> Entry {
    let outcome = |index: u32| ResourceOutcome {
        resource_id: index.to_string(),
        resource_index: index,
        state: ResourceState::Stored as i32,
        http_status: 200,
        final_url: format!("https://images.example.com/{index}/photo-{}.jpg", index * 7919),
        attempts: 1,
        size: 10_240,
        sha256: (0..8).flat_map(|i| (index.wrapping_mul(2_654_435_761).wrapping_add(i * 97)).to_le_bytes()).collect::<Vec<_>>().into(),
        content_type: "image/jpeg".into(),
        sniffed_type: "image/jpeg".into(),
        storage_url: format!("file:///data/assets/resources/default/{job_id}/{index}"),
        ..Default::default()
    };
    let status = JobStatus { job_id: job_id.into(), outcomes: (0..resources).map(outcome).collect(), ..Default::default() };
    Entry::new(Topic::Status, partition_of(job_id, 4), pack(std::iter::once(status)))
}

struct Meter {
    what: &'static str,
    wall: Instant,
    cpu: (Duration, Duration),
}

impl Meter {
    fn start(what: &'static str) -> Self {
        Self { what, wall: Instant::now(), cpu: cpu(CLIENT) }
    }

    fn stop(self, messages: u64) {
        let (wall, after) = (self.wall.elapsed().as_secs_f64(), cpu(CLIENT));
        let (hub, client) = ((after.0 - self.cpu.0).as_secs_f64(), (after.1 - self.cpu.1).as_secs_f64());
        let each = |seconds: f64| seconds * 1e6 / messages as f64;
        println!(
            "{:<44} {messages:>8} in {wall:>6.2} s = {:>9.0}/s, µs of CPU each: hub {:>6.2}, client {:>6.2}",
            self.what,
            messages as f64 / wall,
            each(hub),
            each(client)
        );
    }
}

fn runtime(name: &str) -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name(name).enable_all().build().unwrap()
}

fn main() {
    let dir = std::env::args().nth(1).map_or_else(std::env::temp_dir, Into::into).join(format!("spine-{}", std::process::id()));
    let which = std::env::args().nth(2).unwrap_or_default();
    std::fs::create_dir_all(&dir).unwrap();
    let mut config = HubConfig::new(dir.join("hub"), dir.join("sock"));
    let store = Path::new("/dev/shm").join(dir.file_name().unwrap());
    std::fs::create_dir_all(&store).unwrap();
    config.store_root = Some(store.clone());
    let hub = Arc::new(Hub::open(config).unwrap());
    // As the hub's process has it: one thread serves, and what reads the database runs beside it.
    let serving = runtime("hub-serve");
    let served = serving.spawn({
        let hub = Arc::clone(&hub);
        async move { hub.serve().await }
    });
    let driving = runtime(CLIENT);
    let working = driving.spawn({
        let dir = dir.clone();
        async move { run(&dir, &which).await }
    });
    driving.block_on(working).unwrap();
    hub.shutdown();
    serving.block_on(served).unwrap().unwrap();
    drop(hub);
    std::fs::remove_dir_all(&dir).unwrap();
    std::fs::remove_dir_all(&store).unwrap();
}

async fn run(dir: &Path, which: &str) {
    let url = format!("unix://{}", dir.join("sock").display());
    let options = ClientOptions { url, token: None, tls_ca: None, name: "spine".into(), role: Role::Operator };
    let client = HubClient::start(&tokio::runtime::Handle::current(), options);
    client.wait_connected(Duration::from_secs(5)).await.unwrap();
    let join = JoinRequest { topic: Topic::Tasks as u32, group: "workers".into(), member: "w".into(), partitions: vec![] };
    let assignment = client.join(join).await.unwrap();
    let positions = assignment.partitions.iter().map(|p| Position { partition: p.partition, next_offset: p.committed }).collect();
    let mut poller = Poller { client: client.clone(), epoch: assignment.epoch, positions };
    if which != "small" {
        large(dir, &client, &mut poller).await;
    }
    if which != "large" {
        small(dir, &client, &mut poller).await;
    }
    client.close();
}

/// A worker's way of polling.
struct Poller {
    client: HubClient,
    epoch: u64,
    positions: Vec<Position>,
}

impl Poller {
    /// Polls so many messages and asks what of their jobs is settled, as workers do before they begin.
    async fn poll(&mut self, messages: u64, jobs: &[AcceptRequest]) {
        let mut polled = 0;
        let mut asked = jobs.iter();
        while polled < messages {
            let request = PollRequest {
                topic: Topic::Tasks as u32,
                group: "workers".into(),
                member: "w".into(),
                epoch: self.epoch,
                positions: self.positions.clone(),
                max_messages: 2000,
                max_bytes: 4 << 20,
                wait_ms: 1000,
            };
            let mut got = 0;
            for batch in self.client.poll(request).await.unwrap().batches {
                got += u64::from(batch.count);
                if let Some(position) = self.positions.iter_mut().find(|p| p.partition == batch.partition) {
                    position.next_offset = batch.base_offset + u64::from(batch.count);
                }
            }
            polled += got;
            let share = (got * jobs.len() as u64 / messages) as usize;
            let ids = asked.by_ref().take(share).map(|job| job.facts.job_id.clone()).collect();
            self.client.settled(ids).await.unwrap();
        }
    }
}

async fn large(dir: &Path, client: &HubClient, poller: &mut Poller) {
    let tasks = u64::from(JOBS * PER_JOB);
    // Built outside the measurement: making tasks and outcomes is the api's and the engine's work.
    let jobs: Vec<AcceptRequest> = (0..JOBS).map(|_| job(PER_JOB)).collect();
    let reports: Vec<Entry> = jobs.iter().map(|job| report(&job.facts.job_id, PER_JOB)).collect();
    let meter = Meter::start("accept jobs of 256");
    each(client, jobs.clone(), 8, |client, job| async move { drop(client.accept(job).await.unwrap()) }).await;
    meter.stop(tasks);
    println!("{:<44} {:>8.1} bytes a task", "on disk", disk(&dir.join("hub")) as f64 / tasks as f64);
    let meter = Meter::start("poll, and ask what is settled");
    poller.poll(tasks, &jobs).await;
    meter.stop(tasks);
    let meter = Meter::start("append outcomes of 256 and project them");
    each(client, reports, 8, |client, entry| async move {
        drop(client.append(AppendRequest { entries: vec![entry], ..Default::default() }).await.unwrap());
    })
    .await;
    meter.stop(tasks);
    println!("{:<44} {:>8.1} bytes a task", "on disk", disk(&dir.join("hub")) as f64 / tasks as f64);
}

async fn small(dir: &Path, client: &HubClient, poller: &mut Poller) {
    let total = u64::from(SMALL_JOBS);
    let all = Meter::start("jobs of 1, all together");
    for (what, with_manifest) in [("accept jobs of 1, 64 callers", false), ("the same, manifests written", true)] {
        let mut jobs: Vec<AcceptRequest> = (0..SMALL_JOBS).map(|_| job(1)).collect();
        if with_manifest {
            jobs.iter_mut().for_each(|job| job.manifest = Some(vec![b'm'; 200].into()));
        }
        let asked = jobs.clone();
        let reports: Vec<Entry> = jobs.iter().map(|job| report(&job.facts.job_id, 1)).collect();
        let meter = Meter::start(what);
        each(client, jobs, CALLERS, |client, job| async move { drop(client.accept(job).await.unwrap()) }).await;
        meter.stop(total);
        let meter = Meter::start("poll, and ask what is settled");
        poller.poll(total, &asked).await;
        meter.stop(total);
        let batches: Vec<Vec<Entry>> = reports.chunks(SMALL_REPORT).map(by_partition).collect();
        let meter = Meter::start("project and settle jobs of 1, 256 a report");
        each(client, batches, 2, |client, entries| async move {
            drop(client.append(AppendRequest { entries, ..Default::default() }).await.unwrap());
        })
        .await;
        meter.stop(total);
    }
    all.stop(2 * total);
    println!("{:<44} {:>8.1} bytes a job", "on disk", disk(&dir.join("hub")) as f64 / (2 * total) as f64);
}

/// One batch for each partition of `jobs.status`, as a worker's report has them.
fn by_partition(entries: &[Entry]) -> Vec<Entry> {
    let mut builders: std::collections::BTreeMap<u32, BatchBuilder> = std::collections::BTreeMap::new();
    for entry in entries {
        let builder = builders.entry(entry.partition).or_default();
        for message in fetchbox_model::batch::unpack(&entry.bytes).unwrap() {
            builder.push_encoded(&message);
        }
    }
    builders.into_iter().map(|(partition, builder)| Entry::new(Topic::Status, partition, builder.finish().unwrap())).collect()
}

/// Runs the work of all items with so many under way at once.
async fn each<T, F, Fut>(client: &HubClient, items: Vec<T>, at_once: u32, work: F)
where
    T: Send + 'static,
    F: Fn(HubClient, T) -> Fut + Copy + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    let items = Arc::new(std::sync::Mutex::new(items.into_iter()));
    let lanes = (0..at_once).map(|_| {
        let (client, items) = (client.clone(), Arc::clone(&items));
        tokio::spawn(async move {
            loop {
                let next = items.lock().unwrap().next();
                let Some(item) = next else { return };
                work(client.clone(), item).await;
            }
        })
    });
    for lane in lanes.collect::<Vec<_>>() {
        lane.await.unwrap();
    }
}
