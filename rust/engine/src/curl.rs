//! The desk at which the engine and the curl transport meet.
//!
//! curl runs outside, on somebody else's event loop. The engine lays an order on the desk for every request that it wants made and is told how that
//! goes; whoever works at the desk opens no socket without asking the order, and keeps a body back while its buffer is full. Everything else is
//! the engine's own: when and how often, what is vetted and where redirects lead, how long is waited, what is stored.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use fetchbox_model::failure::Code;
use serde::Serialize;

use crate::address::AddressPolicy;
use crate::failure::Failure;
use crate::sync::lock;

/// A body waits outside while so many bytes of it wait here.
const FULL: usize = 256 << 10;
/// And comes on when there are no more than these.
const ROOM: usize = 64 << 10;

/// What is to be fetched, and how.
#[derive(Clone, Default, Serialize)]
pub struct Order {
    /// The URL; its host is for names and certificates, what is connected to stands in `resolve` or `connect_to`.
    pub url: String,
    /// Header fields of an HTTP request.
    pub headers: Vec<(String, String)>,
    /// curl's `RESOLVE`: names with the vetted addresses.
    pub resolve: Vec<String>,
    /// curl's `CONNECT_TO`: the vetted address that a proxy is asked for.
    pub connect_to: Option<String>,
    /// Credentials of the job type.
    pub login: Option<Login>,
    /// The proxy endpoint.
    pub proxy: Option<Proxy>,
    /// Seconds until the connection is up.
    pub connect_timeout: f64,
    /// Whether HTTP/2 is offered.
    pub http2: bool,
    /// Whether certificates and host keys are checked.
    pub verify_tls: bool,
    /// Further roots.
    pub ca_file: Option<String>,
    /// Host keys for sftp.
    pub known_hosts: Option<String>,
}

/// Credentials and how they are shown.
#[derive(Clone, Serialize)]
pub struct Login {
    /// `basic`, `digest` or `ntlm`.
    pub kind: String,
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
}

/// A proxy endpoint as curl takes it.
#[derive(Clone, Serialize)]
pub struct Proxy {
    /// `http://`, `https://`, `socks5://` or `socks5h://`, without credentials.
    pub url: String,
    /// Its own.
    pub username: Option<String>,
    /// Its own.
    pub password: Option<String>,
}

/// What may be connected to for one order.
pub struct Targets {
    /// The vetted addresses, or the proxy's.
    pub addresses: Vec<SocketAddr>,
    /// Asked again for every socket (an FTP server's data come from a port of its own); `None` for a proxy, which is configured.
    pub policy: Option<AddressPolicy>,
}

/// The head of an answer.
#[derive(Debug, Clone, Default)]
pub struct Head {
    /// HTTP's status; 200 for what came by a protocol without.
    pub status: u16,
    /// Whether it came by HTTP/2.
    pub http2: bool,
    /// Its fields as they came.
    pub fields: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Whether a piece of a body was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It was.
    Yes,
    /// Not now: offer it again when told to.
    Full,
    /// Nobody wants it any more.
    Gone,
}

/// News for whoever works at the desk.
pub enum News {
    /// Begin with this.
    Begin(Arc<Call>),
    /// There is room for more of a body.
    Resume(u64),
    /// Nobody wants the answer any more.
    Drop(u64),
}

