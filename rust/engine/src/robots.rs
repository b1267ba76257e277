//! What a site says of crawlers: its robots.txt (RFC 9309), and the X-Robots-Tag of an answer. Pure; `fetch::robots` asks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::HeaderMap;
use tokio::sync::Mutex as AsyncMutex;

use crate::failure::Failure;
use crate::sync::lock;

/// As much of a file as is read; RFC 9309 asks for at least 500 KiB.
pub const MAX_BYTES: usize = 512 << 10;
/// How long a file holds; RFC 9309 allows a day.
pub const HOLDS: Duration = Duration::from_secs(12 * 3600);
/// How long a site whose file cannot be had is left alone.
pub const FAILURE_HOLDS: Duration = Duration::from_secs(30);
/// The longest Crawl-delay that is kept to.
pub const MAX_DELAY: Duration = Duration::from_secs(60);
/// Sites remembered; beyond that all are asked again.
const MAX_SITES: usize = 4096;

/// What a file says to us.
pub struct Rules(Option<robotxt::Robots>);

impl Rules {
    /// There is no file: everything is allowed.
    pub fn none() -> Self {
        Self(None)
    }

    /// Reads a file as `agent`, a product's name.
    pub fn parse(file: &[u8], agent: &str) -> Self {
        Self(Some(robotxt::Robots::parse(file, agent)))
    }

    /// Whether a path with its query may be fetched. The file itself always may.
    pub fn allows(&self, target: &str) -> bool {
        self.0.as_ref().is_none_or(|robots| robots.is_allowed(target))
    }

    /// The time between two requests that the file asks for.
    pub fn delay(&self) -> Option<Duration> {
        let delay = self.0.as_ref()?.crawl_delay()?;
        (!delay.is_zero()).then(|| delay.min(MAX_DELAY))
    }
}

/// What is known of a site, until when.
pub struct Known {
    /// Then it is asked again.
    pub until: Instant,
    /// Its rules, or why they cannot be had.
    pub rules: Result<Rules, Failure>,
}

/// A site; the lock is held while its file is asked for, so that it is asked once.
pub type Site = Arc<AsyncMutex<Option<Known>>>;

/// All sites.
#[derive(Default)]
pub struct Sites(Mutex<HashMap<String, Site>>);

impl Sites {
    /// The site of that name.
    pub fn get(&self, name: &str) -> Site {
        let mut sites = lock(&self.0);
        if let Some(site) = sites.get(name) {
            return site.clone();
        }
        if sites.len() >= MAX_SITES {
            sites.clear();
        }
        sites.entry(name.to_owned()).or_default().clone()
    }
}

/// The product's name in a User-Agent: its first word, without a version.
pub fn product(agent: &str) -> &str {
    let end = agent.find(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_')).unwrap_or(agent.len());
    &agent[..end]
}

/// The first of `unwanted` that an X-Robots-Tag says to everybody or to `product`. `none` stands for noindex and nofollow.
pub fn tagged<'a>(headers: &HeaderMap, unwanted: &'a [String], product: &str) -> Option<&'a str> {
    headers.get_all("x-robots-tag").iter().find_map(|value| {
        let value = String::from_utf8_lossy(value.as_bytes());
        let mut ours = true;
        value.split(',').find_map(|part| {
            let mut directive = part.trim();
            if let Some((name, rest)) = directive.split_once(':')
                && !takes_value(name.trim())
            {
                // What follows is for that crawler only.
                ours = name.trim().eq_ignore_ascii_case(product);
                directive = rest.trim();
            }
            let says = |wish: &&String| {
                directive.eq_ignore_ascii_case(wish) || (directive.eq_ignore_ascii_case("none") && wish.eq_ignore_ascii_case("noindex"))
            };
            if ours { unwanted.iter().find(says).map(String::as_str) } else { None }
        })
    })
}

/// Directives that have a value of their own behind a colon.
fn takes_value(name: &str) -> bool {
    ["unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"].iter().any(|known| name.eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_of_rules() {
        let file = b"\xef\xbb\xbfUser-agent: *\nDisallow: /private/\nAllow: /private/open\nDisallow: /*.zip$\nCrawl-delay: 2.5\n\n\
            User-agent: fetchbox\nUser-agent: other\nDisallow: /ours/\nDisallow: /q?secret\n\nUser-agent: shunned\nDisallow: /\n";
        let table = [
            ("somebody", ["/", "/private/open/x", "/a.zip.txt", "/ours/x"], ["/private/x", "/b/a.zip"], Some(2.5)),
            ("FetchBox", ["/", "/private/x", "/q?other", "/a.zip"], ["/ours/x", "/q?secret=1"], None),
            ("shunned", ["/robots.txt"; 4], ["/", "/x"], None),
        ];
        for (agent, allowed, denied, delay) in table {
            let rules = Rules::parse(file, agent);
            for target in allowed {
                assert!(rules.allows(target), "{agent} {target}");
            }
            for target in denied {
                assert!(!rules.allows(target), "{agent} {target}");
            }
            assert_eq!(rules.delay().map(|delay| delay.as_secs_f64()), delay, "{agent}");
        }
        assert!(Rules::none().allows("/x"));
        assert!(Rules::parse(b"<html>not found</html>\0\xff", "x").allows("/x"));
        assert_eq!(Rules::parse(b"user-agent: *\ncrawl-delay: 86400", "x").delay(), Some(MAX_DELAY));
    }

    #[test]
    fn table_of_products() {
        for (agent, name) in
            [("fetchbox/0.1.0", "fetchbox"), ("My-Bot (+https://x/)", "My-Bot"), ("Mozilla/5.0 (compatible; x)", "Mozilla"), ("", "")]
        {
            assert_eq!(product(agent), name);
        }
    }

    #[test]
    fn table_of_tags() {
        let table: [(&[&str], Option<&str>); 10] = [
            (&["noai"], Some("noai")),
            (&["NoAI, nofollow"], Some("noai")),
            (&["nofollow", "noindex"], Some("noindex")),
            (&["none"], Some("noindex")),
            (&["googlebot: noai"], None),
            (&["googlebot: nofollow, noai"], None),
            (&["fetchbox: noai"], Some("noai")),
            (&["googlebot: noai", "all"], None),
            (&["unavailable_after: 25 Jun 2030 15:00:00 PST, noai"], Some("noai")),
            (&["nofollow", "noaichat"], None),
        ];
        let unwanted = ["noai".to_owned(), "noindex".to_owned()];
        for (values, expected) in table {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("x-robots-tag", value.parse().unwrap());
            }
            assert_eq!(tagged(&headers, &unwanted, "FetchBox"), expected, "{values:?}");
        }
    }

    #[test]
    fn sites_are_remembered_up_to_a_number() {
        let sites = Sites::default();
        let first = sites.get("0");
        assert!(Arc::ptr_eq(&first, &sites.get("0")));
        for number in 1..=MAX_SITES {
            sites.get(&number.to_string());
        }
        assert!(!Arc::ptr_eq(&first, &sites.get("0")));
    }
}
