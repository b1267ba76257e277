//! One request by the curl transport: the URL's addresses are vetted here, curl connects to them and talks, and the answer is judged like any other.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use fetchbox_model::failure::Code;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderName, HeaderValue};
use http::response::Parts;
use http::{Response, StatusCode, Version};
use url::{Position, Url};

use super::attempt::{Answered, Attempt, check_size};
use super::request::Headers;
use super::route::{is_remote_name, late, resolve, vetted_at};
use crate::curl::{Head, Order, Proxy, Targets};
use crate::failure::Failure;
use crate::net::link::{Link, Reply};
use crate::profile::{Profile, seconds};
use crate::proxy::{Endpoint, Scheme};
use crate::redirect::check_scheme;
use crate::resume::RangeRequest;

/// What curl speaks beside http and https, with the port of each.
const SCHEMES: [(&str, u16); 3] = [("ftp", 21), ("ftps", 990), ("sftp", 22)];

/// How much later than the connection's own time-out it is given up here.
const LOOP_LATE: Duration = Duration::from_secs(5);

/// Whether the URL is one of HTTP, so that it has a status, headers and redirects.
pub fn is_http(url: &Url) -> bool {
    matches!(url.scheme(), "http" | "https")
}

/// Whether the scheme is fetched for this job type. Redirects lead to http and https only, whatever the transport.
pub fn check_first(url: &Url, profile: &Profile) -> Result<(), Failure> {
    if profile.by_curl && SCHEMES.iter().any(|(name, _)| *name == url.scheme()) {
        return canonical(url).map(|_| ());
    }
    Ok(check_scheme(url)?)
}

/// A URL of a file server with its host as it stands in URLs of the web (the parser takes hosts of schemes that it does not know as they come), and
/// without what curl would take for an order to list a directory or to translate the text.
fn canonical(url: &Url) -> Result<Url, Failure> {
    let bad = |what: &str| Failure::new(Code::DownloadBadUrl, what);
    if url.host_str().is_none_or(str::is_empty) {
        return Err(bad("URL without a host"));
    }
    let mut fixed = url.clone();
    fixed.set_fragment(None);
    let like_http = Url::parse(&format!("http{}", &url[Position::AfterScheme..])).map_err(|error| bad(&error.to_string()))?;
    check_scheme(&like_http)?;
    fixed.set_host(like_http.host_str()).map_err(|error| bad(&error.to_string()))?;
    if fixed.path().ends_with('/') || fixed.path().is_empty() {
        return Err(bad("the URL names a directory, not a file"));
    }
    if fixed.path().to_ascii_lowercase().contains(";type=") {
        return Err(bad("a URL with ;type= is not fetched: files come as they are"));
    }
    Ok(fixed)
}

fn port_of(url: &Url) -> u16 {
    let own = || SCHEMES.iter().find(|(name, _)| *name == url.scheme()).map(|(_, port)| *port);
    url.port_or_known_default().or_else(own).unwrap_or(0)
}

impl Attempt<'_> {
    /// Sends one request by curl and waits for the head of its answer.
    pub async fn exchange_by_curl(
        &mut self,
        url: &Url,
        headers: &Headers,
        range: Option<&RangeRequest>,
        proxy: Option<&Endpoint>,
    ) -> Result<Answered, Failure> {
        let profile = self.profile.clone();
        let url = if is_http(url) { url.clone() } else { canonical(url)? };
        if proxy.is_some() && matches!(url.scheme(), "ftp" | "ftps") {
            // The server names the address for the data; the proxy would be asked for one that nobody has vetted.
            return Err(Failure::new(Code::DownloadBadScheme, "ftp goes through no proxy"));
        }
        let started = Instant::now();
        let limit = seconds(profile.fetch.connect_timeout);
        let addresses = match tokio::time::timeout(limit, reach(&profile, &url, proxy)).await {
            Ok(found) => found?,
            Err(_) => return Err(late(proxy, true, limit.as_secs_f64())),
        };
        let resolved = started.elapsed();
        self.learned.times.dns += resolved;
        let order = order(&profile, &url, headers, range, proxy, &addresses)?;
        let order = Order { connect_timeout: limit.saturating_sub(resolved).as_secs_f64().max(0.001), ..order };
        let targets = match proxy {
            Some(_) => Targets { addresses: addresses.proxy, policy: None },
            None => Targets { addresses: addresses.origin, policy: Some(profile.policy.clone()) },
        };
        let sent = Instant::now();
        let hearing = self.core.curl.place(profile.tag, order, targets)?;
        // curl keeps the limit by itself; this one is for a loop that is too busy to look.
        if tokio::time::timeout(limit + LOOP_LATE, poll_fn(|cx| hearing.poll_connected(cx))).await.is_err() {
            return Err(late(proxy, false, limit.as_secs_f64()));
        }
        let connected = Instant::now();
        self.learned.times.connect += connected - sent;
        self.patience.progress(0);
        let head = self.patience.wait(poll_fn(|cx| hearing.poll_head(cx))).await??;
        self.patience.progress(0);
        self.learned.times.first_byte += connected.elapsed();
        let head = parts(head)?;
        // A head that is too large has no status, as with the native transport.
        check_size(&head).map_err(|failure| failure.status(0))?;
        Ok(Answered { link: Link::Curl(hearing), origin: String::new(), head, body: Reply::Plain })
    }
}

