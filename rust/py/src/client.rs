//! `HubClient`: calls return a token at once and finish on the completion queue.

use std::future::Future;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use fetchbox_failpoint::fail_point;
use fetchbox_hub::{
    AcceptRequest, AppendRequest, Assignment, CancelRequest, ClientOptions, Commit, Entry, HubError, JobFacts, JoinRequest,
    OutboxDoneRequest, OutboxPeekRequest, PollRequest, Position, Push, RebuildRequest, ReleaseRequest, ReserveRequest,
};
use fetchbox_model::stream::Topic;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use tokio::runtime::Runtime;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};

use crate::broker::{self, Posted};
use crate::completion::{Queue, lock};
use crate::delivery::{Delivery, Settled};
use crate::engine::{Engine, Report};
use crate::error::CoreError;
use crate::follower::{Follower, Told};
use crate::fork::Guard;
use crate::tasks::TaskBatch;

/// The consumer group of the workers.
const GROUP: &str = "workers";
/// Most bytes of one poll's batches.
const POLL_BYTES: u32 = 4 << 20;
/// A member without room anywhere asks again soon instead of waiting long at the hub: room appears here.
const FULL_WAIT_MS: u32 = 50;
/// How long the runtime may take to end.
const SHUTDOWN: Duration = Duration::from_secs(2);

/// The result of a call, still native.
enum Reply {
    Nothing,
    Json(Bytes),
    Object(serde_json::Value),
    Delivery(Delivery),
    Settled(Settled),
    Told(Vec<Told>),
    Outbox(Vec<(u64, Vec<Posted>)>),
    Push(&'static str, String),
}

type Completed = (u64, Result<Reply, CoreError>);

#[pyclass(frozen, module = "fetchbox._core")]
pub struct HubClient {
    guard: Guard,
    client: fetchbox_hub::HubClient,
    runtime: Mutex<Option<Runtime>>,
    queue: Arc<Queue<Completed>>,
    next_token: AtomicU64,
    /// This member's name and the epoch of the assignment that it knows.
    membership: Arc<Mutex<(String, u64)>>,
}

#[pymethods]
impl HubClient {
    #[new]
    fn new(options: &[u8]) -> PyResult<Self> {
        let options: ClientOptions =
            serde_json::from_slice(options).map_err(|error| CoreError::new("config", "hub.url", error.to_string()))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("fetchbox-hub-client")
            .enable_all()
            .build()
            .map_err(|error| CoreError::new("internal", "RUNTIME", error.to_string()))?;
        let queue = Arc::new(Queue::new()?);
        let (client, pushes, trouble) = fetchbox_hub::HubClient::start_subscribed(runtime.handle(), options);
        runtime.spawn(forward_pushes(pushes, trouble, Arc::clone(&queue)));
        Ok(Self {
            guard: Guard::new(),
            client,
            runtime: Mutex::new(Some(runtime)),
            queue,
            next_token: AtomicU64::new(1),
            membership: Arc::default(),
        })
    }

    fn fileno(&self) -> RawFd {
        self.queue.fd()
    }

    fn drain<'py>(&self, py: Python<'py>) -> PyResult<Vec<(u64, Bound<'py, PyAny>)>> {
        self.queue.take().into_iter().map(|(token, result)| Ok((token, result_object(py, result)?))).collect()
    }

    fn set_token(&self, token: Option<String>) {
        self.client.set_token(token);
    }

    fn connected(&self) -> bool {
        self.client.connected()
    }

    /// Why it is not connected.
    fn trouble(&self) -> String {
        self.client.trouble().borrow().clone()
    }

    fn reserve(&self, request: &[u8]) -> PyResult<u64> {
        let request: ReserveRequest = serde_json::from_slice(request).map_err(CoreError::invalid)?;
        self.call(|client| async move {
            fail_point!("api::reserve::before");
            let reply = client.reserve(request).await?;
            fail_point!("api::reserve::after");
            object(&reply)
        })
    }

    fn release(&self, request: &[u8]) -> PyResult<u64> {
        let request: ReleaseRequest = serde_json::from_slice(request).map_err(CoreError::invalid)?;
        self.call(|client| async move {
            client.release(request).await?;
            Ok(Reply::Nothing)
        })
    }

    #[pyo3(signature = (facts, tasks, manifest))]
    fn accept(&self, facts: &[u8], tasks: &TaskBatch, manifest: Option<&[u8]>) -> PyResult<u64> {
        let mut facts: JobFacts = serde_json::from_slice(facts).map_err(CoreError::invalid)?;
        facts.resource_count = tasks.count();
        let request =
            AcceptRequest { facts, tasks: tasks.partition_batches(), log: Bytes::new(), manifest: manifest.map(Bytes::copy_from_slice) };
        self.call(|client| async move {
            fail_point!("api::accept::before");
            let reply = client.accept(request).await?;
            fail_point!("api::accept::after");
            object(&reply)
        })
    }

