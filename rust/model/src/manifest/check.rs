//! Checks of single values: URLs, ids, headers, checksums, deadlines.

use std::borrow::Cow;

use crate::failure::Code;

/// Longest URL, in bytes.
pub const MAX_URL_BYTES: usize = 8 * 1024;
/// Longest id, in characters.
pub const MAX_ID_CHARS: usize = 128;
/// Dots of other scripts that IDNA reads as a full stop.
const WIDE_DOTS: [char; 3] = ['\u{3002}', '\u{ff0e}', '\u{ff61}'];

/// What is wrong with a value.
pub(super) type Problem = (Code, Cow<'static, str>);

fn problem<T>(code: Code, message: &'static str) -> Result<T, Problem> {
    Err((code, Cow::Borrowed(message)))
}

/// Checks an absolute URL and gives its host in lower case, in its ASCII form. `schemes` are allowed beside http and https.
pub(super) fn url<'a>(url: &'a str, schemes: &[String]) -> Result<Cow<'a, str>, Problem> {
    if url.len() > MAX_URL_BYTES {
        return problem(Code::ValidationTooLong, "a URL has at most 8192 bytes");
    }
    // Nearly every URL is printable ASCII throughout, and then bytes are enough; without an early exit they are looked at many at a time.
    let plain = url.bytes().fold(true, |plain, byte| plain & byte.is_ascii_graphic() & (byte != b'\\'));
    let forbidden = |c: &char| c.is_control() || c.is_whitespace() || *c == '\\';
    if let Some(bad) = if plain { None } else { url.chars().find(forbidden) } {
        return Err((Code::ValidationBadUrl, format!("{bad:?} may not stand in a URL; percent-encode it").into()));
    }
    let Some((scheme, rest)) = url.split_once("://") else {
        return problem(Code::ValidationBadUrl, "an absolute URL is wanted, such as https://example.com/a.jpg");
    };
    let known = ["http", "https"].into_iter().chain(schemes.iter().map(String::as_str)).any(|known| scheme.eq_ignore_ascii_case(known));
    if !known {
        let message = match scheme.to_ascii_lowercase().as_str() {
            "ftp" | "ftps" | "sftp" => {
                "the schemes ftp, ftps and sftp are for job types with transport = \"curl\"; http and https are served here"
            }
            _ => "the scheme is not served here; http and https are",
        };
        return problem(Code::ValidationBadScheme, message);
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or("");
    if authority.is_empty() {
        return problem(Code::ValidationBadUrl, "the URL names no host");
    }
    if authority.contains('@') {
        return problem(Code::ValidationUserinfo, "a URL may not carry a user name or password");
    }
    if !plain && authority.contains(WIDE_DOTS) {
        return problem(Code::ValidationBadUrl, "the host holds a dot of another script");
    }
    if let Some(host) = plain_host(authority) {
        return Ok(host);
    }
    match url::Url::parse(url) {
        Ok(parsed) => match parsed.host_str() {
            Some(host) if has_empty_label(host) => problem(Code::ValidationBadUrl, "the host's name has an empty label"),
            Some(host) if !host.is_empty() => Ok(Cow::Owned(host.to_owned())),
            _ => problem(Code::ValidationBadUrl, "the URL names no host"),
        },
        Err(error) => Err((Code::ValidationBadUrl, format!("the URL cannot be parsed: {error}").into())),
    }
}

/// Whether a host's name has two dots in a row or one at its start. No name has such a label, and "127.0.0.1.." might pass for an address where
/// somebody else resolves it.
pub fn has_empty_label(host: &str) -> bool {
    !host.is_empty() && host.strip_suffix('.').unwrap_or(host).split('.').any(str::is_empty)
}

/// The host of an authority that needs no parser: ASCII labels that can be neither an address nor an encoded name.
fn plain_host(authority: &str) -> Option<Cow<'_, str>> {
    let (host, port) = authority.split_once(':').unwrap_or((authority, ""));
    let port_fine = port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u32>().unwrap_or(0) <= 65_535;
    let mut last = b'.';
    let mut last_label_start = b'.';
    let mut upper = false;
    for byte in host.bytes() {
        if !(byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_')) || (byte == b'.' && last == b'.') {
            return None;
        }
        if last == b'.' {
            last_label_start = byte;
        }
        upper |= byte.is_ascii_uppercase();
        last = byte;
    }
    if !port_fine || !last_label_start.is_ascii_alphabetic() {
        return None;
    }
    let host = if upper { Cow::Owned(host.to_ascii_lowercase()) } else { Cow::Borrowed(host) };
    Some(host).filter(|host| !host.contains("xn--"))
}

