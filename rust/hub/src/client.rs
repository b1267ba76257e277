//! The native client: one connection, many requests under way at once, reconnecting for ever.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use parking_lot::Mutex;
use prost::Message;
use serde::Deserialize;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::connect::{self, connect};
use crate::error::HubError;
use crate::frame::*;
use crate::stream::{Reader, Writer};

/// How long a call may take unless it says otherwise.
const CALL_LIMIT: Duration = Duration::from_secs(30);
/// Looking after a large ledger or a slow store takes its time.
const LEDGER_LIMIT: Duration = Duration::from_secs(600);
/// What a long poll gets on top of its own waiting time.
const POLL_SLACK: Duration = Duration::from_secs(10);
/// For the hub to answer a greeting: on this machine it may be standing still, elsewhere it may be gone.
const GREETING: Duration = Duration::from_secs(30);
const GREETING_REMOTE: Duration = Duration::from_secs(10);
const FIRST_BACKOFF: Duration = Duration::from_millis(25);
const LAST_BACKOFF: Duration = Duration::from_secs(1);
/// Frames waiting to be written; a caller beyond that waits within its own limit.
const WRITE_QUEUE: usize = 1024;
/// Pushes a slow subscriber may lag behind before it loses the oldest.
const PUSHES: usize = 1024;

/// How to reach the hub, and who is calling.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientOptions {
    /// `unix:///path/to/hub.sock` or `tcp://host:port`.
    pub url: String,
    /// The hub's token, when it wants one.
    #[serde(default)]
    pub token: Option<String>,
    /// PEM file with the roots that the hub's certificate is checked against. Without it the system's, and on loopback no TLS at all.
    #[serde(default)]
    pub tls_ca: Option<PathBuf>,
    /// Who connects, for the hub's logs: `worker 0`.
    pub name: String,
    /// What the connection may do.
    pub role: Role,
}

/// What the hub (or the connection) says without being asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Push {
    /// This job was cancelled: stop working on it.
    Cancelled {
        /// UUID.
        job_id: String,
    },
    /// The connection is up; groups must be joined again.
    Connected,
    /// The connection is down.
    Disconnected,
}

type Answer = oneshot::Sender<Result<Bytes, HubError>>;

/// One connection's life: requests under way, and where to write frames. `waiting` is `None` once it is over.
struct Link {
    frames: mpsc::Sender<Bytes>,
    waiting: Mutex<Option<HashMap<u64, Answer>>>,
}

struct Shared {
    options: ClientOptions,
    /// Shown at the next greeting.
    token: Mutex<Option<String>>,
    link: watch::Sender<Option<Arc<Link>>>,
    /// Why there is no connection; empty while there is one.
    trouble: watch::Sender<String>,
    pushes: broadcast::Sender<Push>,
    closing: watch::Sender<bool>,
    next_id: AtomicU64,
}

impl Shared {
    /// Notes why there is no connection; whoever watches is told when it is another reason than before.
    fn say(&self, reason: String) {
        self.trouble.send_if_modified(|trouble| {
            let another = *trouble != reason;
            *trouble = reason;
            another
        });
    }
}

/// A handle on the connection to the hub; clones share it.
#[derive(Clone)]
pub struct HubClient {
    shared: Arc<Shared>,
}

impl HubClient {
    /// Starts connecting in the background, and reconnects until [`HubClient::close`].
    pub fn start(handle: &tokio::runtime::Handle, options: ClientOptions) -> HubClient {
        Self::start_subscribed(handle, options).0
    }

    /// The same with all its pushes and every [`HubClient::trouble`]: the first connection may be made, or fail, before a later subscription.
    pub fn start_subscribed(
        handle: &tokio::runtime::Handle,
        options: ClientOptions,
    ) -> (HubClient, broadcast::Receiver<Push>, watch::Receiver<String>) {
        let (sender, pushes) = broadcast::channel(PUSHES);
        let (say, trouble) = watch::channel("not connected yet".to_owned());
        let shared = Arc::new(Shared {
            token: Mutex::new(options.token.clone()),
            options,
            link: watch::Sender::new(None),
            trouble: say,
            pushes: sender,
            closing: watch::Sender::new(false),
            next_id: AtomicU64::new(1),
        });
        handle.spawn(run(Arc::clone(&shared)));
        (HubClient { shared }, pushes, trouble)
    }

