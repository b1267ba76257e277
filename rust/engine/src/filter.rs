//! What is left out on purpose: by type, size and status. Pure; an attempt asks as it learns more.

use std::ops::RangeInclusive;

use crate::config::FetchConfig;

/// Types that a server sends, or a body shows, when there is nothing more to say of it.
const GENERIC: [&str; 4] = ["", "application/octet-stream", "binary/octet-stream", "application/unknown"];
/// Types that bytes show although something narrower can be true: style sheets are text, documents are zip, and anything may come compressed.
const BROAD: [&str; 6] = ["text/plain", "text/xml", "application/xml", "application/json", "application/zip", "application/gzip"];

/// `filter_*` of a job type. Every question answers with the reason to leave a resource out, for people.
#[derive(Debug, Default)]
pub struct Filter {
    keep: Vec<Pattern>,
    drop: Vec<Pattern>,
    min_bytes: u64,
    max_bytes: u64,
    statuses: Vec<RangeInclusive<u16>>,
}

/// `type/subtype` or `type/*`, in lower case.
#[derive(Debug, PartialEq, Eq)]
struct Pattern(String);

impl Pattern {
    fn parse(text: &str) -> Result<Self, String> {
        let lower = text.trim().to_ascii_lowercase();
        let token = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&b));
        match lower.split_once('/') {
            Some((kind, sub)) if token(kind) && (sub == "*" || token(sub)) => Ok(Self(lower)),
            _ => {
                Err(format!("filter_types: {text:?} is not type/subtype or type/*, such as \"image/png\", \"image/*\", \"!image/svg+xml\""))
            }
        }
    }

    fn matches(&self, kind: &str) -> bool {
        self.0.strip_suffix('*').map_or(self.0 == kind, |begin| kind.starts_with(begin))
    }
}

fn statuses(text: &str) -> Result<RangeInclusive<u16>, String> {
    let wrong = || format!("filter_statuses: {text:?} is not a status such as 404, or a class such as \"5xx\"");
    let (first, rest) = text.split_at_checked(1).ok_or_else(wrong)?;
    if rest.eq_ignore_ascii_case("xx") {
        let class: u16 = first.parse().map_err(|_| wrong())?;
        return if (2..=5).contains(&class) { Ok(class * 100..=class * 100 + 99) } else { Err(wrong()) };
    }
    match text.parse() {
        Ok(status @ 200..=599) => Ok(status..=status),
        _ => Err(wrong()),
    }
}

/// A Content-Type without its parameters.
fn essence(declared: &str) -> String {
    declared.split([';', ',']).next().unwrap_or_default().trim().to_ascii_lowercase()
}

impl Filter {
    /// The configured filters; an error names what is wrong and how it is written.
    pub fn new(fetch: &FetchConfig) -> Result<Self, String> {
        let mut filter = Self { min_bytes: fetch.filter_min_bytes, max_bytes: fetch.filter_max_bytes, ..Self::default() };
        for text in &fetch.filter_types {
            match text.trim().strip_prefix('!') {
                Some(text) => filter.drop.push(Pattern::parse(text)?),
                None => filter.keep.push(Pattern::parse(text)?),
            }
        }
        filter.statuses = fetch.filter_statuses.iter().map(|text| statuses(text)).collect::<Result<_, _>>()?;
        if filter.max_bytes != 0 && filter.min_bytes > filter.max_bytes {
            return Err(format!("filter_min_bytes {} is above filter_max_bytes {}", filter.min_bytes, filter.max_bytes));
        }
        Ok(filter)
    }

    /// Whether the answer's status is left out.
    pub fn status(&self, status: u16) -> Option<String> {
        self.statuses.iter().any(|range| range.contains(&status)).then(|| format!("status {status} is among filter_statuses"))
    }

    /// Whether an answer is left out for what its head says.
    pub fn head(&self, declared: &str, length: Option<u64>) -> Option<String> {
        if let Some(length) = length
            && let Some(reason) = self.size(length).or_else(|| self.too_small(length))
        {
            return Some(reason);
        }
        if !self.has_types() {
            return None;
        }
        let declared = essence(declared);
        if GENERIC.contains(&declared.as_str()) { None } else { self.kind(&declared, "declared") }
    }

    /// Whether a body is left out for the type that its first bytes show.
    pub fn sniffed(&self, declared: &str, sniffed: &str) -> Option<String> {
        if !self.has_types() {
            return None;
        }
        let declared = essence(declared);
        let unknown = GENERIC.contains(&declared.as_str());
        if !unknown && (GENERIC.contains(&sniffed) || BROAD.contains(&sniffed)) {
            // Nothing that contradicts what was declared, and the head was judged by that; unwanted types are, whoever says so.
            return self.drop.iter().any(|pattern| pattern.matches(sniffed)).then(|| refused(sniffed, "sniffed"));
        }
        self.kind(if sniffed.is_empty() { "application/octet-stream" } else { sniffed }, "sniffed")
    }

    /// Whether a body of so many bytes, or more, is left out.
    pub fn size(&self, bytes: u64) -> Option<String> {
        (self.max_bytes != 0 && bytes > self.max_bytes)
            .then(|| format!("{bytes} bytes or more are above filter_max_bytes, {}", self.max_bytes))
    }

    /// Whether a body of so many bytes, and no more, is left out.
    pub fn too_small(&self, bytes: u64) -> Option<String> {
        (bytes < self.min_bytes).then(|| format!("{bytes} bytes are below filter_min_bytes, {}", self.min_bytes))
    }