/// Checks a resource's id: printable, 1 to 128 characters.
pub(super) fn id(id: &str) -> Result<(), Problem> {
    if id.is_empty() {
        return problem(Code::ValidationBadId, "an id is not empty; leave it out to get the resource's index");
    }
    if id.len() > MAX_ID_CHARS && id.chars().count() > MAX_ID_CHARS {
        return problem(Code::ValidationTooLong, "an id has at most 128 characters");
    }
    match id.chars().find(|c| !is_printable(*c)) {
        Some(bad) => Err((Code::ValidationBadId, format!("{bad:?} is not printable").into())),
        None => Ok(()),
    }
}

/// Not a control, a line separator, a direction override (they make logs lie) or a code point that is no character.
fn is_printable(c: char) -> bool {
    let separator = matches!(c, '\u{2028}' | '\u{2029}');
    let direction = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let noncharacter = matches!(c, '\u{fdd0}'..='\u{fdef}') || u32::from(c) & 0xfffe == 0xfffe;
    !(c.is_control() || separator || direction || noncharacter || c == '\u{feff}')
}

/// Headers that speak of one connection, or that FetchBox sets itself.
const FORBIDDEN_HEADERS: [&str; 12] = [
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

/// Checks a header and gives its name in lower case.
pub(super) fn header<'a>(name: Cow<'a, str>, value: &str, max_bytes: usize) -> Result<Cow<'a, str>, Problem> {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(token) {
        return problem(Code::ValidationBadHeader, "a header's name is a token: letters, digits and !#$%&'*+-.^_`|~");
    }
    if name.len() > max_bytes || value.len() > max_bytes {
        return Err((Code::ValidationTooLong, format!("a header has at most {max_bytes} bytes").into()));
    }
    if value.bytes().any(|byte| (byte < b' ' && byte != b'\t') || byte == 0x7f) {
        return problem(Code::ValidationBadHeader, "a header's value holds no control characters such as CR, LF and NUL");
    }
    let name = if name.bytes().any(|byte| byte.is_ascii_uppercase()) { Cow::Owned(name.to_ascii_lowercase()) } else { name };
    if FORBIDDEN_HEADERS.contains(&&*name) {
        return problem(Code::ValidationForbiddenHeader, "this header is FetchBox's own to set");
    }
    Ok(name)
}

/// Checks `sha256:HEX`, `sha1:HEX` or `md5:HEX` and gives it in lower case.
pub(super) fn checksum(value: &str) -> Result<String, Problem> {
    let value = value.to_ascii_lowercase();
    let digits = match value.split_once(':') {
        Some(("sha256", hex)) => (hex, 64),
        Some(("sha1", hex)) => (hex, 40),
        Some(("md5", hex)) => (hex, 32),
        _ => ("", 1),
    };
    if digits.0.len() == digits.1 && digits.0.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        Ok(value)
    } else {
        problem(Code::ValidationBadChecksum, "a checksum is sha256: and 64 hex digits, sha1: and 40, or md5: and 32")
    }
}

/// Checks an expected size: bytes in decimal.
pub(super) fn size(value: &str) -> Result<(), Problem> {
    match value.parse::<u64>() {
        Ok(_) if value.bytes().all(|byte| byte.is_ascii_digit()) => Ok(()),
        _ => problem(Code::ValidationBadValue, "a size is a number of bytes in decimal digits"),
    }
}

/// Checks a media type only for what may not stand in a header.
pub(super) fn media_type(value: &str) -> Result<(), Problem> {
    if value.chars().any(char::is_control) || value.len() > 256 {
        return problem(Code::ValidationBadValue, "a content type has at most 256 bytes and no control characters");
    }
    Ok(())
}

/// Unix milliseconds of an RFC 3339 time.
pub(super) fn rfc3339_ms(value: &str) -> Option<u64> {
    let time = chrono::DateTime::parse_from_rfc3339(value).ok()?;
    u64::try_from(time.timestamp_millis()).ok()
}