    fn rebuild(&self, facts: &[u8], tasks: &TaskBatch, digests: bool) -> PyResult<u64> {
        let mut facts: JobFacts = serde_json::from_slice(facts).map_err(CoreError::invalid)?;
        facts.resource_count = tasks.count();
        let accept = AcceptRequest { facts, tasks: tasks.partition_batches(), log: Bytes::new(), manifest: None };
        self.call(|client| async move { object(&client.rebuild(RebuildRequest { accept, digests }).await?) })
    }

    #[pyo3(signature = (job_id, tenant))]
    fn cancel(&self, job_id: String, tenant: Option<String>) -> PyResult<u64> {
        self.call(|client| async move { Ok(Reply::Json(client.cancel(CancelRequest { job_id, tenant }).await?)) })
    }

    fn query(&self, name: String, params: &[u8]) -> PyResult<u64> {
        let params = Bytes::copy_from_slice(params);
        self.call(|client| async move { Ok(Reply::Json(client.query(&name, params).await?)) })
    }

    fn ledger(&self, name: String, params: &[u8]) -> PyResult<u64> {
        let params = Bytes::copy_from_slice(params);
        self.call(|client| async move { Ok(Reply::Json(client.ledger(&name, params).await?)) })
    }

    /// Enters the group and takes the partitions that it gets at once.
    fn join(&self, engine: &Bound<'_, Engine>, member: String) -> PyResult<u64> {
        let membership = Arc::clone(&self.membership);
        // What it held before a hub restart it gets back first: nothing is downloaded twice for having moved.
        let claims = lock(&engine.get().window).owned();
        let engine = engine.clone().unbind();
        self.call(|client| async move {
            let assignment = client.join(request(&member, claims)).await?;
            *lock(&membership) = (member, assignment.epoch);
            engine.get().assign(&assignment);
            Ok(Reply::Nothing)
        })
    }

    fn leave(&self) -> PyResult<u64> {
        let (member, _) = lock(&self.membership).clone();
        self.call(|client| async move {
            // Whoever ends before it has joined has nothing to leave.
            if !member.is_empty() {
                client.leave(request(&member, Vec::new())).await?;
            }
            Ok(Reply::Nothing)
        })
    }

    fn poll(&self, engine: &Bound<'_, Engine>, max_messages: u32, wait_ms: u32) -> PyResult<u64> {
        let (positions, owns_some): (Vec<Position>, bool) = {
            let window = lock(&engine.get().window);
            let position = |(partition, next_offset)| Position { partition, next_offset };
            (window.positions().into_iter().map(position).collect(), !window.is_empty())
        };
        let (member, epoch) = lock(&self.membership).clone();
        let request = PollRequest {
            topic: Topic::Tasks as u32,
            group: GROUP.to_owned(),
            member,
            epoch,
            wait_ms: if positions.is_empty() && owns_some { wait_ms.min(FULL_WAIT_MS) } else { wait_ms },
            positions,
            max_messages,
            max_bytes: POLL_BYTES,
        };
        let membership = Arc::clone(&self.membership);
        let engine = engine.clone().unbind();
        self.call(|client| async move {
            fail_point!("worker::poll::before");
            let reply = client.poll(request).await?;
            fail_point!("worker::poll::after");
            if let Some(assignment) = &reply.assignment {
                lock(&membership).1 = assignment.epoch;
                engine.get().assign(assignment);
            }
            Ok(Reply::Delivery(Delivery::from(reply.batches)))
        })
    }

    /// Waits until the assignment changes, and takes it over.
    fn watch(&self, engine: &Bound<'_, Engine>, wait_ms: u32) -> PyResult<u64> {
        let (member, epoch) = lock(&self.membership).clone();
        let request = PollRequest { topic: Topic::Tasks as u32, group: GROUP.to_owned(), member, epoch, wait_ms, ..Default::default() };
        let membership = Arc::clone(&self.membership);
        let engine = engine.clone().unbind();
        self.call(|client| async move {
            if let Some(assignment) = client.poll(request).await?.assignment {
                lock(&membership).1 = assignment.epoch;
                engine.get().assign(&assignment);
            }
            Ok(Reply::Nothing)
        })
    }

