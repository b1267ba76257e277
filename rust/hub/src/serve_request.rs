//! One request: decoded, done, answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fetchbox_model::stream::Topic;
use prost::Message;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::config::Broker;
use crate::core::{Core, read_failed};
use crate::db::Space;
use crate::error::HubError;
use crate::frame::*;
use crate::group::Group;
use crate::health;
use crate::job::{JobRecord, parse_id};
use crate::keys::OUTBOX_TOPIC;
use crate::ledger;
use crate::project::topic_of;
use crate::query;
use crate::record;
use crate::reply::{Answer, Reply};
use crate::server::Peer;
use crate::writer::Command;

/// How long a reserve waits for another live owner of its key, unless it says otherwise.
const RESERVE_WAIT: Duration = Duration::from_secs(15);
/// Longest wait of a long poll.
const LONGEST_POLL: Duration = Duration::from_secs(60);
/// Topics that workers append to; tasks and events come from the hub and from operators.
const WORKER_TOPICS: [Topic; 4] = [Topic::Retry, Topic::Status, Topic::Logs, Topic::Dlq];

/// Hands a request that every job needs to the writer, which answers into the connection's queue; the command again when the writer's queue is full.
pub fn hand_over(core: &Core, peer: &Peer, op: Op, payload: Bytes, answer: Answer) -> Option<Command> {
    let refused = match op {
        _ if core.dead().is_some() => core.dead().unwrap_or_else(closing),
        Op::Accept => match decode(payload) {
            Ok(request) => return send(core, Command::Accept { request: Box::new(request), reply: Reply::frame(answer) }),
            Err(error) => error,
        },
        _ => match decode(payload).and_then(|request| check_topics(peer, request)) {
            Ok(request) => return send(core, Command::Append { request, reply: Reply::frame(answer) }),
            Err(error) => error,
        },
    };
    answer.send(Err(refused));
    None
}

fn send(core: &Core, command: Command) -> Option<Command> {
    match core.commands.try_send(command) {
        Err(TrySendError::Full(command)) => Some(command),
        // A dropped answer says that the hub is closing.
        Ok(()) | Err(TrySendError::Closed(_)) => None,
    }
}

/// Workers append where workers append.
fn check_topics(peer: &Peer, request: AppendRequest) -> Result<AppendRequest, HubError> {
    let foreign = |entry: &Entry| topic_of(entry.topic).is_none_or(|topic| !WORKER_TOPICS.contains(&topic));
    if peer.role == Role::Worker && request.entries.iter().any(foreign) {
        return Err(HubError::refused("FORBIDDEN", "workers append to jobs.retry, jobs.status, jobs.logs and jobs.dlq only"));
    }
    Ok(request)
}

/// Does what a frame asks for, unless [`hand_over`] does; the reply's frame.
pub async fn handle(core: &Arc<Core>, peer: &Peer, id: u64, op: Op, payload: Bytes) -> Result<Bytes, HubError> {
    let connection = peer.connection;
    match op {
        Op::Hello => Err(HubError::Invalid("the connection has greeted already".into())),
        Op::Reserve => reserve(core, peer, decode(payload)?).await.map(|reply| encode(id, OK, &reply)),
        Op::Release => {
            let request = decode(payload)?;
            ask(core, |reply| Command::Release { request, reply }).await?;
            Ok(encode(id, OK, &Empty {}))
        }
        Op::Accept | Op::Append => Err(HubError::Invalid("this request is answered by the writer".into())),
        Op::Join | Op::Leave | Op::ReleasePartitions => member(core, connection, op, &decode(payload)?).map(|reply| encode(id, OK, &reply)),
        Op::Poll => poll(core, decode(payload)?).await.map(|reply| encode(id, OK, &reply)),
        Op::Settled => {
            let request: SettledRequest = decode(payload)?;
            match untouched(core, &request) {
                Some(reply) => Ok(reply),
                None => read(core, move |core| settled(core, request)).await,
            }
            .map(|reply| encode(id, OK, &reply))
        }
        Op::Cancel => {
            let request: CancelRequest = decode(payload)?;
            let params = serde_json::to_vec(&request).unwrap_or_default();
            ask(core, |reply| Command::Cancel { request, reply }).await?;
            let body = read(core, move |core| query::answer(core, "job", &params)).await?;
            Ok(encode(id, OK, &BytesReply { body: body.into() }))
        }
        Op::Query => {
            let request: QueryRequest = decode(payload)?;
            if peer.role == Role::Worker && request.name == "worker_state" {
                health::worker_state(core, connection, &request.params)?;
                return Ok(encode(id, OK, &BytesReply { body: Bytes::from_static(b"{}") }));
            }
            if peer.role == Role::Worker && query::is_order(&request.name) {
                return Err(HubError::refused("FORBIDDEN", "workers only ask; they order nothing"));
            }
            let body = read(core, move |core| query::answer(core, &request.name, &request.params)).await?;
            Ok(encode(id, OK, &BytesReply { body: body.into() }))
        }
        Op::Ledger => {
            let request: QueryRequest = decode(payload)?;
            let body = read(core, move |core| ledger::answer(core, &request.name, &request.params)).await?;
            Ok(encode(id, OK, &BytesReply { body: body.into() }))
        }
        Op::Rebuild => {
            let request = decode(payload)?;
            read(core, move |core| crate::rebuild::job(core, request)).await.map(|reply| encode(id, OK, &reply))
        }
        Op::OutboxPeek => outbox_peek(core, decode(payload)?).await.map(|reply| encode(id, OK, &reply)),
        Op::OutboxDone => {
            let OutboxDoneRequest { up_to } = decode(payload)?;
            ask(core, |reply| Command::OutboxDone { up_to, reply }).await?;
            Ok(encode(id, OK, &Empty {}))
        }
        Op::Feed => {
            let request = decode(payload)?;
            ask(core, |reply| Command::Feed { request, reply }).await?;
            Ok(encode(id, OK, &Empty {}))
        }
    }
}

