//! The names of objects that the library and `fetchbox get` store: from the URL or the id alone, so that the same input finds them again.
//!
//! ```text
//! ab/photo~ab12cd34ef56a7b8.jpg        without an id: the URL's last segment and a hash of the whole URL
//! ab/cat-7.jpg                         with the id "cat-7"
//! ```
//!
//! Two hexadecimal digits of the hash spread the files over 256 directories. Nothing an origin sends has any influence.

use sha2::{Digest, Sha256};

use super::push_hex;

const MAX_STEM: usize = 80;
const MAX_ID: usize = 200;
const MAX_EXTENSION: usize = 10;
/// Bytes of the hash that keep names apart.
const MARK: usize = 8;

/// The key for a URL, or for the id that the input gives it. Only letters, digits, `.`, `_`, `~` and `-`, never a leading dot.
pub fn named_key(url: &[u8], id: Option<&[u8]>) -> String {
    let digest = Sha256::digest(id.unwrap_or(url));
    let last = last_segment(url);
    let (stem, extension) = split_extension(&last);
    let mut key = String::with_capacity(128);
    push_hex(&mut key, &digest[..1]);
    key.push('/');
    match id {
        None => {
            let mut stem = cleaned(if extension.is_empty() { &last } else { stem });
            stem.truncate(MAX_STEM);
            key.push_str(if stem.is_empty() { "index" } else { &stem });
            key.push('~');
            push_hex(&mut key, &digest[..MARK]);
            key.push_str(&extension);
        }
        Some(id) => {
            let mut stem = cleaned(id);
            // An id that had to be changed or cut might meet another one; its hash keeps them apart. A `~` can only come from here.
            if stem.as_bytes() != id || stem.len() > MAX_ID {
                stem.truncate(MAX_STEM);
                stem.push('~');
                push_hex(&mut stem, &digest[..MARK]);
            }
            key.push_str(&stem);
            if !extension.is_empty() && !ends_with(&stem, &extension) {
                key.push_str(&extension);
            }
        }
    }
    key
}

/// What follows the last slash of the path, escapes undone; empty for what is no URL.
fn last_segment(url: &[u8]) -> Vec<u8> {
    let url: Vec<u8> = url.trim_ascii_start().iter().copied().filter(|byte| !matches!(byte, b'\t' | b'\r' | b'\n')).collect();
    let mut rest = &url[..];
    if let Some(colon) = rest.iter().position(|byte| *byte == b':')
        && rest[0].is_ascii_alphabetic()
        && rest[..colon].iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
    {
        rest = &rest[colon + 1..];
    }
    if let Some(after) = rest.strip_prefix(b"//") {
        let end = after.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(after.len());
        let host = &after[..end];
        if host.contains(&b'[') != host.contains(&b']') {
            return Vec::new();
        }
        rest = &after[end..];
    }
    let end = rest.iter().position(|byte| matches!(byte, b'?' | b'#')).unwrap_or(rest.len());
    let path = unescaped(&rest[..end]);
    let start = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    path[start..].to_vec()
}

fn unescaped(path: &[u8]) -> Vec<u8> {
    let digit = |at: usize| path.get(at).and_then(|byte| char::from(*byte).to_digit(16)).map(|digit| digit as u8);
    let mut out = Vec::with_capacity(path.len());
    let mut at = 0;
    while let Some(&byte) = path.get(at) {
        if byte == b'%'
            && let (Some(high), Some(low)) = (digit(at + 1), digit(at + 2))
        {
            out.push(high << 4 | low);
            at += 3;
        } else {
            out.push(byte);
            at += 1;
        }
    }
    out
}

/// The name before its extension, and the extension with its dot in lower case; a name that is all extension has none.
fn split_extension(name: &[u8]) -> (&[u8], String) {
    match name.iter().rposition(|byte| *byte == b'.') {
        Some(dot)
            if dot > 0
                && (1..=MAX_EXTENSION).contains(&(name.len() - dot - 1))
                && name[dot + 1..].iter().all(u8::is_ascii_alphanumeric) =>
        {
            let extension = name[dot..].iter().map(|byte| char::from(byte.to_ascii_lowercase())).collect();
            (&name[..dot], extension)
        }
        _ => (name, String::new()),
    }
}

/// Runs of anything but letters, digits, `.`, `_` and `-` become one `_`; no leading dot is left.
fn cleaned(name: &[u8]) -> String {
    let mut out = String::with_capacity(name.len());
    let mut in_run = false;
    for &byte in name {
        let safe = byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if safe {
            out.push(char::from(byte));
        } else if !in_run {
            out.push('_');
        }
        in_run = !safe;
    }
    let dots = out.len() - out.trim_start_matches('.').len();
    out.drain(..dots);
    out
}

fn ends_with(stem: &str, extension: &str) -> bool {
    stem.len() >= extension.len() && stem.as_bytes()[stem.len() - extension.len()..].eq_ignore_ascii_case(extension.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// | url | id | key, its hash left out |
    #[test]
    fn table_of_names() {
        let table: [(&str, Option<&str>, &str); 15] = [
            ("http://x.example/photo.JPG?size=1", None, "photo~.jpg"),
            ("http://x.example/", None, "index~"),
            ("http://x.example", None, "index~"),
            ("http://x.example/a/..%2f..%2fetc/passwd", None, "passwd~"),
            ("http://x.example/%00%0a.png", None, "_~.png"),
            ("http://x.example/.htaccess", None, "htaccess~"),
            ("http://x.example/ä ö.tar.gz", None, "_.tar~.gz"),
            ("http://x.example/a#b/c.png", None, "a~"),
            ("http://[::1", None, "index~"),
            ("", None, "index~"),
            ("photo.png", None, "photo~.png"),
            ("http://x.example/p.jpg", Some("cat-7"), "cat-7.jpg"),
            ("http://x.example/p.jpg", Some("cat-7.JPG"), "cat-7.JPG"),
            ("http://x.example/p.jpg", Some("../a/b"), "_a_b~.jpg"),
            ("http://x.example/p", Some(".."), "~"),
        ];
        for (url, id, expected) in table {
            let key = named_key(url.as_bytes(), id.map(str::as_bytes));
            let (shard, name) = key.split_once('/').unwrap();
            assert_eq!(shard.len(), 2, "{key}");
            let shown = match name.split_once('~') {
                Some((stem, rest)) => format!("{stem}~{}", &rest[2 * MARK..]),
                None => name.to_owned(),
            };
            assert_eq!(shown, expected, "{url} {id:?}");
        }
    }

    #[test]
    fn long_names_are_cut_and_stay_apart() {
        let key = |id: String| named_key(b"http://x.example/a.png", Some(id.as_bytes()));
        let (one, two) = (key("x".repeat(201)), key("x".repeat(202)));
        assert_ne!(one[3..], two[3..]);
        assert!(one.len() < 130);
        assert_eq!(named_key(&b"n".repeat(5000), None).len(), 3 + MAX_STEM + 1 + 2 * MARK);
    }
}
