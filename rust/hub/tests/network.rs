//! The hub over real TCP and TLS sockets: who gets in, what is said to those who do not, and what happens when somebody vanishes without a word.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::*;
use fetchbox_hub::*;
use fetchbox_model::message::ResourceState;
use futures_util::future::join_all;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const TOKEN: &str = "a token of the tests";
/// Long enough for a few attempts to connect.
const ATTEMPTS: Duration = Duration::from_secs(2);

/// An authority, and the files of the certificates that it signs.
struct Authority {
    directory: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        Self::named("test authority")
    }

    fn named(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { directory, issuer }
    }

    fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// Certificate and key in files.
    fn sign(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        change(&mut params);
        let files = (self.directory.path().join(format!("{name}.pem")), self.directory.path().join(format!("{name}.key")));
        std::fs::write(&files.0, params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        std::fs::write(&files.1, key.serialize_pem()).unwrap();
        files
    }
}

/// A hub that listens on loopback, with TLS when there are files for it.
fn hub(dir: &Path, tls: Option<(PathBuf, PathBuf)>) -> Running {
    let (tls_cert, tls_key) = tls.unzip();
    let listen = Some("tcp://127.0.0.1:0".to_owned());
    Running::start(HubConfig { listen, tls_cert, tls_key, token: Some(TOKEN.to_owned()), ..config(dir) })
}

fn port(running: &Running) -> u16 {
    running.hub().address().unwrap().port()
}

/// How a client reaches it.
fn options(host: &str, port: u16, tls_ca: Option<PathBuf>) -> ClientOptions {
    ClientOptions { url: format!("tcp://{host}:{port}"), token: Some(TOKEN.into()), tls_ca, name: "test".into(), role: Role::Operator }
}

fn start(options: ClientOptions) -> HubClient {
    HubClient::start(&tokio::runtime::Handle::current(), options)
}

async fn connected(options: ClientOptions) -> HubClient {
    let client = start(options);
    client.wait_connected(LIMIT).await.unwrap();
    client
}