fn decode<M: Message + Default>(payload: Bytes) -> Result<M, HubError> {
    M::decode(payload).map_err(|error| HubError::Invalid(format!("the request cannot be read: {error}")))
}

fn closing() -> HubError {
    HubError::Unavailable("the hub is closing".into())
}

async fn ask<T>(core: &Core, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, HubError> {
    if let Some(dead) = core.dead() {
        return Err(dead);
    }
    let (reply, answer) = oneshot::channel();
    core.commands.send(command(Reply::Waiting(reply))).await.map_err(|_| closing())?;
    answer.await.map_err(|_| closing())?
}

/// Reads of the database may wait for the disk: never on the runtime's own threads.
async fn read<T: Send + 'static>(
    core: &Arc<Core>,
    work: impl FnOnce(&Core) -> Result<T, HubError> + Send + 'static,
) -> Result<T, HubError> {
    let core = Arc::clone(core);
    tokio::task::spawn_blocking(move || work(&core))
        .await
        .map_err(|error| HubError::Unavailable(format!("a read was given up: {error}")))?
}

async fn reserve(core: &Core, peer: &Peer, request: ReserveRequest) -> Result<ReserveReply, HubError> {
    let wait = if request.wait_ms == 0 { RESERVE_WAIT } else { Duration::from_millis(request.wait_ms.into()) };
    let connection = peer.connection;
    let busy = |_| HubError::refused("HUB_UNAVAILABLE", "another post with this key is still under way").after_ms(1000);
    tokio::time::timeout(wait, ask(core, |reply| Command::Reserve { request, connection, reply })).await.map_err(busy)?
}

fn topic(id: u32) -> Result<Topic, HubError> {
    topic_of(id).ok_or_else(|| HubError::Invalid(format!("there is no topic {id}")))
}

fn assignment(core: &Core, topic: Topic, group: &str, of: &Group, member: &str) -> Assignment {
    let owned = |(partition, revoking)| Owned { partition, revoking, committed: core.committed(topic, group, partition) };
    Assignment { epoch: of.epoch(member).unwrap_or(0), partitions: of.owned(member).into_iter().map(owned).collect() }
}

fn member(core: &Core, connection: u64, op: Op, request: &JoinRequest) -> Result<Assignment, HubError> {
    let topic = topic(request.topic)?;
    if request.member.is_empty() || request.group.is_empty() {
        return Err(HubError::Invalid("a member needs a group and a name".into()));
    }
    let now = core.clock.elapsed();
    let mut groups = core.groups.lock();
    if !core.connections.lock().contains_key(&connection) {
        // A member that nobody would ever miss would keep its partitions for good.
        return Err(HubError::Unavailable("the connection is gone".into()));
    }
    let group = groups.entry((topic as u8, request.group.clone())).or_insert_with(|| core.new_group(topic, &request.group));
    match op {
        Op::Join => group.join(&request.member, connection, &request.partitions, now),
        Op::Leave => group.leave(&request.member, connection, now),
        _ => group.release(&request.member, &request.partitions, now),
    }
    let answer = assignment(core, topic, &request.group, group, &request.member);
    drop(groups);
    core.wake(topic);
    Ok(answer)
}

