//! The hub's doors: connections over a Unix socket and over the network, many requests of each under way at once.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use prost::Message;
use tokio::net::{TcpStream, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::core::Core;
use crate::error::HubError;
use crate::frame::*;
use crate::listen::{Door, Listener};
use crate::reply::{Answer, Outgoing};
use crate::serve_request::{hand_over, handle};
use crate::stream::{Halves, Reader, Writer};
use crate::writer::Command;

/// How long a new connection may take to say who it is.
const GREETING: Duration = Duration::from_secs(10);
/// Requests of one connection under way at once, until their answers are written; a client beyond that is not read.
const IN_FLIGHT: usize = 4096;
/// Out of descriptors: others must close theirs first.
const OTHERS_CLOSE: Duration = Duration::from_millis(50);

/// A connection that has said who it is.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Unique while the hub lives.
    pub connection: u64,
    /// What it may do.
    pub role: Role,
}

/// Listens until told to stop or until the database failed.
pub async fn serve(core: Arc<Core>, door: Option<Arc<Door>>, mut stop: watch::Receiver<bool>) -> Result<(), HubError> {
    let path = core.config.socket_path.clone();
    // A socket left by a hub that was killed; the lock says that nobody is behind it.
    let _ = std::fs::remove_file(&path);
    let cannot = |error: std::io::Error| HubError::Invalid(format!("cannot listen on {}: {error}", path.display()));
    let listener = UnixListener::bind(&path).map_err(cannot)?;
    let remote = door.as_deref().map(Door::listener).transpose().map_err(cannot)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(cannot)?;
    core.serving.get_or_init(|| core.clock.elapsed());
    let fatal = core.fatal.subscribe();
    let dying = died(fatal);
    tokio::pin!(dying);
    let stopping = async move {
        // An error means that the hub is gone: stop as well.
        let _ = stop.wait_for(|stop| *stop).await;
    };
    tokio::pin!(stopping);
    let mut connections = JoinSet::new();
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let result = loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    let number = NEXT.fetch_add(1, Ordering::Relaxed);
                    connections.spawn(connection(Arc::clone(&core), Halves::local(stream), number, None));
                } else {
                    tokio::time::sleep(OTHERS_CLOSE).await;
                }
            }
            accepted = stranger(remote.as_ref()) => {
                if let (Some(door), Ok((stream, place))) = (door.clone(), accepted) {
                    let (core, number) = (Arc::clone(&core), NEXT.fetch_add(1, Ordering::Relaxed));
                    connections.spawn(async move {
                        match door.admit(stream, GREETING, silence(&core)).await {
                            Ok(halves) => connection(core, halves, number, Some(place)).await,
                            Err(_) => core.metrics.refused_tls.add(1),
                        }
                    });
                } else {
                    tokio::time::sleep(OTHERS_CLOSE).await;
                }
            }
            Some(_) = connections.join_next() => {}
            () = &mut stopping => break Ok(()),
            reason = &mut dying => break Err(HubError::Fatal(reason)),
        }
    };
    let _ = std::fs::remove_file(&path);
    connections.shutdown().await;
    result
}

