//! robots.txt and X-Robots-Tag: what is asked for, what is left out, and how fast.

use std::time::{Duration, Instant};

use fetchbox_model::message::{ResourceOutcome, ResourceState};

use crate::support::origin::{Origin, Step, ok, send};
use crate::support::{Fetcher, assert_failed, assert_stored, header, outcome, task};

/// An origin whose robots.txt is answered with these steps, and everything else with a body.
fn site(robots: Vec<Step>) -> Origin {
    Origin::new(move |_, request| if request.starts_with("get /robots.txt ") { robots.clone() } else { ok(b"body") })
}

fn obedient() -> Fetcher {
    Fetcher::new(|config| {
        config.fetch.robots = true;
        config.fetch.max_attempts = 1;
        config.fetch.user_agent = "MyBot/2.0 (+https://bot.example/)".into();
    })
}

fn asked(origin: &Origin) -> usize {
    origin.requests().iter().filter(|request| request.starts_with("get /robots.txt ")).count()
}

fn assert_filtered(outcome: &ResourceOutcome, message: &str) {
    assert_eq!((outcome.state(), outcome.code.as_str()), (ResourceState::Filtered, "DOWNLOAD_ROBOTS_DENIED"), "{outcome:?}");
    assert!(outcome.message.contains(message), "{}", outcome.message);
    assert!(outcome.task.is_none() && outcome.storage_url.is_empty());
}

#[test]
fn what_it_forbids_is_filtered_and_the_file_is_asked_for_once() {
    let origin = site(ok(b"User-agent: mybot\nDisallow: /private\nAllow: /private/open$\n\nUser-agent: *\nDisallow: /\n"));
    let mut fetcher = obedient();
    for path in ["/a", "/private/open", "/b?c=d"] {
        assert_stored(&fetcher.get(&origin.url(path)));
    }
    let denied = fetcher.run(task(&origin.url("/private/x")));
    assert!(denied.attempts.is_empty(), "a resource that is left out has not failed");
    assert_filtered(&outcome(denied), "robots.txt forbids it");
    assert_eq!(asked(&origin), 1);
    assert!(!origin.requests().iter().any(|request| request.contains("/private/x")));
    assert_eq!(fetcher.files().len(), 1, "of one id");
}

#[test]
fn nobody_asks_for_it_unless_told_to() {
    let origin = site(ok(b"User-agent: *\nDisallow: /\n"));
    assert_stored(&Fetcher::new(|_| {}).get(&origin.url("/a")));
    assert_eq!(asked(&origin), 0);
}

#[test]
fn many_at_once_ask_once_and_credentials_stay_out() {
    let origin = site(ok(b"User-agent: *\nDisallow: /no\n"));
    let mut fetcher = obedient();
    for number in 0..20 {
        let mut task = task(&origin.url(&format!("/{}/{number}", if number % 2 == 0 { "yes" } else { "no" })));
        task.headers = vec![header("authorization", "Bearer hush"), header("cookie", "hush")];
        fetcher.submit(task);
    }
    let states: Vec<_> = fetcher.drain(20).into_iter().map(|finished| outcome(finished).state()).collect();
    assert_eq!(states.iter().filter(|state| **state == ResourceState::Stored).count(), 10);
    assert_eq!(states.iter().filter(|state| **state == ResourceState::Filtered).count(), 10);
    assert_eq!(asked(&origin), 1);
    let request = origin.requests().into_iter().find(|request| request.starts_with("get /robots.txt ")).unwrap();
    assert!(!request.contains("hush") && request.to_ascii_lowercase().contains("user-agent: mybot/2.0"), "{request}");
}