async fn poll(core: &Arc<Core>, mut request: PollRequest) -> Result<PollReply, HubError> {
    static TURN: AtomicUsize = AtomicUsize::new(0);
    let topic = topic(request.topic)?;
    let deadline = Instant::now() + Duration::from_millis(request.wait_ms.into()).min(LONGEST_POLL);
    let mut wake = core.wake[topic as usize].subscribe();
    if core.config.broker == Broker::External {
        // Members are told here which partitions are theirs; what is in them they read from the broker.
        request.positions.clear();
    }
    if !request.positions.is_empty() {
        // Limits cut at the end: everybody is first once in a while.
        let turn = TURN.fetch_add(1, Ordering::Relaxed) % request.positions.len();
        request.positions.rotate_left(turn);
    }
    loop {
        wake.mark_unchanged();
        {
            let groups = core.groups.lock();
            let group = groups.get(&(topic as u8, request.group.clone()));
            let Some((group, epoch)) = group.and_then(|group| Some((group, group.epoch(&request.member)?))) else {
                return Err(HubError::refused("NOT_A_MEMBER", format!("{} has not joined {}", request.member, request.group)));
            };
            if epoch != request.epoch {
                let assignment = assignment(core, topic, &request.group, group, &request.member);
                return Ok(PollReply { assignment: Some(assignment), batches: Vec::new() });
            }
            request.positions.retain(|position| group.owns(&request.member, position.partition));
        }
        if request.positions.iter().any(|position| position.next_offset < core.next.get(topic, position.partition)) {
            let (messages, bytes) = (request.max_messages, request.max_bytes);
            let positions: Vec<Position> =
                request.positions.iter().filter(|p| p.next_offset < core.next.get(topic, p.partition)).copied().collect();
            // What is in memory needs no thread that may wait for the disk.
            let kept = crate::log::poll_kept(core, topic, &positions, messages, bytes).map_err(read_failed)?;
            if let Some(batches) = kept.filter(|batches| !batches.is_empty()) {
                return Ok(PollReply { assignment: None, batches });
            }
            let batches = read(core, move |core| crate::log::poll(core, topic, &positions, messages, bytes).map_err(read_failed)).await?;
            if !batches.is_empty() {
                return Ok(PollReply { assignment: None, batches });
            }
        }
        match tokio::time::timeout_at(deadline, wake.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(closing()),
            Err(_) => return Ok(PollReply::default()),
        }
    }
}

/// The answer without a look into the database, if of all jobs nothing is settled.
fn untouched(core: &Core, request: &SettledRequest) -> Option<SettledReply> {
    if !request.reuse_keys.is_empty() {
        return None;
    }
    let untouched = core.untouched.lock();
    let one = |job_id: &String| {
        let id = parse_id(job_id)?;
        untouched.contains(&id).then(|| JobSettled { job_id: job_id.clone(), known: true, posted: true, ..Default::default() })
    };
    Some(SettledReply { jobs: request.job_ids.iter().map(one).collect::<Option<_>>()?, known: Vec::new() })
}

fn settled(core: &Core, request: SettledRequest) -> Result<SettledReply, HubError> {
    let one = |job_id: String| {
        let record = match parse_id(&job_id) {
            Some(id) => core.db.get(Space::Jobs, &id).map_err(read_failed)?,
            None => None,
        };
        let Some(raw) = record else { return Ok(JobSettled { job_id, ..Default::default() }) };
        let record = JobRecord::decode(raw).map_err(|error| HubError::Fatal(format!("the record of job {job_id} is damaged: {error}")))?;
        if record.counted_by_id {
            // Its tasks have no indexes by which one could tell.
            return Ok(JobSettled { job_id, known: true, all: record.closed && record.is_over(), ..Default::default() });
        }
        let all = record.counts.pending() == 0;
        let posted = !record.direct;
        Ok(JobSettled { job_id, known: true, all, bitmap: record.bitmap.into(), generations: record.generations, posted })
    };
    let known = crate::reuse::known(core, &request.reuse_keys)?;
    Ok(SettledReply { jobs: request.job_ids.into_iter().map(one).collect::<Result<_, HubError>>()?, known })
}

async fn outbox_peek(core: &Arc<Core>, request: OutboxPeekRequest) -> Result<OutboxPeekReply, HubError> {
    let deadline = Instant::now() + Duration::from_millis(request.wait_ms.into()).min(LONGEST_POLL);
    let mut wake = core.outbox_wake.subscribe();
    loop {
        wake.mark_unchanged();
        let items = read(core, move |core| outbox(core, request)).await?;
        if !items.is_empty() {
            return Ok(OutboxPeekReply { items });
        }
        match tokio::time::timeout_at(deadline, wake.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(closing()),
            Err(_) => return Ok(OutboxPeekReply::default()),
        }
    }
}

/// What of the outbox stands above a sequence.
pub fn outbox(core: &Core, request: OutboxPeekRequest) -> Result<Vec<OutboxItem>, HubError> {
    let state = core.db.get(Space::Meta, crate::keys::OUTBOX).map_err(read_failed)?.unwrap_or_default();
    let (_, done, _) = crate::upkeep::parse_outbox_state(&state);
    // Sequences begin at 1, so that 0 is below all of them.
    let from = done.max(request.after + 1);
    let (mut items, mut bytes) = (Vec::new(), 0);
    for item in core.db.range(Space::Log, &record::key(OUTBOX_TOPIC, 0, from), &record::key(OUTBOX_TOPIC, 0, u64::MAX)) {
        let (key, value) = item.map_err(read_failed)?;
        let record = record::decode("the outbox", 0, record::base_of(&key).unwrap_or(0), &value).map_err(read_failed)?;
        for part in record.parts {
            bytes += part.bytes.len();
            items.push(OutboxItem::decode(part.bytes).map_err(|error| HubError::Fatal(format!("the outbox is damaged: {error}")))?);
        }
        if bytes >= request.max_bytes as usize {
            break;
        }
    }
    Ok(items)
}