    /// Commits offsets of the workers' group, without anything to append.
    fn commit_tasks(&self, offsets: Vec<(u32, u64)>) -> PyResult<u64> {
        let (member, _) = lock(&self.membership).clone();
        let commit = |(partition, offset)| Commit { topic: Topic::Tasks as u32, group: GROUP.to_owned(), partition, offset };
        let request = AppendRequest { member, entries: Vec::new(), commits: offsets.into_iter().map(commit).collect() };
        self.call(|client| async move {
            client.append(request).await?;
            Ok(Reply::Nothing)
        })
    }

    /// Enters the follower's group.
    fn follow(&self, follower: &Bound<'_, Follower>) -> PyResult<u64> {
        let follower = follower.clone().unbind();
        self.call(|client| async move {
            let assignment = client.join(follower.get().request(Vec::new())).await?;
            give_up(&client, follower.get(), assignment).await?;
            Ok(Reply::Nothing)
        })
    }

    /// What comes next in the follower's partitions.
    fn read(&self, follower: &Bound<'_, Follower>, max_messages: u32, wait_ms: u32) -> PyResult<u64> {
        let follower = follower.clone().unbind();
        self.call(move |client| async move {
            let mut reply = client.poll(follower.get().poll(max_messages, wait_ms)).await?;
            if let Some(assignment) = reply.assignment.take() {
                give_up(&client, follower.get(), assignment).await?;
            }
            Ok(Reply::Told(follower.get().take(reply)))
        })
    }

    /// Commits how far the follower's group is done with its partitions.
    fn commit(&self, follower: &Bound<'_, Follower>, offsets: Vec<(u32, u64)>) -> PyResult<u64> {
        let follower = follower.get();
        let (topic, group) = (follower.topic as u32, follower.group.clone());
        let commits = offsets.into_iter().map(|(partition, offset)| Commit { topic, group: group.clone(), partition, offset }).collect();
        let request = AppendRequest { member: follower.member.clone(), entries: Vec::new(), commits };
        self.call(|client| async move {
            client.append(request).await?;
            Ok(Reply::Nothing)
        })
    }

    fn settled(&self, delivery: &Delivery) -> PyResult<u64> {
        let (job_ids, names) = (delivery.job_ids(), delivery.names());
        self.call(|client| async move { Ok(Reply::Settled(Settled::new(client.settled_and_known(job_ids, names).await?))) })
    }

    fn append(&self, report: &Report) -> PyResult<u64> {
        let (member, _) = lock(&self.membership).clone();
        let entries = report
            .entries
            .iter()
            .map(|entry| Entry {
                topic: entry.topic as u32,
                partition: entry.partition,
                count: entry.count,
                bytes: entry.bytes.clone(),
                target_partition: entry.target,
            })
            .collect();
        let commits = report
            .commits
            .iter()
            .map(|&(partition, offset)| Commit { topic: Topic::Tasks as u32, group: GROUP.to_owned(), partition, offset })
            .collect();
        self.call(|client| async move {
            fail_point!("worker::report::before");
            client.append(AppendRequest { member, entries, commits }).await?;
            fail_point!("worker::report::after");
            Ok(Reply::Nothing)
        })
    }

    fn release_partitions(&self, engine: &Bound<'_, Engine>) -> PyResult<u64> {
        let partitions = lock(&engine.get().window).released();
        let (member, _) = lock(&self.membership).clone();
        let membership = Arc::clone(&self.membership);
        let engine = engine.clone().unbind();
        self.call(|client| async move {
            let assignment = client.release_partitions(request(&member, partitions)).await?;
            lock(&membership).1 = assignment.epoch;
            engine.get().assign(&assignment);
            Ok(Reply::Nothing)
        })
    }

    /// What waits to be published, above a sequence.
    fn outbox(&self, after: u64, max_bytes: u32, wait_ms: u32) -> PyResult<u64> {
        self.call(|client| async move {
            let reply = client.outbox_peek(OutboxPeekRequest { after, max_bytes, wait_ms }).await?;
            Ok(Reply::Outbox(reply.items.into_iter().map(broker::outbox_item).collect::<Result<_, _>>()?))
        })
    }

    /// Everything up to and with this sequence is published.
    fn outbox_done(&self, up_to: u64) -> PyResult<u64> {
        self.call(|client| async move {
            client.outbox_done(OutboxDoneRequest { up_to }).await?;
            Ok(Reply::Nothing)
        })
    }

    /// Has the hub take over what was read from a broker.
    fn feed(&self, topic: &str, partition: u32, base_offset: u64, messages: Vec<Bound<'_, PyBytes>>) -> PyResult<u64> {
        let request = broker::feed(topic, partition, base_offset, &messages)?;
        self.call(|client| async move {
            client.feed(request).await?;
            Ok(Reply::Nothing)
        })
    }