    /// Shows this token from the next connection on; the present one stays.
    pub fn set_token(&self, token: Option<String>) {
        *self.shared.token.lock() = token;
    }

    /// Whether requests can be sent right now.
    pub fn connected(&self) -> bool {
        self.shared.link.borrow().is_some()
    }

    /// Waits until connected; [`HubError::Unavailable`] with the reason when `timeout` is over.
    pub async fn wait_connected(&self, timeout: Duration) -> Result<(), HubError> {
        let mut link = self.shared.link.subscribe();
        let mut closing = self.shared.closing.subscribe();
        let up = async {
            tokio::select! {
                up = link.wait_for(Option::is_some) => up.is_ok(),
                _ = closing.wait_for(|closed| *closed) => false,
            }
        };
        match tokio::time::timeout(timeout, up).await {
            Ok(true) => Ok(()),
            _ => Err(HubError::Unavailable(self.shared.trouble.borrow().clone())),
        }
    }

    /// Reserves an idempotency key, durably. Waits for another live owner of the same key.
    pub async fn reserve(&self, request: ReserveRequest) -> Result<ReserveReply, HubError> {
        let wait = Duration::from_millis(request.wait_ms.into());
        self.call(Op::Reserve, &request, CALL_LIMIT + wait).await
    }

    /// Gives a reservation back that will not be accepted.
    pub async fn release(&self, request: ReleaseRequest) -> Result<(), HubError> {
        self.call::<Empty>(Op::Release, &request, CALL_LIMIT).await.map(drop)
    }

    /// Accepts a job; it is durable when this returns.
    pub async fn accept(&self, request: AcceptRequest) -> Result<AcceptReply, HubError> {
        self.call(Op::Accept, &request, CALL_LIMIT).await
    }

    /// Appends batches and commits offsets, all or nothing; durable when this returns. Repeating it after a lost answer is harmless.
    pub async fn append(&self, request: AppendRequest) -> Result<AppendReply, HubError> {
        self.call(Op::Append, &request, CALL_LIMIT).await
    }

    /// Joins a group; the partitions may come later, as polls then say.
    pub async fn join(&self, request: JoinRequest) -> Result<Assignment, HubError> {
        self.call(Op::Join, &request, CALL_LIMIT).await
    }

    /// Leaves a group; its partitions move at once.
    pub async fn leave(&self, request: JoinRequest) -> Result<(), HubError> {
        self.call::<Empty>(Op::Leave, &request, CALL_LIMIT).await.map(drop)
    }

    /// Gives up partitions that were being revoked.
    pub async fn release_partitions(&self, request: JoinRequest) -> Result<Assignment, HubError> {
        self.call(Op::ReleasePartitions, &request, CALL_LIMIT).await
    }

    /// Messages from the member's partitions; a long poll.
    pub async fn poll(&self, request: PollRequest) -> Result<PollReply, HubError> {
        let limit = Duration::from_millis(request.wait_ms.into()) + POLL_SLACK;
        self.call(Op::Poll, &request, limit).await
    }

    /// What of these jobs is settled, in the order asked.
    pub async fn settled(&self, job_ids: Vec<String>) -> Result<Vec<JobSettled>, HubError> {
        self.settled_and_known(job_ids, Vec::new()).await.map(|(jobs, _)| jobs)
    }

    /// The same, and what is remembered of URLs, as far as something is.
    pub async fn settled_and_known(
        &self,
        job_ids: Vec<String>,
        reuse_keys: Vec<Bytes>,
    ) -> Result<(Vec<JobSettled>, Vec<KnownUrl>), HubError> {
        let request = SettledRequest { job_ids, reuse_keys };
        self.call::<SettledReply>(Op::Settled, &request, CALL_LIMIT).await.map(|reply| (reply.jobs, reply.known))
    }

    /// Cancels what is pending of a job; answers the job as JSON.
    pub async fn cancel(&self, request: CancelRequest) -> Result<Bytes, HubError> {
        self.call::<BytesReply>(Op::Cancel, &request, CALL_LIMIT).await.map(|reply| reply.body)
    }

    /// Asks the ledger; `params` is a JSON object or empty, the answer is JSON.
    pub async fn query(&self, name: &str, params: Bytes) -> Result<Bytes, HubError> {
        let request = QueryRequest { name: name.to_owned(), params };
        self.call::<BytesReply>(Op::Query, &request, CALL_LIMIT).await.map(|reply| reply.body)
    }

