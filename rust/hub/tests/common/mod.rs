//! A hub in this process behind a real socket, and what tests say to it.
#![allow(dead_code, missing_docs)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fetchbox_hub::*;
use fetchbox_model::batch::{Batch, BatchBuilder};
use fetchbox_model::manifest::partition_of;
use fetchbox_model::message::{DownloadTask, JobStatus, ResourceOutcome, ResourceState};
use fetchbox_model::stream::Topic;
use serde_json::Value;
use uuid::Uuid;

pub const LIMIT: Duration = Duration::from_secs(20);

pub struct Running {
    pub hub: Option<Arc<Hub>>,
    pub serving: Option<tokio::task::JoinHandle<Result<(), HubError>>>,
    pub socket: PathBuf,
}

impl Running {
    pub fn start(config: HubConfig) -> Running {
        Self::start_with(config, Arc::new(SystemClock::default()))
    }

    pub fn start_with(config: HubConfig, clock: Arc<dyn Clock>) -> Running {
        let socket = config.socket_path.clone();
        let hub = Arc::new(Hub::open_with(config, clock).unwrap());
        let serving = tokio::spawn({
            let hub = Arc::clone(&hub);
            async move { hub.serve().await }
        });
        Running { hub: Some(hub), serving: Some(serving), socket }
    }

    pub fn hub(&self) -> &Hub {
        self.hub.as_ref().unwrap()
    }

    pub async fn client(&self, name: &str, role: Role) -> HubClient {
        let client = client(&self.socket, name, role);
        client.wait_connected(LIMIT).await.unwrap();
        client
    }

    pub async fn stop(mut self) {
        self.hub().shutdown();
        self.serving.take().unwrap().await.unwrap().unwrap();
        let hub = self.hub.take().unwrap();
        tokio::task::spawn_blocking(move || drop(hub)).await.unwrap();
    }
}

pub fn config(dir: &Path) -> HubConfig {
    let mut config = HubConfig::new(dir.join("hub"), dir.join("hub.sock"));
    config.partitions = 8;
    config
}

pub fn client(socket: &Path, name: &str, role: Role) -> HubClient {
    let url = format!("unix://{}", socket.display());
    HubClient::start(&tokio::runtime::Handle::current(), ClientOptions { url, token: None, tls_ca: None, name: name.into(), role })
}

pub fn batch<M: prost::Message>(messages: impl IntoIterator<Item = M>) -> Batch {
    let mut builder = BatchBuilder::default();
    for message in messages {
        builder.push(&message);
    }
    builder.finish().unwrap()
}

pub fn new_id() -> String {
    Uuid::now_v7().to_string()
}

pub fn accept_request(job_id: &str, resources: u32, key: Option<&str>) -> AcceptRequest {
    let task = |index: u32| DownloadTask {
        job_id: job_id.into(),
        resource_id: format!("r{index}"),
        url: format!("http://h/{index}?sig=secret"),
        resource_index: index,
        resources_total: resources,
        ..Default::default()
    };
    let tasks = if resources == 0 {
        vec![]
    } else {
        let Batch { count, bytes } = batch((0..resources).map(task));
        vec![PartitionBatch { partition: partition_of(job_id, 8), count, bytes }]
    };
    AcceptRequest {
        facts: JobFacts {
            job_id: job_id.into(),
            job_type: "default".into(),
            tenant: "t".into(),
            manifest_key: format!("file:///m/{job_id}"),
            created_ms: 1_700_000_000_000,
            resource_count: resources,
            reservation: key.map(|key| Reservation { key: key.into(), body_sha256: "body".into() }),
            ..Default::default()
        },
        tasks,
        log: Bytes::new(),
        manifest: None,
    }
}

pub fn outcome(index: u32, state: ResourceState, sha256: &str) -> ResourceOutcome {
    ResourceOutcome {
        resource_id: format!("r{index}"),
        resource_index: index,
        state: state as i32,
        code: if state == ResourceState::Failed { "DOWNLOAD_TIMEOUT".into() } else { String::new() },
        size: 10,
        sha256: sha256.as_bytes().to_vec().into(),
        final_url: format!("http://h/{index}"),
        ..Default::default()
    }
}

/// A failed outcome as workers report it, with its task.
pub fn failed(job_id: &str, index: u32, generation: u32, code: &str) -> ResourceOutcome {
    let [request] = &accept_request(job_id, index + 1, None).tasks[..] else { panic!("one batch was expected") };
    let task = fetchbox_model::batch::decode::<DownloadTask>(&request.bytes).unwrap().pop().unwrap().unwrap();
    ResourceOutcome {
        code: code.into(),
        generation,
        task: Some(DownloadTask { generation, attempt: 3, ..task }),
        ..outcome(index, ResourceState::Failed, "")
    }
}

pub fn status(job_id: &str, outcomes: Vec<ResourceOutcome>) -> Entry {
    Entry::new(
        Topic::Status,
        partition_of(job_id, 4),
        batch([JobStatus { job_id: job_id.into(), manifest_key: "file:///manifest".into(), outcomes, ..Default::default() }]),
    )
}

pub async fn report(client: &HubClient, entries: Vec<Entry>) {
    client.append(AppendRequest { member: String::new(), entries, commits: vec![] }).await.unwrap();
}

pub async fn ask(client: &HubClient, name: &str, params: Value) -> Value {
    try_ask(client, name, params).await.unwrap()
}

pub async fn try_ask(client: &HubClient, name: &str, params: Value) -> Result<Value, HubError> {
    let body = client.query(name, serde_json::to_vec(&params).unwrap().into()).await?;
    Ok(serde_json::from_slice(&body).unwrap())
}

pub async fn job(client: &HubClient, job_id: &str) -> Value {
    ask(client, "job", serde_json::json!({"job_id": job_id})).await
}

pub fn join(member: &str) -> JoinRequest {
    JoinRequest { topic: Topic::Tasks as u32, group: "workers".into(), member: member.into(), partitions: vec![] }
}

pub fn poll(member: &str, assignment: &Assignment, wait_ms: u32) -> PollRequest {
    let positions = assignment.partitions.iter().filter(|p| !p.revoking);
    PollRequest {
        topic: Topic::Tasks as u32,
        group: "workers".into(),
        member: member.into(),
        epoch: assignment.epoch,
        positions: positions.map(|p| Position { partition: p.partition, next_offset: p.committed }).collect(),
        max_messages: 1000,
        max_bytes: 1 << 20,
        wait_ms,
    }
}

pub fn code(error: HubError) -> String {
    match error {
        HubError::Refused { code, .. } => code,
        other => panic!("{other:?} is no refusal"),
    }
}
