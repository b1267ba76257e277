//! URLs that come after their like.
//!
//! Lists of URLs mostly name one origin over and over, and half of what parsing a URL costs is its origin. So of a URL that begins as the one before
//! it only the path is parsed, where nothing in that can mean anything but itself.

use url::{ParseError, Position, Url};

/// Parses `text`; `before` is a URL that it may share its origin with.
pub fn parse(text: &str, before: Option<&Url>) -> Result<Url, ParseError> {
    before.and_then(|before| like(text, before)).map_or_else(|| Url::parse(text), Ok)
}

fn like(text: &str, before: &Url) -> Option<Url> {
    let rest = text.strip_prefix(&before[..Position::BeforePath])?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~' | b'/');
    let bytes = rest.as_bytes();
    // Neither a segment of dots nor an empty one.
    let odd = bytes.windows(2).any(|pair| pair[0] == b'/' && matches!(pair[1], b'.' | b'/'));
    if bytes.first() != Some(&b'/') || odd || !bytes.iter().all(|byte| plain(*byte)) {
        return None;
    }
    let mut url = before.clone();
    url.set_fragment(None);
    url.set_query(None);
    url.set_path(rest);
    (url.as_str() == text).then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// | before | text | parsed as its like |
    #[test]
    fn table_of_neighbours() {
        let table = [
            ("http://h.example:81/x", "http://h.example:81/a/b.bin", true),
            ("http://h.example:81/x?q#f", "http://h.example:81/", true),
            ("https://user:pass@h.example/x", "https://user:pass@h.example/~a-b_c", true),
            ("http://[::1]:81/x", "http://[::1]:81/a", true),
            ("http://h.example/x", "http://h.example", false),
            ("http://h.example/x", "http://h.example:81/a", false),
            ("http://h.example/x", "http://h.example.com/a", false),
            ("http://h.example/x", "http://h.example@evil.example/a", false),
            ("http://h.example/x", "http://h.example/../a", false),
            ("http://h.example/x", "http://h.example/a/./b", false),
            ("http://h.example/x", "http://h.example/a/.hidden", false),
            ("http://h.example/x", "http://h.example//a", false),
            ("http://h.example/x", "http://h.example/a?b", false),
            ("http://h.example/x", "http://h.example/a%2e%2e/b", false),
            ("http://h.example/x", "http://h.example/a\tb", false),
            ("http://h.example/x", "http://h.example\\a", false),
            ("http://h.example/x", "HTTP://h.example/a", false),
            ("data:x", "data:/y", false),
            ("mailto:x", "mailto:/y", false),
        ];
        for (before, text, expected) in table {
            let before = Url::parse(before).unwrap();
            assert_eq!(like(text, &before).is_some(), expected, "{text} after {before}");
            assert_eq!(parse(text, Some(&before)), Url::parse(text), "{text} after {before}");
        }
    }

    proptest! {
        #[test]
        fn nobody_can_tell_how_it_was_parsed(
            before in "(http|https|ftp|file|x)://(h|h\\.example|1\\.2\\.3\\.4|\\[::1\\])(:81)?(/[a-z.]{0,3}){0,3}(\\?q)?(#f)?",
            same in any::<bool>(),
            path in "(/[a-zA-Z0-9._~%?#:@\\\\ -]{0,4}){0,4}",
        ) {
            prop_assume!(Url::parse(&before).is_ok());
            let before = Url::parse(&before).unwrap();
            let text = if same { format!("{}{path}", &before[..Position::BeforePath]) } else { format!("http://other{path}") };
            let (near, plain) = (parse(&text, Some(&before)), Url::parse(&text));
            if let (Ok(near), Ok(plain)) = (&near, &plain) {
                prop_assert_eq!(near.path(), plain.path());
                prop_assert_eq!(near.host(), plain.host());
                prop_assert_eq!(near.port(), plain.port());
                prop_assert_eq!(near.query(), plain.query());
                prop_assert_eq!(near.fragment(), plain.fragment());
                prop_assert_eq!(&near[Position::BeforeHost..Position::AfterQuery], &plain[Position::BeforeHost..Position::AfterQuery]);
            }
            prop_assert_eq!(near, plain);
        }
    }
}
