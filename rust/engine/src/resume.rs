//! Whether a broken transfer can go on from where it stopped. Pure.

/// What is known of a transfer that broke.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Partial {
    /// Bytes received and kept.
    pub received: u64,
    /// The whole body's size, if the origin stated it.
    pub total: Option<u64>,
    /// The ETag of the response, as sent.
    pub etag: String,
    /// Whether the response said `Accept-Ranges: bytes`.
    pub accepts_ranges: bool,
}

/// A request for the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeRequest {
    /// Value of `Range`.
    pub range: String,
    /// Value of `If-Range`.
    pub if_range: String,
}

/// How to ask for the rest; `None` to start over.
pub fn plan(partial: &Partial) -> Option<RangeRequest> {
    let whole = partial.total.is_some_and(|total| partial.received >= total);
    if partial.received == 0 || whole || !partial.accepts_ranges || !is_strong(&partial.etag) {
        return None;
    }
    Some(RangeRequest { range: format!("bytes={}-", partial.received), if_range: partial.etag.clone() })
}

/// Weak tags only promise equal meaning, not equal bytes.
pub fn is_strong(etag: &str) -> bool {
    etag.len() >= 2 && etag.starts_with('"') && etag.ends_with('"')
}

/// What to do with the answer to a range request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Its body is the rest.
    Continue,
    /// Its body is the whole, from the start.
    Whole,
    /// Its body is of no use: ask again without a range.
    AskAgain,
    /// A failure like any other.
    Failure,
}

/// Judges the answer to a range request by its status, `Content-Range` and ETag.
pub fn judge(partial: &Partial, status: u16, content_range: Option<&str>, etag: &str) -> Answer {
    match status {
        206 => match content_range.and_then(parse_content_range) {
            Some(range)
                if range.start == partial.received
                    && range.total.is_none_or(|total| range.end + 1 == total)
                    && (partial.total.is_none() || range.total.is_none() || partial.total == range.total)
                    && (etag.is_empty() || etag == partial.etag) =>
            {
                Answer::Continue
            }
            _ => Answer::AskAgain,
        },
        200 => Answer::Whole,
        412 | 416 => Answer::AskAgain,
        _ => Answer::Failure,
    }
}

/// `Content-Range: bytes start-end/total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentRange {
    /// First byte.
    pub start: u64,
    /// Last byte.
    pub end: u64,
    /// Size of the whole, unless `*`.
    pub total: Option<u64>,
}

/// Reads a `Content-Range` with a range; `None` for anything inconsistent.
pub fn parse_content_range(value: &str) -> Option<ContentRange> {
    let (unit, rest) = value.trim().split_once(' ')?;
    let (range, total) = rest.trim().split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let total = match total {
        "*" => None,
        digits => Some(number(digits)?),
    };
    let parsed = ContentRange { start: number(start)?, end: number(end)?, total };
    let consistent = unit.eq_ignore_ascii_case("bytes") && parsed.start <= parsed.end && total.is_none_or(|total| parsed.end < total);
    consistent.then_some(parsed)
}

fn number(digits: &str) -> Option<u64> {
    // `parse` alone would take a plus sign.
    if digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partial(received: u64, total: Option<u64>, etag: &str, accepts_ranges: bool) -> Partial {
        Partial { received, total, etag: etag.to_owned(), accepts_ranges }
    }

    /// | received | total | ETag | Accept-Ranges | plan |
    #[test]
    fn table_of_plans() {
        let table = [
            (partial(10, Some(100), "\"a\"", true), Some("bytes=10-")),
            (partial(10, None, "\"a\"", true), Some("bytes=10-")),
            (partial(0, Some(100), "\"a\"", true), None),
            (partial(100, Some(100), "\"a\"", true), None),
            (partial(10, Some(100), "W/\"a\"", true), None),
            (partial(10, Some(100), "", true), None),
            (partial(10, Some(100), "a", true), None),
            (partial(10, Some(100), "\"a\"", false), None),
        ];
        for (input, range) in table {
            assert_eq!(plan(&input).map(|request| request.range).as_deref(), range, "{input:?}");
        }
    }

    /// | status | Content-Range | ETag | answer |
    #[test]
    fn table_of_answers() {
        let known = partial(10, Some(100), "\"a\"", true);
        let table = [
            (206, Some("bytes 10-99/100"), "\"a\"", Answer::Continue),
            (206, Some("bytes 10-99/100"), "", Answer::Continue),
            (206, Some("bytes 10-99/*"), "\"a\"", Answer::Continue),
            (206, Some("bytes 10-98/100"), "\"a\"", Answer::AskAgain),
            (206, Some("bytes 11-99/100"), "\"a\"", Answer::AskAgain),
            (206, Some("bytes 10-199/200"), "\"a\"", Answer::AskAgain),
            (206, Some("bytes 10-99/100"), "\"b\"", Answer::AskAgain),
            (206, Some("garbage"), "\"a\"", Answer::AskAgain),
            (206, None, "\"a\"", Answer::AskAgain),
            (200, None, "\"b\"", Answer::Whole),
            (416, None, "", Answer::AskAgain),
            (412, None, "", Answer::AskAgain),
            (503, None, "", Answer::Failure),
        ];
        for (status, range, etag, expected) in table {
            assert_eq!(judge(&known, status, range, etag), expected, "{status} {range:?} {etag}");
        }
    }

    #[test]
    fn content_ranges_that_contradict_themselves_are_none() {
        for text in [
            "bytes 5-4/10",
            "bytes 0-10/10",
            "bytes +1-2/10",
            "items 0-1/2",
            "bytes 0-1",
            "bytes */10",
            "bytes -/",
            "",
            "bytes 1-99999999999999999999/*",
        ] {
            assert_eq!(parse_content_range(text), None, "{text:?}");
        }
        assert_eq!(parse_content_range("Bytes 0-1/2"), Some(ContentRange { start: 0, end: 1, total: Some(2) }));
    }
}