struct Addresses {
    origin: Vec<SocketAddr>,
    proxy: Vec<SocketAddr>,
}

async fn reach(profile: &Profile, url: &Url, proxy: Option<&Endpoint>) -> Result<Addresses, Failure> {
    let by_name = proxy.is_some_and(|endpoint| endpoint.remote_dns) && is_remote_name(url);
    let host = url.host_str().unwrap_or_default();
    let origin = if by_name { Vec::new() } else { vetted_at(profile, host, port_of(url)).await? };
    let proxy = match proxy {
        Some(endpoint) => resolve(profile, &endpoint.host, endpoint.port)
            .await
            .map_err(|failure| Failure { code: Code::DownloadProxyFailed, ..failure })?,
        None => Vec::new(),
    };
    Ok(Addresses { origin, proxy })
}

fn order(
    profile: &Profile,
    url: &Url,
    headers: &Headers,
    range: Option<&RangeRequest>,
    proxy: Option<&Endpoint>,
    addresses: &Addresses,
) -> Result<Order, Failure> {
    let mut order = Order {
        http2: profile.fetch.http2 && profile.fetch.limit_rate == 0,
        verify_tls: profile.fetch.verify_tls,
        ca_file: profile.fetch.ca_file.clone(),
        known_hosts: profile.known_hosts.clone(),
        ..Order::default()
    };
    if is_http(url) {
        let request = headers.request(url, true, range)?;
        order.url = request.uri().to_string();
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        order.headers = request.headers().iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect();
        let own = headers.is_at_home() && !request.headers().contains_key(AUTHORIZATION);
        // `basic` is a header already.
        order.login = profile.login.clone().filter(|login| own && login.kind != "basic");
    } else {
        url.as_str().clone_into(&mut order.url);
        order.login.clone_from(&profile.login);
    }
    match proxy {
        None => order.resolve = pinned(url.host_str().unwrap_or_default(), port_of(url), &addresses.origin),
        Some(endpoint) => {
            order.resolve = pinned(&endpoint.host, endpoint.port, &addresses.proxy);
            order.connect_to = addresses.origin.first().map(|address| format!("::{}:{}", bracketed(address), address.port()));
            let scheme = match endpoint.scheme {
                Scheme::Http => "http",
                Scheme::Https => "https",
                Scheme::Socks5 => "socks5h",
            };
            let (username, password) = endpoint.login.clone().unzip();
            order.proxy = Some(Proxy { url: format!("{scheme}://{}:{}", endpoint.host, endpoint.port), username, password });
        }
    }
    Ok(order)
}

fn bracketed(address: &SocketAddr) -> String {
    if address.is_ipv6() { format!("[{}]", address.ip()) } else { address.ip().to_string() }
}

/// A name's addresses for curl's own cache, for a short time; with and without the dot at its end, which curl leaves out. Literals need none.
fn pinned(host: &str, port: u16, addresses: &[SocketAddr]) -> Vec<String> {
    if addresses.is_empty() || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok() {
        return Vec::new();
    }
    let list: Vec<String> = addresses.iter().map(bracketed).collect();
    let entry = |name: &str| format!("+{name}:{port}:{}", list.join(","));
    let bare = host.trim_end_matches('.');
    if bare == host { vec![entry(host)] } else { vec![entry(host), entry(bare)] }
}