    /// Has the ledger or the store looked after; like [`HubClient::query`], and may take long.
    pub async fn ledger(&self, name: &str, params: Bytes) -> Result<Bytes, HubError> {
        let request = QueryRequest { name: name.to_owned(), params };
        self.call::<BytesReply>(Op::Ledger, &request, LEDGER_LIMIT).await.map(|reply| reply.body)
    }

    /// Makes a job that the ledger does not know, with what of its objects is in the store.
    pub async fn rebuild(&self, request: RebuildRequest) -> Result<RebuildReply, HubError> {
        self.call(Op::Rebuild, &request, LEDGER_LIMIT).await
    }

    /// What waits to be published to an external broker; a long poll.
    pub async fn outbox_peek(&self, request: OutboxPeekRequest) -> Result<OutboxPeekReply, HubError> {
        let limit = Duration::from_millis(request.wait_ms.into()) + POLL_SLACK;
        self.call(Op::OutboxPeek, &request, limit).await
    }

    /// Forgets what is published.
    pub async fn outbox_done(&self, request: OutboxDoneRequest) -> Result<(), HubError> {
        self.call::<Empty>(Op::OutboxDone, &request, CALL_LIMIT).await.map(drop)
    }

    /// Takes over what was read from an external broker; durable when this returns. Repeating it after a lost answer is harmless.
    pub async fn feed(&self, request: FeedRequest) -> Result<(), HubError> {
        self.call::<Empty>(Op::Feed, &request, CALL_LIMIT).await.map(drop)
    }

    /// Pushes from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Push> {
        self.shared.pushes.subscribe()
    }

    /// Why there is no connection, in a sentence for people, and every new reason from now on; empty while there is one.
    pub fn trouble(&self) -> watch::Receiver<String> {
        self.shared.trouble.subscribe()
    }

    /// Ends the connection for good; what is under way ends with [`HubError::Unavailable`].
    pub fn close(&self) {
        self.shared.closing.send_replace(true);
    }

    async fn call<R: Message + Default>(&self, op: Op, request: &impl Message, limit: Duration) -> Result<R, HubError> {
        let link = self.shared.link.borrow().clone();
        let Some(link) = link else {
            return Err(HubError::Unavailable(self.shared.trouble.borrow().clone()));
        };
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let gone = || HubError::Unavailable("the connection broke before the answer came".to_owned());
        let (answer, answered) = oneshot::channel();
        match link.waiting.lock().as_mut() {
            Some(waiting) => waiting.insert(id, answer),
            None => return Err(gone()),
        };
        // Also when this future is dropped half-way the entry must go.
        let _entry = Forget { link: &link, id };
        let frame = encode(id, op as u8, request);
        if frame.len() > MAX_FRAME {
            return Err(HubError::Invalid(format!("a request of {} bytes is larger than the limit of {MAX_FRAME}", frame.len())));
        }
        let exchange = async {
            link.frames.send(frame).await.map_err(|_| gone())?;
            answered.await.map_err(|_| gone())?
        };
        let payload = tokio::time::timeout(limit, exchange)
            .await
            .map_err(|_| HubError::Unavailable(format!("no answer within {} s", limit.as_secs())))??;
        R::decode(payload).map_err(|error| HubError::Invalid(format!("the hub's answer cannot be read: {error}")))
    }
}

struct Forget<'a> {
    link: &'a Link,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = self.link.waiting.lock().as_mut() {
            waiting.remove(&self.id);
        }
    }
}

/// Connects, serves the connection until it breaks, waits, and again.
async fn run(shared: Arc<Shared>) {
    let mut closing = shared.closing.subscribe();
    let mut backoff = FIRST_BACKOFF;
    loop {
        let connection = tokio::select! {
            connection = greet(&shared) => connection,
            _ = closing.wait_for(|closed| *closed) => return,
        };
        match connection {
            Ok((reader, writer)) => {
                backoff = FIRST_BACKOFF;
                shared.say(String::new());
                let mut ended = None;
                tokio::select! {
                    reason = serve(&shared, reader, writer) => ended = Some(reason),
                    _ = closing.wait_for(|closed| *closed) => {}
                }
                if let Some(link) = shared.link.send_replace(None) {
                    link.waiting.lock().take();
                }
                // Nobody may be listening.
                let _ = shared.pushes.send(Push::Disconnected);
                if let Some(reason) = ended {
                    shared.say(reason);
                }
            }
            Err(reason) => shared.say(reason),
        }
        let pause = backoff.mul_f64(rand::random_range(0.5..1.0));
        backoff = (backoff * 2).min(LAST_BACKOFF);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = closing.wait_for(|closed| *closed) => return,
        }
    }
}

