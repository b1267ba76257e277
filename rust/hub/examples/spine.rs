//! What the hub costs: `cargo run --release -p fetchbox-hub --example spine [directory]`.
//!
//! Appends, polls, settles and projects tasks in batches of 256 over a real socket, then accepts one-resource jobs. Prints the CPU of the whole
//! process (both ends) per message, bytes on disk per task and jobs per second.
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
const SMALL_JOBS: u32 = 20_000;
const CALLERS: u32 = 64;
const PARTITIONS: u32 = 64;

fn cpu() -> Duration {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: getrusage fills the struct it is given.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let time = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
    time(usage.ru_utime) + time(usage.ru_stime)
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
    cpu: Duration,
}

impl Meter {
    fn start(what: &'static str) -> Self {
        Self { what, wall: Instant::now(), cpu: cpu() }
    }

    fn stop(self, messages: u64) {
        let (wall, cpu) = (self.wall.elapsed().as_secs_f64(), (cpu() - self.cpu).as_secs_f64());
        let (rate, each) = (messages as f64 / wall, cpu * 1e6 / messages as f64);
        println!(
            "{:<44} {messages:>8} in {wall:>6.2} s = {rate:>9.0}/s, {each:>6.2} µs of CPU each, {:.0} % of a core",
            self.what,
            100.0 * cpu / wall
        );
    }
}

fn main() {
    let dir = std::env::args().nth(1).map_or_else(std::env::temp_dir, Into::into).join(format!("spine-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(run(&dir));
    std::fs::remove_dir_all(&dir).unwrap();
}

async fn run(dir: &Path) {
    let hub = Arc::new(Hub::open(HubConfig::new(dir.join("hub"), dir.join("sock"))).unwrap());
    let serving = tokio::spawn({
        let hub = Arc::clone(&hub);
        async move { hub.serve().await }
    });
    let url = format!("unix://{}", dir.join("sock").display());
    let options = ClientOptions { url, token: None, name: "spine".into(), role: Role::Operator };
    let client = HubClient::start(&tokio::runtime::Handle::current(), options);
    client.wait_connected(Duration::from_secs(5)).await.unwrap();
    let tasks = u64::from(JOBS * PER_JOB);

    // Built outside the measurement: making tasks and outcomes is the api's and the engine's work.
    let jobs: Vec<AcceptRequest> = (0..JOBS).map(|_| job(PER_JOB)).collect();
    let reports: Vec<Entry> = jobs.iter().map(|job| report(&job.facts.job_id, PER_JOB)).collect();
    let meter = Meter::start("accept jobs of 256 (append durably)");
    each(&client, jobs, 8, |client, job| async move { drop(client.accept(job).await.unwrap()) }).await;
    meter.stop(tasks);
    println!("{:<44} {:>8.1} bytes a task", "on disk", disk(dir) as f64 / tasks as f64);

    let meter = Meter::start("poll everything");
    let join = JoinRequest { topic: Topic::Tasks as u32, group: "workers".into(), member: "w".into(), partitions: vec![] };
    let assignment = client.join(join).await.unwrap();
    let mut positions: Vec<Position> =
        assignment.partitions.iter().map(|p| Position { partition: p.partition, next_offset: p.committed }).collect();
    let mut polled = 0;
    while polled < tasks {
        let request = PollRequest {
            topic: Topic::Tasks as u32,
            group: "workers".into(),
            member: "w".into(),
            epoch: assignment.epoch,
            positions: positions.clone(),
            max_messages: 4096,
            max_bytes: 4 << 20,
            wait_ms: 1000,
        };
        for batch in client.poll(request).await.unwrap().batches {
            polled += u64::from(batch.count);
            if let Some(position) = positions.iter_mut().find(|p| p.partition == batch.partition) {
                position.next_offset = batch.base_offset + u64::from(batch.count);
            }
        }
    }
    meter.stop(tasks);

    let meter = Meter::start("append outcomes of 256 and project them");
    each(&client, reports, 8, |client, entry| async move {
        drop(client.append(AppendRequest { entries: vec![entry], ..Default::default() }).await.unwrap());
    })
    .await;
    meter.stop(tasks);
    println!("{:<44} {:>8.1} bytes a task", "on disk", disk(dir) as f64 / tasks as f64);

    let jobs: Vec<AcceptRequest> = (0..SMALL_JOBS).map(|_| job(1)).collect();
    let reports: Vec<Entry> = jobs.iter().map(|job| report(&job.facts.job_id, 1)).collect();
    let meter = Meter::start("accept jobs of 1, 64 callers");
    each(&client, jobs, CALLERS, |client, job| async move { drop(client.accept(job).await.unwrap()) }).await;
    meter.stop(u64::from(SMALL_JOBS));
    let batches: Vec<Vec<Entry>> = reports.chunks(256).map(<[Entry]>::to_vec).collect();
    let meter = Meter::start("project and settle jobs of 1, 256 a call");
    each(&client, batches, 2, |client, entries| async move {
        drop(client.append(AppendRequest { entries, ..Default::default() }).await.unwrap());
    })
    .await;
    meter.stop(u64::from(SMALL_JOBS));
    client.close();
    hub.shutdown();
    serving.await.unwrap().unwrap();
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