/// Why there is no connection after some attempts.
async fn trouble(options: ClientOptions) -> String {
    let client = start(options);
    let error = client.wait_connected(ATTEMPTS).await.unwrap_err();
    client.close();
    error.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_settle_over_tcp_and_over_tls_and_roles_hold() {
    let authority = Authority::new();
    for tls in [None, Some(authority.sign("localhost", |_| {}))] {
        let dir = tempfile::tempdir().unwrap();
        let ca = tls.is_some().then(|| authority.ca());
        let running = hub(dir.path(), tls);
        let to = |role| ClientOptions { role, ..options("localhost", port(&running), ca.clone()) };
        let (api, worker) = (connected(to(Role::Api)).await, connected(to(Role::Worker)).await);

        let id = new_id();
        api.accept(AcceptRequest { manifest: Some(vec![b'm'; 8 << 20].into()), ..accept_request(&id, 2, None) }).await.unwrap();
        let assignment = worker.join(join("w")).await.unwrap();
        let polled = worker.poll(poll("w", &assignment, 5000)).await.unwrap();
        assert_eq!(polled.batches[0].count, 2);
        report(&worker, vec![status(&id, vec![outcome(0, ResourceState::Stored, "a"), outcome(1, ResourceState::Stored, "b")])]).await;
        assert_eq!(job(&api, &id).await["status"], "completed");

        let refusals = [
            worker.accept(accept_request(&new_id(), 1, None)).await.map(drop).unwrap_err(),
            worker.ledger("export", "{}".into()).await.map(drop).unwrap_err(),
            api.join(join("a")).await.map(drop).unwrap_err(),
            api.append(AppendRequest { member: String::new(), entries: vec![], commits: vec![] }).await.map(drop).unwrap_err(),
        ];
        assert_eq!(refusals.map(code), ["FORBIDDEN"; 4]);
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_does_not_get_in_is_told_why() {
    let (authority, stranger, namesake) = (Authority::new(), Authority::named("a stranger"), Authority::new());
    let dirs: Vec<_> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
    let expired = |params: &mut CertificateParams| params.not_after = date_time_ymd(2001, 1, 1);
    let plain = hub(dirs[0].path(), None);
    let tls = hub(dirs[1].path(), Some(authority.sign("localhost", |_| {})));
    let old = hub(dirs[2].path(), Some(authority.sign("127.0.0.1", expired)));
    let misnamed = hub(dirs[3].path(), Some(authority.sign("elsewhere.test", |_| {})));
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let ca = || Some(authority.ca());
    let no_file = Some(authority.directory.path().join("missing.pem"));
    let cases = [
        (options("127.0.0.1", nobody, None), "cannot connect to the hub at 127.0.0.1:"),
        (options("hub.invalid", 8090, ca()), "the hub's name hub.invalid cannot be resolved"),
        (options("localhost", port(&tls), no_file), "missing.pem cannot be used"),
        (options("localhost", port(&tls), Some(stranger.ca())), "nothing in hub.tls_ca has signed its certificate"),
        (options("localhost", port(&tls), Some(namesake.ca())), "nothing in hub.tls_ca has signed its certificate"),
        (options("localhost", port(&tls), None), "set hub.tls_ca"),
        (options("127.0.0.1", port(&tls), ca()), "hub.url must name it as its certificate does"),
        (options("localhost", port(&misnamed), ca()), "hub.url must name it as its certificate does"),
        (options("127.0.0.1", port(&old), ca()), "renew its certificate"),
        (options("127.0.0.1", port(&plain), ca()), "is its hub.tls_cert set?"),
        (ClientOptions { token: None, ..options("127.0.0.1", port(&plain), None) }, "UNAUTHORIZED: the hub's token is missing or wrong"),
        (ClientOptions { token: Some("a token of the tesT".into()), ..options("localhost", port(&tls), ca()) }, "set hub.token"),
        (ClientOptions { url: "http://localhost:1".into(), ..options("", 0, None) }, "is neither unix:///path nor tcp://host:port"),
    ];
    let told = join_all(cases.iter().map(|(options, _)| trouble(options.clone()))).await;
    for ((options, expected), told) in cases.iter().zip(&told) {
        assert!(told.contains(expected), "{}: {told}", options.url);
        assert!(!told.contains(TOKEN), "{told}");
    }
    let counted = |running: &Running, reason: &str| {
        let text = running.hub().metrics_text();
        let name = format!("fetchbox_hub_connections_refused_total{{reason=\"{reason}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&name).and_then(|count| count.parse::<u64>().ok())).unwrap()
    };
    assert!(counted(&plain, "token") > 0 && counted(&plain, "greeting") > 0 && counted(&tls, "tls") > 0 && counted(&tls, "token") > 0);
    for running in [plain, tls, old, misnamed] {
        running.stop().await;
    }
}

#[tokio::test]
async fn what_cannot_be_listened_on_is_said_at_the_start() {
    let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = format!("tcp://{}", taken.local_addr().unwrap());
    let (cert, key) = authority.sign("localhost", |_| {});
    let (_, other_key) = authority.sign("other.test", |_| {});
    let loopback = || Some("tcp://127.0.0.1:0".to_owned());
    let with = |listen, tls_cert: &Path, tls_key: &Path| {
        let (tls_cert, tls_key) = (Some(tls_cert.to_owned()), Some(tls_key.to_owned()));
        Hub::open(HubConfig { listen, tls_cert, tls_key, ..config(dir.path()) }).err().unwrap().to_string()
    };
    for (told, expected) in [
        (with(Some(taken), &cert, &key), "(hub.listen): Address already in use"),
        (with(loopback(), Path::new("/nowhere"), &key), "hub.tls_cert /nowhere cannot be used"),
        (with(loopback(), &key, &key), "there is no certificate in it"),
        (with(loopback(), &cert, &cert), "hub.tls_key"),
        (with(loopback(), &cert, &other_key), "keys may not be consistent"),
    ] {
        assert!(told.contains(expected), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_can_say_little_and_not_for_long() {
    let dir = tempfile::tempdir().unwrap();
    let running = hub(dir.path(), None);
    // The first frame may hold a greeting and nothing larger: the hub hangs up before the rest has come.
    let mut large = TcpStream::connect(("127.0.0.1", port(&running))).await.unwrap();
    large.write_all(&(64u32 << 20).to_be_bytes()).await.unwrap();
    let read = tokio::time::timeout(Duration::from_secs(5), large.read(&mut [0; 16])).await.expect("it hangs up at once");
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");

    // More silent ones than there is room for at the door: whoever comes after them waits, but not for ever.
    let silent = join_all((0..300).map(|_| TcpStream::connect(("127.0.0.1", port(&running))))).await;
    let begun = Instant::now();
    let client = connected(options("127.0.0.1", port(&running), None)).await;
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert!(silent.iter().all(Result::is_ok));
    // Who is in is not held up by them.
    assert!(ask(&client, "health", json!({})).await.is_object());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_version_is_told_which_one_to_update() {
    let dir = tempfile::tempdir().unwrap();
    let running = hub(dir.path(), None);
    // Request 0, the greeting; the first field of its message is the protocol.
    let greeting = [&[0; 8][..], &[1], &[8, 77]].concat();
    let mut client = TcpStream::connect(("127.0.0.1", port(&running))).await.unwrap();
    client.write_all(&[&(greeting.len() as u32).to_be_bytes()[..], &greeting].concat()).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(LIMIT, client.read_to_end(&mut answer)).await.expect("it hangs up").unwrap();
    let said = String::from_utf8_lossy(&answer);
    assert!(said.contains("the hub speaks protocol 1, the client 77: update one of them"), "{said}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_needs_no_restart() {
    let (authority, other) = (Authority::new(), Authority::new());
    let dir = tempfile::tempdir().unwrap();
    let files = authority.sign("localhost", |_| {});
    let running = hub(dir.path(), Some(files.clone()));
    connected(options("localhost", port(&running), Some(authority.ca()))).await.close();
    // Half of a renewal, then all of it.
    std::fs::write(&files.0, "nothing").unwrap();
    connected(options("localhost", port(&running), Some(authority.ca()))).await.close();
    let renewed = other.sign("localhost", |_| {});
    std::fs::copy(&renewed.1, &files.1).unwrap();
    std::fs::copy(&renewed.0, &files.0).unwrap();
    connected(options("localhost", port(&running), Some(other.ca()))).await.close();
    running.stop().await;
}

/// A link that can be cut: nothing passes any more, and nobody is told.
async fn cuttable_link(to: u16) -> (u16, watch::Sender<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (cut, up) = watch::channel(false);
    tokio::spawn(async move {
        loop {
            let (near, _) = listener.accept().await.unwrap();
            let mut is_cut = up.clone();
            tokio::spawn(async move {
                if *is_cut.borrow() {
                    return std::future::pending::<()>().await;
                }
                let far = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                let (mut near_read, mut near_write) = near.into_split();
                let (mut far_read, mut far_write) = far.into_split();
                tokio::select! {
                    _ = tokio::io::copy(&mut near_read, &mut far_write) => return,
                    _ = tokio::io::copy(&mut far_read, &mut near_write) => return,
                    _ = is_cut.wait_for(|cut| *cut) => {}
                }
                // Both ends stay open.
                let () = std::future::pending().await;
                drop((near_read, near_write, far_read, far_write));
            });
        }
    });
    (port, cut)
}

#[tokio::test(flavor = "multi_thread")]
async fn both_ends_notice_a_link_that_was_cut() {
    let authority = Authority::new();
    let dir = tempfile::tempdir().unwrap();
    let (tls_cert, tls_key) = authority.sign("localhost", |_| {});
    let config = HubConfig {
        listen: Some("tcp://127.0.0.1:0".into()),
        tls_cert: Some(tls_cert),
        tls_key: Some(tls_key),
        token: Some(TOKEN.into()),
        session_timeout: 5.0,
        ..config(dir.path())
    };
    let running = Running::start(config);
    let (link, cut) = cuttable_link(port(&running)).await;
    let through = options("localhost", link, Some(authority.ca()));
    let client = Arc::new(connected(ClientOptions { role: Role::Worker, ..through }).await);
    let other = connected(options("localhost", port(&running), Some(authority.ca()))).await;
    let (first, second) = (client.join(join("w1")).await.unwrap(), other.join(join("w2")).await.unwrap());
    assert_eq!((first.partitions.len(), second.partitions.len()), (8, 0));

    // An idle connection lives on the signs of life of both sides: longer than either limit.
    let mut pushes = client.subscribe();
    assert!(tokio::time::timeout(Duration::from_secs(11), pushes.recv()).await.is_err());

    let begun = Instant::now();
    cut.send_replace(true);
    // The hub gives its partitions to the other one,
    while other.join(join("w2")).await.unwrap().partitions.iter().filter(|p| !p.revoking).count() < 8 {
        assert!(begun.elapsed() < LIMIT);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // and the client knows that it is cut off: what it asks ends with the reason.
    let asking = client.settled(vec![new_id()]).await.unwrap_err();
    assert!(matches!(asking, HubError::Unavailable(_)), "{asking:?}");
    let mut trouble = client.trouble();
    let reason = tokio::time::timeout(LIMIT, trouble.wait_for(|trouble| !trouble.is_empty())).await.unwrap().unwrap().clone();
    assert_eq!(reason, "cannot read from the hub: no sign of life for 10 s");
    assert!(begun.elapsed() < Duration::from_secs(14), "{:?}", begun.elapsed());

    cut.send_replace(false);
    client.wait_connected(LIMIT).await.unwrap();
    client.join(join("w1")).await.unwrap();
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_greets_nobody_is_given_up() {
    let authority = Authority::new();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let reasons = [None, Some(authority.ca())].map(|ca| async move {
        let client = start(options("localhost", port, ca));
        let mut trouble = client.trouble();
        tokio::time::timeout(LIMIT, trouble.wait_for(|trouble| trouble != "not connected yet")).await.unwrap().unwrap().clone()
    });
    let expected = ["the hub did not answer the greeting within 10 s", "no handshake within 10 s"];
    for (reason, expected) in join_all(reasons).await.into_iter().zip(expected) {
        assert!(reason.contains(expected), "{reason}");
    }
}
