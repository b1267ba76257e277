//! What is checked and learned while a body streams by: digests, size, type.

use fetchbox_model::failure::Code;
use md5::Md5;
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// Bytes of a body's start that the type is sniffed from.
pub const SNIFF_BYTES: usize = 512;

/// A digest that the caller expects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hint {
    /// `sha256:HEX`
    Sha256(Vec<u8>),
    /// `sha1:HEX`
    Sha1(Vec<u8>),
    /// `md5:HEX`
    Md5(Vec<u8>),
}

impl Hint {
    /// Reads `algorithm:hex`; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, hex) = text.trim().split_once(':')?;
        let digest = from_hex(hex)?;
        match (name.to_ascii_lowercase().as_str(), digest.len()) {
            ("sha256", 32) => Some(Self::Sha256(digest)),
            ("sha1", 20) => Some(Self::Sha1(digest)),
            ("md5", 16) => Some(Self::Md5(digest)),
            _ => None,
        }
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.as_bytes().chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

/// Lower-case hex.
pub fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]).map(char::from).collect()
}

#[derive(Clone)]
enum Extra {
    None,
    Sha1(Sha1),
    Md5(Md5),
}

/// The running digests of one body.
#[derive(Clone)]
pub struct Hasher {
    sha256: Sha256,
    extra: Extra,
    hint: Option<Hint>,
}

impl Hasher {
    /// SHA-256, and what the hint needs besides.
    pub fn new(hint: Option<Hint>) -> Self {
        let extra = match hint {
            Some(Hint::Sha1(_)) => Extra::Sha1(Sha1::new()),
            Some(Hint::Md5(_)) => Extra::Md5(Md5::new()),
            Some(Hint::Sha256(_)) | None => Extra::None,
        };
        Self { sha256: Sha256::new(), extra, hint }
    }

    /// Takes in the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        self.update_extra(bytes);
    }

    fn update_extra(&mut self, bytes: &[u8]) {
        match &mut self.extra {
            Extra::None => {}
            Extra::Sha1(hash) => hash.update(bytes),
            Extra::Md5(hash) => hash.update(bytes),
        }
    }

    /// The SHA-256, or why the body is not the expected one.
    pub fn finish(mut self) -> Result<[u8; 32], (Code, String)> {
        let sha256 = self.sha256.finalize_reset().into();
        self.judge(sha256)
    }

    /// The same of a body in one piece whose SHA-256 is known already.
    pub fn finish_known(mut self, sha256: [u8; 32], body: &[u8]) -> Result<[u8; 32], (Code, String)> {
        self.update_extra(body);
        self.judge(sha256)
    }

    fn judge(self, sha256: [u8; 32]) -> Result<[u8; 32], (Code, String)> {
        let (name, expected, actual) = match (self.hint, self.extra) {
            (Some(Hint::Sha256(expected)), _) => ("sha256", expected, sha256.to_vec()),
            (Some(Hint::Sha1(expected)), Extra::Sha1(hash)) => ("sha1", expected, hash.finalize().to_vec()),
            (Some(Hint::Md5(expected)), Extra::Md5(hash)) => ("md5", expected, hash.finalize().to_vec()),
            _ => return Ok(sha256),
        };
        if expected == actual {
            return Ok(sha256);
        }
        Err((Code::DownloadChecksumMismatch, format!("expected {name} {}, got {}", to_hex(&expected), to_hex(&actual))))
    }
}

/// The type that the first bytes speak of; empty when they say nothing.
pub fn sniff(head: &[u8]) -> &'static str {
    if head.is_empty() {
        return "";
    }
    if let Some(kind) = infer::get(head) {
        return kind.mime_type();
    }
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    if !is_text(text) {
        return "application/octet-stream";
    }
    let start = text.trim_ascii_start();
    let begins = |tag: &[u8]| start.get(..tag.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(tag));
    if begins(b"<!doctype html") || begins(b"<html") || begins(b"<head") || begins(b"<body") {
        "text/html"
    } else if begins(b"<svg") {
        "image/svg+xml"
    } else if begins(b"<?xml") {
        "text/xml"
    } else if looks_like_json(start) {
        "application/json"
    } else {
        "text/plain"
    }
}

/// UTF-8 (perhaps cut in the middle of a character) without control characters.
fn is_text(bytes: &[u8]) -> bool {
    let valid = match std::str::from_utf8(bytes) {
        Ok(_) => true,
        Err(error) => error.error_len().is_none(),
    };
    valid && !bytes.iter().any(|b| b.is_ascii_control() && !matches!(b, b'\t' | b'\n' | b'\r' | 0x0c | 0x1b))
}

fn looks_like_json(text: &[u8]) -> bool {
    match text {
        [b'{', rest @ ..] => matches!(rest.trim_ascii_start().first(), Some(b'"' | b'}')),
        [b'[', rest @ ..] => {
            matches!(rest.trim_ascii_start().first(), Some(b'"' | b'{' | b'[' | b']' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n'))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC_SHA256: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    /// | hint | matches "abc" |
    #[test]
    fn table_of_hints() {
        let table = [
            (ABC_SHA256, Some(true)),
            ("SHA256:BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD", Some(true)),
            ("sha1:a9993e364706816aba3e25717850c26c9cd0d89d", Some(true)),
            ("md5:900150983cd24fb0d6963f7d28e17f72", Some(true)),
            ("md5:900150983cd24fb0d6963f7d28e17f73", Some(false)),
            ("sha1:0000000000000000000000000000000000000000", Some(false)),
            ("md5:9001", None),
            ("crc32:00000000", None),
            ("sha256:zz", None),
            ("md5:\u{e9}\u{e9}", None),
            ("", None),
        ];
        for (text, expected) in table {
            let got = Hint::parse(text).map(|hint| {
                let mut hasher = Hasher::new(Some(hint));
                hasher.update(b"ab");
                hasher.update(b"c");
                hasher.finish().is_ok()
            });
            assert_eq!(got, expected, "{text}");
        }
    }

    #[test]
    fn sha256_is_always_there() {
        let mut hasher = Hasher::new(None);
        hasher.update(b"abc");
        assert_eq!(format!("sha256:{}", to_hex(&hasher.finish().unwrap())), ABC_SHA256);
    }

    /// | first bytes | type |
    #[test]
    fn table_of_sniffed_types() {
        let table: [(&[u8], &str); 14] = [
            (b"", ""),
            (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "image/png"),
            (b"\xff\xd8\xff\xe0\0\x10JFIF", "image/jpeg"),
            (b"%PDF-1.7\n", "application/pdf"),
            (b"\x1f\x8b\x08\0\0\0\0\0", "application/gzip"),
            (b"  <!DOCTYPE HTML><title>x", "text/html"),
            (b"<?xml version=\"1.0\"?><a/>", "text/xml"),
            (b"<svg xmlns=\"x\">", "image/svg+xml"),
            (b"{\"a\": 1}", "application/json"),
            (b"[1, 2]", "application/json"),
            (b"[link] in prose", "text/plain"),
            (b"just words\n", "text/plain"),
            ("caf\u{e9}".as_bytes(), "text/plain"),
            (b"\0\x01\x02\x03", "application/octet-stream"),
        ];
        for (head, expected) in table {
            assert_eq!(sniff(head), expected, "{:?}", String::from_utf8_lossy(head));
        }
        assert_eq!(sniff(&"caf\u{e9}".as_bytes()[..4]), "text/plain", "a character cut in two");
    }
}