/// The head as the native transport gives it. curl takes fields that contradict each other; they are told apart here.
fn parts(head: Head) -> Result<Parts, Failure> {
    let bad = |what: &str| Failure::new(Code::DownloadBadResponse, what);
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(head.status).map_err(|_| bad("the status is none of HTTP's"))?;
    *response.version_mut() = if head.http2 { Version::HTTP_2 } else { Version::HTTP_11 };
    for (name, value) in &head.fields {
        let name = HeaderName::from_bytes(name).map_err(|_| bad("a header's name is none"))?;
        let value = HeaderValue::from_bytes(value).map_err(|_| bad("a header's value holds what it may not"))?;
        if name == CONTENT_LENGTH && response.headers().get(CONTENT_LENGTH).is_some_and(|other| *other != value) {
            return Err(Failure::new(Code::DownloadBadFraming, "two different Content-Lengths"));
        }
        if response.headers_mut().try_append(name, value).is_err() {
            return Err(bad("too many header fields"));
        }
    }
    Ok(response.into_parts().0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// | URL | as curl is given it |
    #[test]
    fn table_of_file_servers() {
        let table: [(&str, Result<&str, Code>); 14] = [
            ("ftp://Host.example/a/b.bin", Ok("ftp://host.example/a/b.bin")),
            ("ftps://HOST.example:2121/b", Ok("ftps://host.example:2121/b")),
            ("sftp://H.Example/%2Fetc/motd", Ok("sftp://h.example/%2Fetc/motd")),
            ("sftp://0x7f.1/x", Ok("sftp://127.0.0.1/x")),
            ("ftps://2130706433/x", Ok("ftps://127.0.0.1/x")),
            ("sftp://[::1]:22/x", Ok("sftp://[::1]:22/x")),
            ("sftp://b\u{fc}cher.example/x", Ok("sftp://xn--bcher-kva.example/x")),
            ("ftp://h/dir/", Err(Code::DownloadBadUrl)),
            ("ftp://h", Err(Code::DownloadBadUrl)),
            ("sftp://h", Err(Code::DownloadBadUrl)),
            ("ftp://h/a;type=d", Err(Code::DownloadBadUrl)),
            ("ftps://h/a;TYPE=a", Err(Code::DownloadBadUrl)),
            ("ftps://h..example/a", Err(Code::DownloadBadUrl)),
            ("sftp:///a", Err(Code::DownloadBadUrl)),
        ];
        for (text, expected) in table {
            let got = canonical(&Url::parse(text).unwrap()).map_err(|failure| failure.code);
            assert_eq!(got.as_ref().map(Url::as_str).map_err(|code| *code), expected, "{text}");
        }
    }

    #[test]
    fn ports_of_file_servers() {
        for (text, port) in [("ftp://h/a", 21), ("ftps://h/a", 990), ("sftp://h/a", 22), ("sftp://h:21/a", 21), ("https://h/", 443)] {
            assert_eq!(port_of(&Url::parse(text).unwrap()), port, "{text}");
        }
    }

    #[test]
    fn vetted_addresses_are_pinned_to_their_name() {
        let addresses = ["192.0.2.1:21", "[2001:db8::1]:21"].map(|text| text.parse().unwrap());
        assert_eq!(pinned("h.example", 21, &addresses), ["+h.example:21:192.0.2.1,[2001:db8::1]"]);
        assert_eq!(pinned("h.", 21, &addresses[..1]), ["+h.:21:192.0.2.1", "+h:21:192.0.2.1"]);
        assert!(pinned("192.0.2.1", 21, &addresses).is_empty());
        assert!(pinned("[2001:db8::1]", 21, &addresses).is_empty());
    }

    /// | status | fields | judged |
    #[test]
    fn table_of_heads() {
        let fields =
            |list: &[(&str, &str)]| list.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).collect();
        type Row = (u16, &'static [(&'static str, &'static str)], Option<Code>);
        let table: [Row; 7] = [
            (200, &[("Content-Length", "1"), ("X", "y")], None),
            (200, &[("Content-Length", "1"), ("content-length", "1")], None),
            (200, &[("Content-Length", "1"), ("content-length", "2")], Some(Code::DownloadBadFraming)),
            (200, &[("bad name", "1")], Some(Code::DownloadBadResponse)),
            (200, &[("x", "a\0b")], Some(Code::DownloadBadResponse)),
            (99, &[], Some(Code::DownloadBadResponse)),
            (599, &[], None),
        ];
        for (status, list, expected) in table {
            let got = parts(Head { status, fields: fields(list), ..Head::default() });
            assert_eq!(got.err().map(|failure| failure.code), expected, "{status} {list:?}");
        }
    }
}