/// Where orders lie.
#[derive(Default)]
pub struct Desk {
    news: Mutex<Vec<News>>,
    next: AtomicU64,
    wake: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Desk {
    /// From now on somebody works here: `wake` is called when there is news.
    pub fn serve(&self, wake: Box<dyn Fn() + Send + Sync>) {
        // A second one would take the first one's orders: the first stays.
        let _ = self.wake.set(wake);
    }

    /// Takes what is new.
    pub fn take(&self) -> Vec<News> {
        std::mem::take(&mut *lock(&self.news))
    }

    fn post(&self, news: News) {
        let mut all = lock(&self.news);
        all.push(news);
        if all.len() == 1
            && let Some(wake) = self.wake.get()
        {
            wake();
        }
    }

    /// Lays an order down. `group` tells orders apart that may not share connections.
    pub fn place(self: &Arc<Self>, group: usize, order: Order, targets: Targets) -> Result<Hearing, Failure> {
        if self.wake.get().is_none() {
            return Err(Failure::new(Code::SystemInternal, "the curl transport does not run in this process"));
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let call = Arc::new(Call { id, group, order, targets, state: Mutex::default(), desk: self.clone() });
        self.post(News::Begin(call.clone()));
        Ok(Hearing(call))
    }
}

#[derive(Default)]
struct State {
    connected: bool,
    head: Option<Head>,
    pieces: VecDeque<Bytes>,
    buffered: usize,
    full: bool,
    refused: Option<(IpAddr, &'static str)>,
    ended: Option<Result<(), Failure>>,
    gone: bool,
    waker: Option<Waker>,
}

/// An order and what came of it.
pub struct Call {
    /// Its number.
    pub id: u64,
    /// Orders of one group may share connections.
    pub group: usize,
    /// What to do.
    pub order: Order,
    targets: Targets,
    state: Mutex<State>,
    desk: Arc<Desk>,
}

impl Call {
    /// Whether a socket to this address may be opened.
    pub fn permits(&self, address: SocketAddr) -> bool {
        let verdict = match &self.targets.policy {
            Some(policy) if self.targets.addresses.iter().any(|vetted| vetted.ip() == address.ip()) => policy.check(address),
            None if self.targets.addresses.contains(&address) => Ok(()),
            _ => Err("not among those that were vetted"),
        };
        match verdict {
            Ok(()) => true,
            Err(reason) => {
                lock(&self.state).refused = Some((address.ip(), reason));
                false
            }
        }
    }

    /// There is a connection, and the request is about to be made.
    pub fn connected(&self) {
        self.tell(|state| state.connected = true);
    }

    /// The head has come.
    pub fn head(&self, head: Head) {
        self.tell(|state| state.head = Some(head));
    }

    /// The next piece of the body has come.
    pub fn push(&self, data: &[u8]) -> Taken {
        let mut state = lock(&self.state);
        if state.gone {
            return Taken::Gone;
        }
        if state.buffered >= FULL {
            state.full = true;
            return Taken::Full;
        }
        state.buffered += data.len();
        state.pieces.push_back(Bytes::copy_from_slice(data));
        let waker = state.waker.take();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
        Taken::Yes
    }

    /// It is over.
    pub fn end(&self, result: Result<(), Failure>) {
        self.tell(|state| {
            let refused = state.refused.take();
            state.ended = Some(match (result, refused) {
                (Err(failure), Some((ip, reason))) if failure.code == Code::DownloadConnectFailed => {
                    Err(Failure::new(Code::DownloadBlockedAddress, format!("the address {ip} is {reason}"))
                        .with("blocked_address", ip.to_string()))
                }
                (result, _) => result,
            });
        });
    }

    fn tell(&self, what: impl FnOnce(&mut State)) {
        let mut state = lock(&self.state);
        what(&mut state);
        let waker = state.waker.take();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
    }
}

/// The engine's end of a call; to drop it is to say that nobody listens any more.
pub struct Hearing(Arc<Call>);

impl Hearing {
    /// Ready once there is a connection, or there will be none.
    pub fn poll_connected(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = lock(&self.0.state);
        if state.connected || state.head.is_some() || state.ended.is_some() {
            return Poll::Ready(());
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// The head of the answer.
    pub fn poll_head(&self, cx: &Context<'_>) -> Poll<Result<Head, Failure>> {
        let mut state = lock(&self.0.state);
        if let Some(head) = state.head.take() {
            return Poll::Ready(Ok(head));
        }
        match &state.ended {
            Some(Err(failure)) => Poll::Ready(Err(failure.clone())),
            Some(Ok(())) => Poll::Ready(Err(Failure::new(Code::DownloadBadResponse, "the answer has no head"))),
            None => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// The next piece of the body; `None` at its end.
    pub fn poll_data(&self, cx: &Context<'_>) -> Poll<Option<Result<Bytes, Failure>>> {
        let mut state = lock(&self.0.state);
        if let Some(piece) = state.pieces.pop_front() {
            state.buffered -= piece.len();
            if state.full && state.buffered <= ROOM {
                state.full = false;
                drop(state);
                self.0.desk.post(News::Resume(self.0.id));
            }
            return Poll::Ready(Some(Ok(piece)));
        }
        match &state.ended {
            Some(Err(failure)) => Poll::Ready(Some(Err(failure.clone()))),
            Some(Ok(())) => Poll::Ready(None),
            None => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Hearing {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.gone = true;
        state.pieces.clear();
        let over = state.ended.is_some();
        drop(state);
        if !over {
            self.0.desk.post(News::Drop(self.0.id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::task::Waker;

    fn desk() -> (Arc<Desk>, Arc<AtomicUsize>) {
        let (desk, woken) = (Arc::new(Desk::default()), Arc::new(AtomicUsize::new(0)));
        let count = woken.clone();
        desk.serve(Box::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
        }));
        (desk, woken)
    }

    fn socket(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn call(desk: &Arc<Desk>, addresses: &[&str], policy: Option<AddressPolicy>) -> (Hearing, Arc<Call>) {
        let targets = Targets { addresses: addresses.iter().map(|text| socket(text)).collect(), policy };
        let hearing = desk.place(1, Order::default(), targets).unwrap();
        let call = desk.take().into_iter().find_map(|news| if let News::Begin(call) = news { Some(call) } else { None }).unwrap();
        (hearing, call)
    }

    #[test]
    fn nobody_at_the_desk_is_a_failure_and_not_a_wait() {
        let desk = Arc::new(Desk::default());
        let failure = desk.place(1, Order::default(), Targets { addresses: vec![], policy: None }).err().unwrap();
        assert_eq!(failure.code, Code::SystemInternal);
    }

    #[test]
    fn a_full_buffer_holds_the_body_back_until_there_is_room() {
        let (desk, woken) = desk();
        let (hearing, call) = call(&desk, &[], None);
        let cx = Context::from_waker(Waker::noop());
        assert!(hearing.poll_data(&cx).is_pending());
        for _ in 0..4 {
            assert_eq!(call.push(&[7; FULL / 4]), Taken::Yes);
        }
        assert_eq!(call.push(&[7]), Taken::Full);
        let before = woken.load(Ordering::Relaxed);
        for _ in 0..2 {
            assert!(matches!(hearing.poll_data(&cx), Poll::Ready(Some(Ok(_)))));
            assert!(desk.take().is_empty());
        }
        assert!(matches!(hearing.poll_data(&cx), Poll::Ready(Some(Ok(_)))));
        assert!(matches!(desk.take()[..], [News::Resume(id)] if id == call.id));
        assert_eq!(woken.load(Ordering::Relaxed), before + 1);
        call.end(Ok(()));
        assert!(matches!(hearing.poll_data(&cx), Poll::Ready(Some(Ok(_)))), "what came before the end is given out before it");
        assert!(matches!(hearing.poll_data(&cx), Poll::Ready(None)));
        drop(hearing);
        assert!(desk.take().is_empty(), "what is over needs no end");
    }

    #[test]
    fn who_no_longer_listens_says_so_and_takes_nothing() {
        let (desk, _) = desk();
        let (hearing, call) = call(&desk, &[], None);
        drop(hearing);
        assert!(matches!(desk.take()[..], [News::Drop(id)] if id == call.id));
        assert_eq!(call.push(b"x"), Taken::Gone);
    }

    /// | vetted | asked for | allowed |
    #[test]
    fn only_vetted_addresses_are_connected_to() {
        let (desk, _) = desk();
        let policy = || Some(AddressPolicy::parse(&["127.0.0.0/8".to_owned()], &["127.0.0.1:8080".to_owned()]).unwrap());
        let table = [
            ("93.184.216.34:21", "93.184.216.34:21", true),
            ("93.184.216.34:21", "93.184.216.34:40000", true),
            ("93.184.216.34:21", "93.184.216.35:21", false),
            ("127.0.0.1:21", "127.0.0.1:40000", true),
            ("127.0.0.1:21", "127.0.0.1:8080", false),
            ("127.0.0.1:21", "10.0.0.1:21", false),
        ];
        for (vetted, asked, allowed) in table {
            let (_hearing, call) = call(&desk, &[vetted], policy());
            assert_eq!(call.permits(socket(asked)), allowed, "{vetted} {asked}");
        }
        let (_hearing, proxied) = call(&desk, &["10.0.0.1:3128"], None);
        assert!(proxied.permits(socket("10.0.0.1:3128")));
        assert!(!proxied.permits(socket("10.0.0.1:22")));
    }

    #[test]
    fn a_refused_socket_explains_the_connection_that_failed() {
        let (desk, _) = desk();
        let (hearing, call) = call(&desk, &["93.184.216.34:21"], Some(AddressPolicy::default()));
        assert!(!call.permits(socket("127.0.0.1:21")));
        call.end(Err(Failure::new(Code::DownloadConnectFailed, "no")));
        let cx = Context::from_waker(Waker::noop());
        assert!(matches!(hearing.poll_head(&cx), Poll::Ready(Err(failure)) if failure.code == Code::DownloadBlockedAddress));
    }
}
