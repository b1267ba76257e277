//! S3's list of unfinished uploads, as far as it matters.

/// An upload as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The key that the object would get.
    pub key: String,
    /// Names the upload.
    pub id: String,
    /// When it was begun, Unix ms; 0 when it does not say.
    pub begun_ms: u64,
}

/// A page of the list.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// In order.
    pub uploads: Vec<Listed>,
    /// Key and id to go on behind; nothing at the end.
    pub next: Option<(String, String)>,
}

/// Reads a `ListMultipartUploadsResult`. What cannot be read is left out: it stays in the store.
pub fn parse_uploads(xml: &str) -> Page {
    let mut page = Page::default();
    let mut rest = xml;
    while let Some((begin, end)) = rest.find("<Upload>").and_then(|begin| Some((begin, begin + rest[begin..].find("</Upload>")?))) {
        let upload = &rest[begin..end];
        if let (Some(key), Some(id), Some(begun)) = (text(upload, "Key"), text(upload, "UploadId"), text(upload, "Initiated")) {
            // Without a time nothing can be said about its age.
            page.uploads.extend(unix_ms(&begun).map(|begun_ms| Listed { key, id, begun_ms }));
        }
        rest = &rest[end..];
    }
    if text(xml, "IsTruncated").as_deref() == Some("true") {
        page.next = text(xml, "NextKeyMarker").zip(text(xml, "NextUploadIdMarker"));
    }
    page
}

/// The text of the first element of that name.
fn text(xml: &str, name: &str) -> Option<String> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let begin = xml.find(&open)? + open.len();
    let raw = &xml[begin..begin + xml[begin..].find(&close)?];
    // The ampersand last: what it makes is text.
    let mut plain = raw.to_owned();
    for (entity, character) in
        [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&#39;", "'"), ("&#34;", "\""), ("&amp;", "&")]
    {
        plain = plain.replace(entity, character);
    }
    Some(plain)
}

/// Unix ms of `2026-11-26T01:02:03.456Z`.
fn unix_ms(text: &str) -> Option<u64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut time = time.splitn(3, ':');
    let (hour, minute) = (time.next()?.parse::<i64>().ok()?, time.next()?.parse::<i64>().ok()?);
    let second = time.next()?.parse::<f64>().ok()?;
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || !second.is_finite() {
        return None;
    }
    // Days of the proleptic Gregorian calendar, years beginning in March.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + (153 * m + 2) / 5 + day - 1 - 719_468;
    let minutes = (days * 24 + hour) * 60 + minute;
    u64::try_from(minutes * 60_000 + (second * 1000.0) as i64).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_and_what_has_no_time_is_left_out() {
        let xml = "<?xml version=\"1.0\"?><ListMultipartUploadsResult><Bucket>b</Bucket><KeyMarker></KeyMarker>\
                   <NextKeyMarker>a&amp;lt;</NextKeyMarker><NextUploadIdMarker>9</NextUploadIdMarker><IsTruncated>true</IsTruncated>\
                   <Upload><Key>resources/d/%25</Key><UploadId>1</UploadId><Initiated>2025-11-25T00:00:00.123Z</Initiated></Upload>\
                   <Upload><Key>x</Key><UploadId>2</UploadId></Upload></ListMultipartUploadsResult>";
        let expected = Page {
            uploads: vec![Listed { key: "resources/d/%25".into(), id: "1".into(), begun_ms: 1_764_028_800_123 }],
            next: Some(("a&lt;".into(), "9".into())),
        };
        assert_eq!(parse_uploads(xml), expected);
        assert_eq!(parse_uploads("<html>no list</html>"), Page::default());
    }

    /// | text | Unix ms |
    #[test]
    fn times() {
        let table = [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2000-02-29T00:00:00Z", Some(951_782_400_000)),
            ("2024-02-29T23:59:59.999Z", Some(1_709_251_199_999)),
            ("2024-13-01T00:00:00Z", None),
            ("1969-12-31T23:59:59Z", None),
            ("2024-01-01T00:00:00+02:00", None),
            ("yesterday", None),
        ];
        for (text, expected) in table {
            assert_eq!(unix_ms(text), expected, "{text}");
        }
    }
}