    fn close(&self, py: Python<'_>) {
        self.client.close();
        let taken = lock(&self.runtime).take();
        if let Some(runtime) = taken {
            py.detach(|| runtime.shutdown_timeout(SHUTDOWN));
        }
    }
}

impl HubClient {
    /// Runs a call on the client's runtime; its result comes out of the queue under the token returned.
    fn call<F, C>(&self, start: C) -> PyResult<u64>
    where
        C: FnOnce(fetchbox_hub::HubClient) -> F,
        F: Future<Output = Result<Reply, HubError>> + Send + 'static,
    {
        self.guard.check("HubClient")?;
        let token = self.next_token.fetch_add(1, Ordering::Relaxed);
        let call = start(self.client.clone());
        let queue = Arc::clone(&self.queue);
        let runtime = lock(&self.runtime);
        let runtime = runtime.as_ref().ok_or_else(|| CoreError::new("closed", "CLOSED", "the connection is closed"))?;
        runtime.spawn(async move { queue.push((token, call.await.map_err(CoreError::from))) });
        Ok(token)
    }
}

/// Takes an assignment over, and gives partitions up until none is asked for.
async fn give_up(client: &fetchbox_hub::HubClient, follower: &Follower, mut assignment: Assignment) -> Result<(), HubError> {
    loop {
        let partitions = follower.assign(&assignment);
        if partitions.is_empty() {
            return Ok(());
        }
        assignment = client.release_partitions(follower.request(partitions)).await?;
    }
}

fn request(member: &str, partitions: Vec<u32>) -> JoinRequest {
    JoinRequest { topic: Topic::Tasks as u32, group: GROUP.to_owned(), member: member.to_owned(), partitions }
}

fn object<T: serde::Serialize>(reply: &T) -> Result<Reply, HubError> {
    serde_json::to_value(reply).map(Reply::Object).map_err(|error| HubError::Invalid(error.to_string()))
}

async fn forward_pushes(mut pushes: broadcast::Receiver<Push>, mut trouble: watch::Receiver<String>, queue: Arc<Queue<Completed>>) {
    loop {
        let push = tokio::select! {
            push = pushes.recv() => push,
            changed = trouble.changed() => {
                if changed.is_err() {
                    return;
                }
                let reason = trouble.borrow_and_update().clone();
                if !reason.is_empty() {
                    queue.push((0, Ok(Reply::Push("trouble", reason))));
                }
                continue;
            }
        };
        let (kind, subject) = match push {
            Ok(Push::Cancelled { job_id }) => ("cancelled", job_id),
            Ok(Push::Connected) => ("connected", String::new()),
            Ok(Push::Disconnected) => ("disconnected", String::new()),
            // A missed cancellation costs work, not exactness: the projection ignores late outcomes.
            Err(RecvError::Lagged(_)) => continue,
            Err(RecvError::Closed) => return,
        };
        queue.push((0, Ok(Reply::Push(kind, subject))));
    }
}

fn result_object<'py>(py: Python<'py>, result: Result<Reply, CoreError>) -> PyResult<Bound<'py, PyAny>> {
    Ok(match result {
        Err(error) => error.value(py)?,
        Ok(Reply::Nothing) => py.None().into_bound(py),
        Ok(Reply::Json(bytes)) => PyBytes::new(py, &bytes).into_any(),
        Ok(Reply::Object(value)) => flat_dict(py, value)?.into_any(),
        Ok(Reply::Delivery(delivery)) => Bound::new(py, delivery)?.into_any(),
        Ok(Reply::Settled(settled)) => Bound::new(py, settled)?.into_any(),
        Ok(Reply::Told(told)) => told.into_pyobject(py)?.into_any(),
        Ok(Reply::Outbox(items)) => {
            let object = |(sequence, posted): &(u64, Vec<Posted>)| {
                Ok((*sequence, posted.iter().map(|posted| posted.object(py)).collect::<PyResult<Vec<_>>>()?))
            };
            items.iter().map(object).collect::<PyResult<Vec<_>>>()?.into_pyobject(py)?.into_any()
        }
        Ok(Reply::Push(kind, subject)) => (kind, subject).into_pyobject(py)?.into_any(),
    })
}

/// Replies are flat objects of strings, numbers and flags.
fn flat_dict(py: Python<'_>, value: serde_json::Value) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    if let serde_json::Value::Object(fields) = value {
        for (name, field) in fields {
            match field {
                serde_json::Value::String(text) => dict.set_item(name, text)?,
                serde_json::Value::Bool(flag) => dict.set_item(name, flag)?,
                serde_json::Value::Number(number) => dict.set_item(name, number.as_u64())?,
                _ => dict.set_item(name, py.None())?,
            }
        }
    }
    Ok(dict)
}