/// The next connection over the network; never, if none is listened for.
async fn stranger(remote: Option<&Listener>) -> std::io::Result<(TcpStream, OwnedSemaphorePermit)> {
    match remote {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

/// How long a connection may give no sign of life.
fn silence(core: &Core) -> Duration {
    Duration::try_from_secs_f64(core.config.session_timeout).unwrap_or(Duration::MAX)
}

/// Resolves with the reason when nothing is acknowledged any more.
async fn died(mut fatal: watch::Receiver<Option<String>>) -> String {
    let reason = fatal.wait_for(Option::is_some).await.ok().map(|reason| reason.clone().unwrap_or_default());
    match reason {
        Some(reason) => reason,
        None => std::future::pending().await,
    }
}

/// Tells the writer and the groups when the connection is over, however it ends.
struct Goodbye {
    core: Arc<Core>,
    connection: u64,
}

impl Drop for Goodbye {
    fn drop(&mut self) {
        // First, so that whatever of it is still on its way comes either before what follows, or to nothing.
        self.core.connections.lock().remove(&self.connection);
        self.core.told.forget(self.connection);
        let now = self.core.clock.elapsed();
        let mut topics = Vec::new();
        for ((topic, _), group) in self.core.groups.lock().iter_mut() {
            if group.disconnect(self.connection, now) {
                topics.push(*topic);
            }
        }
        for topic in topics.into_iter().filter_map(fetchbox_model::stream::Topic::from_id) {
            self.core.wake(topic);
        }
        // With the queue full a lease runs out instead.
        let _ = self.core.commands.try_send(Command::Disconnected { connection: self.connection });
    }
}

async fn connection(core: Arc<Core>, halves: Halves, connection: u64, place: Option<OwnedSemaphorePermit>) {
    let remote = halves.remote;
    let (mut reader, mut writer) = halves.frames(MAX_GREETING, MAX_FRAME, Some(silence(&core)));
    let Ok(Some(Ok(first))) = tokio::time::timeout(GREETING, reader.next()).await else {
        core.metrics.refused_greeting.add(1);
        return;
    };
    let role = match greeting(&core, first.freeze()) {
        Ok(role) => role,
        Err(error) => {
            let counter = if error.is_code("UNAUTHORIZED") { &core.metrics.refused_token } else { &core.metrics.refused_greeting };
            counter.add(1);
            // The client may be gone; then it does not need the reason.
            let _ = tokio::time::timeout(GREETING, writer.send(encode(0, ERROR, &Failure::from(error)))).await;
            return;
        }
    };
    if writer.send(encode(0, OK, &Empty {})).await.is_err() {
        return;
    }
    drop(place);
    reader.decoder_mut().set_max_frame_length(MAX_FRAME);
    core.connections.lock().insert(connection, role);
    let _goodbye = Goodbye { core: Arc::clone(&core), connection };
    let peer = Peer { connection, role };
    let (replies, outgoing) = mpsc::channel::<Outgoing>(IN_FLIGHT);
    let pushes = core.cancelled.subscribe();
    tokio::select! {
        () = read_requests(&core, &peer, reader, replies) => {}
        () = write_replies(writer, outgoing, pushes, remote) => {}
    }
}

fn greeting(core: &Core, frame: Bytes) -> Result<Role, HubError> {
    let invalid = |what: &str| HubError::Invalid(what.to_owned());
    let (_, op, payload) = split(frame).ok_or_else(|| invalid("the greeting is too short"))?;
    if Op::from_id(op) != Some(Op::Hello) {
        return Err(invalid("the first request is not a greeting"));
    }
    let hello = Hello::decode(payload).map_err(|_| invalid("the greeting cannot be read"))?;
    if hello.protocol != PROTOCOL {
        return Err(HubError::Invalid(format!("the hub speaks protocol {PROTOCOL}, the client {}: update one of them", hello.protocol)));
    }
    if let Some(token) = core.token.read().as_deref()
        && !same(token.as_bytes(), hello.token.unwrap_or_default().as_bytes())
    {
        return Err(HubError::refused(
            "UNAUTHORIZED",
            "the hub's token is missing or wrong: set hub.token to the one that the hub was given",
        ));
    }
    Role::from_id(hello.role).ok_or_else(|| invalid("there is no such role"))
}

/// Compares in a time that depends on the lengths alone.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (x, y)| differ | (x ^ y)) == 0
}

async fn read_requests(core: &Arc<Core>, peer: &Peer, mut reader: Reader, replies: mpsc::Sender<Outgoing>) {
    // Dropped with the connection, which ends what is still under way.
    let mut requests = JoinSet::new();
    let room = Arc::new(Semaphore::new(IN_FLIGHT));
    loop {
        // The reader ends by itself when the client gives no sign of life.
        tokio::select! {
            biased;
            frame = reader.next(), if room.available_permits() > 0 => {
                let Some(Ok(frame)) = frame else { return };
                let Some((id, op, payload)) = split(frame.freeze()) else { return };
                if op == PING {
                    continue;
                }
                // Only this loop takes room, so what was there is there.
                let Ok(permit) = Arc::clone(&room).try_acquire_owned() else { return };
                let answer = Answer::new(id, replies.clone(), permit);
                match Op::from_id(op) {
                    Some(op) if !peer.role.may(op) => {
                        answer.send(Err(HubError::refused("FORBIDDEN", format!("this connection may not ask for {op:?}"))));
                    }
                    Some(op @ (Op::Accept | Op::Append)) => {
                        if let Some(command) = hand_over(core, peer, op, payload, answer) {
                            let commands = core.commands.clone();
                            requests.spawn(async move {
                                // A closed queue drops the command, and that answers it.
                                let _ = commands.send(command).await;
                            });
                        }
                    }
                    Some(op) => {
                        let (core, peer) = (Arc::clone(core), peer.clone());
                        requests.spawn(async move { answer.send(handle(&core, &peer, id, op, payload).await) });
                    }
                    None => answer.send(Err(HubError::Invalid(format!("there is no op {op}")))),
                }
            }
            Some(_) = requests.join_next() => {}
            // An answer was written: there is room again.
            _ = room.acquire(), if room.available_permits() == 0 => {}
        }
    }
}

async fn write_replies(mut writer: Writer, mut outgoing: mpsc::Receiver<Outgoing>, mut pushes: broadcast::Receiver<String>, remote: bool) {
    // Over a network silence may mean that the hub is gone, or the way to it; whoever sits beside it knows anyway.
    let mut alive = tokio::time::interval(PING_EVERY);
    alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let frame = tokio::select! {
            _ = alive.tick(), if remote => encode(0, PING, &Empty {}),
            frame = outgoing.recv() => match frame {
                Some((frame, _room)) => frame,
                None => return,
            },
            push = pushes.recv() => match push {
                Ok(cancelled_job_id) => encode(0, PUSH, &PushFrame { cancelled_job_id }),
                // Whoever missed some learns of them by `settled`.
                Err(broadcast::error::RecvError::Lagged(_)) => continue,
                Err(broadcast::error::RecvError::Closed) => return,
            },
        };
        if writer.feed(frame).await.is_err() {
            return;
        }
        while let Ok((frame, _room)) = outgoing.try_recv() {
            if writer.feed(frame).await.is_err() {
                return;
            }
        }
        if SinkExt::<Bytes>::flush(&mut writer).await.is_err() {
            return;
        }
    }
}