    /// Whether types matter at all.
    pub fn has_types(&self) -> bool {
        !self.keep.is_empty() || !self.drop.is_empty()
    }

    fn kind(&self, kind: &str, how: &str) -> Option<String> {
        let kept = self.keep.is_empty() || self.keep.iter().any(|pattern| pattern.matches(kind));
        let dropped = self.drop.iter().any(|pattern| pattern.matches(kind));
        (!kept || dropped).then(|| refused(kind, how))
    }
}

fn refused(kind: &str, how: &str) -> String {
    format!("the {how} type {kind} is not among filter_types")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn types(patterns: &[&str]) -> Filter {
        Filter::new(&FetchConfig { filter_types: patterns.iter().map(|text| (*text).to_owned()).collect(), ..FetchConfig::default() })
            .unwrap()
    }

    /// | patterns | declared | sniffed | kept by the head | kept by the bytes |
    #[test]
    fn table_of_types() {
        let table: [(&[&str], &str, &str, bool, bool); 20] = [
            (&[], "text/html", "image/png", true, true),
            (&["image/*"], "image/png", "image/png", true, true),
            (&["image/*"], "IMAGE/PNG; q=1", "image/png", true, true),
            (&["image/*"], "text/html", "image/png", false, true),
            (&["image/*"], "image/png", "text/html", true, false),
            (&["image/*"], "", "image/jpeg", true, true),
            (&["image/*"], "application/octet-stream", "text/plain", true, false),
            (&["image/*"], "", "", true, false),
            (&["image/*"], "imagery/png", "image/png", false, true),
            (&["text/css"], "text/css", "text/plain", true, true),
            (&["text/css"], "", "text/plain", true, false),
            (&["image/svg+xml"], "image/svg+xml", "text/xml", true, true),
            (&["text/html"], "text/html", "application/gzip", true, true),
            (&["application/pdf"], "application/pdf", "application/octet-stream", true, true),
            (&["image/*", "!image/svg+xml"], "image/svg+xml", "image/svg+xml", false, false),
            (&["image/*", "!image/svg+xml"], "image/png", "image/svg+xml", true, false),
            (&["image/*", "!image/svg+xml"], "image/png", "image/png", true, true),
            (&["!text/html"], "application/pdf", "application/pdf", true, true),
            (&["!text/html"], "application/pdf", "text/html", true, false),
            (&["!text/plain"], "text/css", "text/plain", true, false),
        ];
        for (patterns, declared, sniffed, head, bytes) in table {
            let filter = types(patterns);
            assert_eq!(filter.head(declared, None).is_none(), head, "head {patterns:?} {declared} {sniffed}");
            assert_eq!(filter.sniffed(declared, sniffed).is_none(), bytes, "bytes {patterns:?} {declared} {sniffed}");
        }
        assert_eq!(types(&["image/*"]).head("text/html; x", None).unwrap(), "the declared type text/html is not among filter_types");
    }

    /// | least | most | size | kept |
    #[test]
    fn table_of_sizes() {
        for (min, max, size, kept) in [
            (0, 0, 0, true),
            (0, 0, u64::MAX, true),
            (1, 0, 0, false),
            (10, 20, 9, false),
            (10, 20, 10, true),
            (10, 20, 20, true),
            (10, 20, 21, false),
        ] {
            let filter = Filter::new(&FetchConfig { filter_min_bytes: min, filter_max_bytes: max, ..FetchConfig::default() }).unwrap();
            assert_eq!(filter.head("", Some(size)).is_none(), kept, "{min} {max} {size}");
            assert_eq!(filter.size(size).or(filter.too_small(size)).is_none(), kept, "{min} {max} {size}");
            assert_eq!(filter.head("", None), None, "no length says nothing");
        }
    }

    /// | statuses | status | kept |
    #[test]
    fn table_of_statuses() {
        let table: [(&[&str], u16, bool); 7] = [
            (&[], 404, true),
            (&["404", "410"], 410, false),
            (&["404", "410"], 403, true),
            (&["5xx"], 599, false),
            (&["5XX"], 499, true),
            (&["204"], 204, false),
            (&["4xx", "503"], 503, false),
        ];
        for (texts, status, kept) in table {
            let filter_statuses = texts.iter().map(|text| (*text).to_owned()).collect();
            let filter = Filter::new(&FetchConfig { filter_statuses, ..FetchConfig::default() }).unwrap();
            assert_eq!(filter.status(status).is_none(), kept, "{texts:?} {status}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (key, text) in
            [("filter_types", "image"), ("filter_types", "*/*"), ("filter_types", "!"), ("filter_types", "a/b c"), ("filter_types", "")]
        {
            let error = Filter::new(&FetchConfig { filter_types: vec![text.to_owned()], ..FetchConfig::default() }).unwrap_err();
            assert!(error.contains(key), "{text:?}: {error}");
        }
        for text in ["", "x", "99", "600", "1xx", "6xx", "4x", "40४", "éxx"] {
            let error = Filter::new(&FetchConfig { filter_statuses: vec![text.to_owned()], ..FetchConfig::default() }).unwrap_err();
            assert!(error.contains("filter_statuses"), "{text:?}: {error}");
        }
        assert!(Filter::new(&FetchConfig { filter_min_bytes: 2, filter_max_bytes: 1, ..FetchConfig::default() }).is_err());
    }
}
