//! A web server that writes exactly the bytes it is told to.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// What is done with a connection after a request came.
#[derive(Clone)]
pub enum Step {
    Send(Vec<u8>),
    /// The same bytes again and again, until the client goes.
    Endless(Vec<u8>),
    /// Waits for the client to go, for at most 20 s.
    Hang,
    Pause(Duration),
    /// RST.
    Reset,
    Close,
}

pub struct Origin {
    pub address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    connections: Arc<Mutex<usize>>,
}

/// `Send` with text.
pub fn send(text: &str) -> Step {
    Step::Send(text.as_bytes().to_vec())
}

/// A plain 200 with a body.
pub fn ok(body: &[u8]) -> Vec<Step> {
    let mut bytes = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    bytes.extend_from_slice(body);
    vec![Step::Send(bytes)]
}

impl Origin {
    /// Answers the n-th request (from 0) with the steps that `script` gives for it.
    pub fn new(script: impl Fn(usize, &str) -> Vec<Step> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let connections: Arc<Mutex<usize>> = Arc::default();
        let script = Arc::new(script);
        let (seen, opened) = (requests.clone(), connections.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                *opened.lock().unwrap() += 1;
                let (seen, script) = (seen.clone(), script.clone());
                thread::spawn(move || serve(stream, &seen, &*script));
            }
        });
        Self { address, requests, connections }
    }

    /// The same answer to every request.
    pub fn always(steps: Vec<Step>) -> Self {
        Self::new(move |_, _| steps.clone())
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The heads of all requests, lower-cased.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    pub fn connections(&self) -> usize {
        *self.connections.lock().unwrap()
    }
}

fn serve(mut stream: TcpStream, seen: &Mutex<Vec<String>>, script: &dyn Fn(usize, &str) -> Vec<Step>) {
    stream.set_nodelay(true).unwrap();
    let mut buffer = Vec::new();
    loop {
        let head = loop {
            if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&buffer[..end + 4]).to_ascii_lowercase();
                buffer.drain(..end + 4);
                break head;
            }
            let mut chunk = [0; 4096];
            match stream.read(&mut chunk) {
                Ok(0) | Err(_) => return,
                Ok(read) => buffer.extend_from_slice(&chunk[..read]),
            }
        };
        let number = {
            let mut seen = seen.lock().unwrap();
            seen.push(head.clone());
            seen.len() - 1
        };
        for step in script(number, &head) {
            match step {
                Step::Send(bytes) => {
                    if stream.write_all(&bytes).is_err() {
                        return;
                    }
                }
                Step::Endless(bytes) => while stream.write_all(&bytes).is_ok() {},
                Step::Hang => {
                    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                    // Whatever comes, the client has given up.
                    let _ = stream.read(&mut [0]);
                    return;
                }
                Step::Pause(time) => thread::sleep(time),
                Step::Reset => {
                    let socket = socket2::SockRef::from(&stream);
                    socket.set_linger(Some(Duration::ZERO)).unwrap();
                    return;
                }
                Step::Close => return,
            }
        }
    }
}