#[test]
fn a_site_without_the_file_allows_everything() {
    for line in ["404 Not Found", "403 Forbidden", "410 Gone"] {
        let origin = site(vec![send(&format!("HTTP/1.1 {line}\r\nContent-Length: 2\r\n\r\nno"))]);
        assert_stored(&obedient().get(&origin.url("/a")));
    }
    let endless = site(vec![send("HTTP/1.1 302 Found\r\nLocation: /robots.txt\r\nContent-Length: 0\r\n\r\n")]);
    assert_stored(&obedient().get(&endless.url("/a")));
    let huge = site(ok(&[b"User-agent: *\nDisallow: /no\n".as_slice(), &vec![b'#'; 2_000_000]].concat()));
    let mut fetcher = obedient();
    assert_stored(&fetcher.get(&huge.url("/a")));
    assert_filtered(&fetcher.get(&huge.url("/no")), "robots.txt");
}

#[test]
fn a_redirect_to_the_file_is_followed() {
    let target = site(ok(b"User-agent: *\nDisallow: /no\n"));
    let location = target.url("/robots.txt");
    let origin = site(vec![send(&format!("HTTP/1.1 301 Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"))]);
    let mut fetcher = obedient();
    assert_stored(&fetcher.get(&origin.url("/yes")));
    assert_filtered(&fetcher.get(&origin.url("/no")), "robots.txt");
}

#[test]
fn a_site_that_cannot_say_is_not_fetched_from() {
    for (steps, code) in [
        (vec![send("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")], "DOWNLOAD_HTTP_5XX"),
        (vec![send("HTTP/1.1 429 Slow\r\nContent-Length: 0\r\n\r\n")], "DOWNLOAD_HTTP_429"),
        (vec![Step::Close], "DOWNLOAD_RESET"),
    ] {
        let origin = site(steps);
        let mut fetcher = obedient();
        for path in ["/a", "/b"] {
            let outcome = fetcher.get(&origin.url(path));
            assert_failed(&outcome, code);
            assert!(outcome.message.starts_with("robots.txt: "), "{}", outcome.message);
        }
        assert!(!origin.requests().iter().any(|request| request.starts_with("get /a ")));
    }
}

#[test]
fn redirects_are_judged_by_the_site_they_lead_to() {
    let strict = site(ok(b"User-agent: *\nDisallow: /no\n"));
    let location = strict.url("/no/x");
    let origin = Origin::new(move |_, request| {
        if request.starts_with("get /robots.txt ") {
            vec![send("HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")]
        } else {
            vec![send(&format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"))]
        }
    });
    assert_filtered(&obedient().get(&origin.url("/a")), "robots.txt");
    assert!(!strict.requests().iter().any(|request| request.starts_with("get /no")));
}

#[test]
fn a_crawl_delay_spaces_the_requests() {
    let origin = site(ok(b"User-agent: *\nCrawl-delay: 0.3\n"));
    let mut fetcher = Fetcher::new(|config| {
        config.fetch.robots = true;
        config.fetch.per_host_concurrency = 1;
    });
    let started = Instant::now();
    for number in 0..4 {
        fetcher.submit(task(&origin.url(&format!("/{number}"))));
    }
    fetcher.drain(4).into_iter().for_each(|finished| assert_stored(&outcome(finished)));
    // Three pauses; a slow machine only makes them longer.
    assert!(started.elapsed() >= Duration::from_millis(890), "{:?}", started.elapsed());
}

#[test]
fn an_answer_with_an_unwanted_tag_is_filtered() {
    let tagged = |tag: &str| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: 4\r\nX-Robots-Tag: {tag}\r\n\r\nbody");
        Origin::new(move |_, request| {
            if request.starts_with("get /robots.txt ") {
                vec![send("HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")]
            } else {
                vec![send(&head)]
            }
        })
    };
    let mut fetcher = obedient();
    let outcome = fetcher.get(&tagged("nofollow, noai").url("/a"));
    assert_filtered(&outcome, "X-Robots-Tag: noai");
    assert_eq!(outcome.http_status, 200);
    assert_stored(&fetcher.get(&tagged("nofollow").url("/a")));
    assert_stored(&fetcher.get(&tagged("otherbot: noai").url("/b")));
    assert_stored(&Fetcher::new(|_| {}).get(&tagged("noai").url("/a")));
}
