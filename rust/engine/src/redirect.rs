//! Where a redirect leads and what may go along. Pure.

use fetchbox_model::failure::Code;
use fetchbox_model::manifest::has_empty_label;
use url::{Host, Url};

/// Caller headers that may cross an origin; none of them can hold a secret.
const SAFE_HEADERS: [&str; 4] = ["accept", "accept-language", "accept-charset", "user-agent"];

/// Whether the status asks for another request.
pub fn is_redirect(status: u16) -> bool {
    matches!(status, 301 | 302 | 303 | 307 | 308)
}

/// Scheme, host and port are the same.
pub fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme() && a.host_str() == b.host_str() && a.port_or_known_default() == b.port_or_known_default()
}

/// Whether a caller's header may be sent after the redirects crossed an origin.
pub fn survives_crossing(name: &str) -> bool {
    SAFE_HEADERS.contains(&name)
}

/// The URL after the one at the end of `visited`. `location` is the header's value.
pub fn next_hop(visited: &[Url], location: Option<&str>, max_redirects: u32) -> Result<Url, (Code, String)> {
    let Some(current) = visited.last() else {
        return Err((Code::DownloadBadUrl, "no URL to redirect from".to_owned()));
    };
    let location = location.ok_or_else(|| (Code::DownloadHttp3xx, "redirect without a Location".to_owned()))?;
    if visited.len() > max_redirects as usize {
        return Err((Code::DownloadTooManyRedirects, format!("more than {max_redirects} redirects")));
    }
    let mut next = current
        .join(location.trim())
        .map_err(|error| (Code::DownloadBadUrl, format!("redirect to a URL that cannot be parsed: {error}")))?;
    check_scheme(&next)?;
    next.set_fragment(None);
    // Both can only fail on URLs without a host, which check_scheme has refused.
    let _ = next.set_username("");
    let _ = next.set_password(None);
    if visited.contains(&next) {
        return Err((Code::DownloadTooManyRedirects, "the redirects form a loop".to_owned()));
    }
    Ok(next)
}

/// Only http and https with a host are fetched.
pub fn check_scheme(url: &Url) -> Result<(), (Code, String)> {
    match url.scheme() {
        "http" | "https" if matches!(url.host(), Some(Host::Domain(name)) if has_empty_label(name)) => {
            Err((Code::DownloadBadUrl, "the host's name has an empty label".to_owned()))
        }
        "http" | "https" if url.has_host() => Ok(()),
        "http" | "https" => Err((Code::DownloadBadUrl, "URL without a host".to_owned())),
        other => Err((Code::DownloadBadScheme, format!("scheme {other} is not fetched"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(list: &[&str]) -> Vec<Url> {
        list.iter().map(|url| Url::parse(url).unwrap()).collect()
    }

    /// | at | Location | leads to |
    #[test]
    fn table_of_hops() {
        let at = "https://a.example/dir/page?q=1";
        let table: [(&str, Result<&str, Code>); 16] = [
            ("/x", Ok("https://a.example/x")),
            ("y", Ok("https://a.example/dir/y")),
            ("//b.example/z", Ok("https://b.example/z")),
            ("http://a.example/", Ok("http://a.example/")),
            ("HTTP://B.example:80/#part", Ok("http://b.example/")),
            ("https://user:secret@b.example/", Ok("https://b.example/")),
            ("file:///etc/passwd", Err(Code::DownloadBadScheme)),
            ("gopher://a.example/1", Err(Code::DownloadBadScheme)),
            ("ftp://a.example/1", Err(Code::DownloadBadScheme)),
            ("https://", Err(Code::DownloadBadUrl)),
            ("http://a b/", Err(Code::DownloadBadUrl)),
            ("//b.example./", Ok("https://b.example./")),
            ("//3.0.0.1../", Err(Code::DownloadBadUrl)),
            ("//b..example/", Err(Code::DownloadBadUrl)),
            ("//.example/", Err(Code::DownloadBadUrl)),
            ("?q=1", Err(Code::DownloadTooManyRedirects)),
        ];
        for (location, expected) in table {
            let got = next_hop(&urls(&[at]), Some(location), 10).map_err(|(code, _)| code);
            assert_eq!(got.as_ref().map(Url::as_str).map_err(|code| *code), expected, "{location}");
        }
        assert_eq!(next_hop(&urls(&[at]), None, 10).unwrap_err().0, Code::DownloadHttp3xx);
    }

    #[test]
    fn the_eleventh_redirect_is_one_too_many() {
        let visited: Vec<Url> = (0..=10).map(|n| Url::parse(&format!("http://a.example/{n}")).unwrap()).collect();
        assert!(next_hop(&visited[..10], Some("/next"), 10).is_ok());
        assert_eq!(next_hop(&visited, Some("/next"), 10).unwrap_err().0, Code::DownloadTooManyRedirects);
        assert_eq!(next_hop(&visited[..1], Some("/next"), 0).unwrap_err().0, Code::DownloadTooManyRedirects);
    }

    /// | a | b | same origin |
    #[test]
    fn case_25_table_of_origins() {
        let table = [
            ("http://a/x", "http://a:80/y", true),
            ("https://a/x", "https://a:443/", true),
            ("http://a/", "https://a/", false),
            ("http://a/", "http://a:8080/", false),
            ("http://a/", "http://b/", false),
            // One host and port, as with a proxy that takes both: what was sent under TLS is not for the open wire.
            ("https://a:8443/", "http://a:8443/", false),
            ("http://a:8443/", "https://a:8443/", false),
            ("http://A/", "http://a/", true),
        ];
        for (a, b, same) in table {
            assert_eq!(same_origin(&Url::parse(a).unwrap(), &Url::parse(b).unwrap()), same, "{a} {b}");
        }
    }

    #[test]
    fn secrets_do_not_cross() {
        for name in ["authorization", "cookie", "proxy-authorization", "x-api-key", "referer", "range"] {
            assert!(!survives_crossing(name), "{name}");
        }
        assert!(survives_crossing("accept"));
    }
}