async fn greet(shared: &Shared) -> Result<(Reader, Writer), String> {
    let options = &shared.options;
    let halves = connect(options).await?;
    let (limit, silence) = if halves.remote { (GREETING_REMOTE, Some(connect::SILENCE)) } else { (GREETING, None) };
    let (mut reader, mut writer) = halves.frames(MAX_FRAME, MAX_FRAME, silence);
    let silent = format!("the hub did not answer the greeting within {} s", limit.as_secs());
    let exchange = async {
        let token = shared.token.lock().clone();
        let hello = Hello { protocol: PROTOCOL, role: options.role as u32, name: options.name.clone(), token };
        writer.send(encode(0, Op::Hello as u8, &hello)).await.map_err(|error| format!("cannot greet the hub: {error}"))?;
        let frame = match reader.next().await {
            Some(Err(error)) if error.kind() == std::io::ErrorKind::TimedOut => return Err(silent.clone()),
            frame => frame.and_then(Result::ok),
        };
        match frame.and_then(|frame| split(frame.freeze())) {
            Some((0, OK, _)) => Ok((reader, writer)),
            Some((0, ERROR, payload)) => {
                let failure =
                    Failure::decode(payload).map(HubError::from).map_or_else(|error| error.to_string(), |error| error.to_string());
                Err(format!("the hub refused the connection: {failure}"))
            }
            _ => Err(format!("the hub closed the connection during the greeting{}", connect::hint(options, reader.read_buffer()))),
        }
    };
    tokio::time::timeout(limit, exchange).await.unwrap_or_else(|_| Err(silent.clone()))
}

/// Ends, with the reason, when the connection breaks.
async fn serve(shared: &Shared, mut reader: Reader, mut writer: Writer) -> String {
    let (frames, mut outgoing) = mpsc::channel::<Bytes>(WRITE_QUEUE);
    let link = Arc::new(Link { frames, waiting: Mutex::new(Some(HashMap::new())) });
    shared.link.send_replace(Some(Arc::clone(&link)));
    let _ = shared.pushes.send(Push::Connected);
    let write = async {
        while let Some(frame) = outgoing.recv().await {
            if let Err(error) = writer.feed(frame).await {
                return format!("cannot write to the hub: {error}");
            }
            while let Ok(frame) = outgoing.try_recv() {
                if let Err(error) = writer.feed(frame).await {
                    return format!("cannot write to the hub: {error}");
                }
            }
            if let Err(error) = SinkExt::<Bytes>::flush(&mut writer).await {
                return format!("cannot write to the hub: {error}");
            }
        }
        "closed".to_owned()
    };
    let read = async {
        loop {
            match reader.next().await {
                None => return "the hub closed the connection".to_owned(),
                // Over TLS a hub that was killed closes without saying so.
                Some(Err(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => return "the hub closed the connection".to_owned(),
                Some(Err(error)) => return format!("cannot read from the hub: {error}"),
                Some(Ok(frame)) => deliver(shared, &link, frame.freeze()),
            }
        }
    };
    // Says that this process still runs, also when it has nothing to ask: one that was stopped must not keep its partitions.
    let ping = async {
        let mut every = tokio::time::interval(PING_EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            if link.frames.send(encode(0, PING, &Empty {})).await.is_err() {
                return "closed".to_owned();
            }
        }
    };
    tokio::select! { reason = write => reason, reason = read => reason, reason = ping => reason }
}

fn deliver(shared: &Shared, link: &Link, frame: Bytes) {
    let Some((id, op, payload)) = split(frame) else { return };
    if op == PUSH {
        if let Ok(push) = PushFrame::decode(payload) {
            let _ = shared.pushes.send(Push::Cancelled { job_id: push.cancelled_job_id });
        }
        return;
    }
    let Some(answer) = link.waiting.lock().as_mut().and_then(|waiting| waiting.remove(&id)) else { return };
    let result = match op {
        OK => Ok(payload),
        _ => Err(Failure::decode(payload).map_or_else(|error| HubError::Invalid(error.to_string()), HubError::from)),
    };
    // The caller may have given up meanwhile.
    let _ = answer.send(result);
}
