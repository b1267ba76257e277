//! What is stored already is not fetched again, and never anything else in its place.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use fetchbox_engine::EngineConfig;
use fetchbox_model::message::{DownloadTask, ResourceOutcome, ResourceState, StorageHint};
use fetchbox_model::reuse::Remembered;
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use object_store::path::Path;

use crate::support::origin::{Origin, Step, ok, send};
use crate::support::{Fetcher, assert_failed, assert_stored, header, task};

const DATE: &str = "Thu, 26 Nov 2026 07:00:00 GMT";

fn reusing(config: &mut EngineConfig) {
    config.fetch.reuse = true;
}

/// A task of another job for the same URL.
fn again(url: &str, job: &str) -> DownloadTask {
    DownloadTask { job_id: job.into(), ..task(url) }
}

fn with(head: &str, body: &str) -> Vec<Step> {
    vec![send(&format!("HTTP/1.1 200 OK\r\n{head}Content-Length: {}\r\n\r\n{body}", body.len()))]
}

fn not_modified(head: &str) -> Vec<Step> {
    vec![send(&format!("HTTP/1.1 304 Not Modified\r\n{head}\r\n"))]
}

/// Fetches a URL that nothing is remembered of; what is remembered afterwards.
fn first(fetcher: &mut Fetcher, url: &str) -> Remembered {
    let outcome = fetcher.run_known(again(url, "one"), None);
    assert_stored(&outcome);
    assert_eq!(outcome.reuse_key.len(), 32);
    Remembered::of(&outcome).unwrap()
}

#[track_caller]
fn assert_reused(outcome: &ResourceOutcome, known: &Remembered, message: &str) {
    assert_eq!((outcome.state(), outcome.code.as_str(), outcome.message.as_str()), (ResourceState::Reused, "", message));
    assert_eq!((outcome.size, &outcome.sha256), (known.size, &known.sha256));
    assert_ne!(outcome.storage_url, known.storage_url);
}

#[test]
fn a_304_gives_the_object_a_second_name_and_sends_no_body() {
    let script = |n, _: &str| match n {
        0 => with("ETag: W/\"v1\"\r\nContent-Type: text/css\r\nContent-Encoding: br\r\n", "body"),
        // The length is that of the body that is not sent: the connection can go on.
        1 => not_modified("ETag: \"v1\"\r\nContent-Length: 99999999\r\nLast-Modified: Thu, 26 Nov 2026 08:00:00 GMT\r\n"),
        _ => not_modified(""),
    };
    for durable in [true, false] {
        let origin = Origin::new(script);
        let mut fetcher = Fetcher::new(|config| {
            reusing(config);
            config.sync_files = durable;
        });
        let known = first(&mut fetcher, &origin.url("/"));
        let outcome = fetcher.run_known(again(&origin.url("/"), "two"), Some(known.clone()));
        assert_reused(&outcome, &known, "not modified");
        assert!(origin.requests()[1].contains("\r\nif-none-match: w/\"v1\"\r\n"), "{:?}", origin.requests());
        assert!(!origin.requests()[0].contains("if-none-match"));
        assert_eq!((outcome.http_status, outcome.etag.as_str(), outcome.content_type.as_str()), (304, "\"v1\"", "text/css"));
        assert_eq!((outcome.last_modified.as_str(), outcome.context["content_encoding"].as_str()), ("Thu, 26 Nov 2026 08:00:00 GMT", "br"));
        assert_eq!((&outcome.final_url, outcome.attempts), (&origin.url("/"), 1));
        assert!(outcome.storage_url.ends_with("/resources/default/two/r"), "{}", outcome.storage_url);
        // And once more, from what the second time taught.
        let outcome = fetcher.run_known(again(&origin.url("/"), "three"), Remembered::of(&outcome));
        assert_reused(&outcome, &known, "not modified");
        assert_eq!((origin.connections(), outcome.reuse_key.len()), (1, 32));
        let files = fetcher.files();
        assert_eq!(files.values().collect::<Vec<_>>(), [b"body", b"body", b"body"]);
        let inodes: std::collections::BTreeSet<u64> =
            files.keys().map(|name| fetcher.root.path().join(name).metadata().unwrap().ino()).collect();
        assert_eq!(inodes.len(), 1, "no bytes were copied");
        let text = fetcher.engine().metrics_text();
        assert!(text.contains("fetchbox_worker_reused_total{how=\"not_modified\"} 2\n"), "{text}");
        assert!(text.contains("fetchbox_worker_download_bytes_total 4\n"), "{text}");
    }
}

#[test]
fn without_an_etag_the_date_is_asked_with() {
    let origin = Origin::new(|n, _| if n == 0 { with(&format!("Last-Modified: {DATE}\r\n"), "body") } else { not_modified("") });
    let mut fetcher = Fetcher::new(reusing);
    let known = first(&mut fetcher, &origin.url("/"));
    let outcome = fetcher.run_known(again(&origin.url("/"), "two"), Some(known.clone()));
    assert_reused(&outcome, &known, "not modified");
    assert_eq!(outcome.last_modified, DATE);
    let request = &origin.requests()[1];
    assert!(
        request.contains(&format!("if-modified-since: {}\r\n", DATE.to_lowercase())) && !request.contains("if-none-match"),
        "{request}"
    );
}

#[test]
fn what_has_changed_is_stored_anew_and_leaves_the_old_alone() {
    let origin = Origin::new(|n, _| with(&format!("ETag: \"v{n}\"\r\n"), if n == 0 { "old" } else { "new" }));
    let mut fetcher = Fetcher::new(reusing);
    let known = first(&mut fetcher, &origin.url("/"));
    let outcome = fetcher.run_known(again(&origin.url("/"), "two"), Some(known.clone()));
    assert_stored(&outcome);
    assert_eq!((outcome.etag.as_str(), outcome.reuse_key.len()), ("\"v1\"", 32));
    let files = fetcher.files();
    assert_eq!((&files["resources/default/one/r"][..], &files["resources/default/two/r"][..]), (&b"old"[..], &b"new"[..]));
    // The same key again, as a task that is delivered twice would: the file of the first stays what it was.
    assert_stored(&fetcher.run_known(again(&origin.url("/"), "one"), Some(known)));
    assert_eq!(fetcher.files()["resources/default/one/r"], b"new");
}

#[test]
fn an_object_that_is_gone_or_another_is_fetched_again_and_a_304_without_it_does_not_loop() {
    // | what happened to the object | requests of the second task | it ends as |
    type Spoil = fn(&std::path::Path);
    let spoil: [(&str, Spoil); 5] = [
        ("removed", |path| std::fs::remove_file(path).unwrap()),
        ("written to", |path| std::fs::write(path, b"evil").unwrap()),
        ("replaced", |path| {
            std::fs::write(path.with_extension("new"), b"evil").unwrap();
            std::fs::rename(path.with_extension("new"), path).unwrap();
        }),
        ("cut", |path| std::fs::write(path, b"bod").unwrap()),
        ("a directory", |path| {
            std::fs::remove_file(path).unwrap();
            std::fs::create_dir(path).unwrap();
        }),
    ];
    for (what, spoil) in spoil {
        let origin = Origin::new(|_, head| if head.contains("if-none-match") { not_modified("") } else { with("ETag: \"v\"\r\n", "body") });
        let mut fetcher = Fetcher::new(reusing);
        let known = first(&mut fetcher, &origin.url("/"));
        spoil(&fetcher.root.path().join("resources/default/one/r"));
        let outcome = fetcher.run_known(again(&origin.url("/"), "two"), Some(known));
        assert_stored(&outcome);
        assert_eq!((origin.requests().len(), outcome.attempts), (3, 1), "{what}");
        assert_eq!(fetcher.files()["resources/default/two/r"], b"body");
    }
    // It says 304 whatever it is asked.
    let origin = Origin::new(|n, _| if n == 0 { with("ETag: \"v\"\r\n", "body") } else { not_modified("") });
    let mut fetcher = Fetcher::new(reusing);
    let known = first(&mut fetcher, &origin.url("/"));
    std::fs::remove_file(fetcher.root.path().join("resources/default/one/r")).unwrap();
    assert_failed(&fetcher.run_known(again(&origin.url("/"), "two"), Some(known)), "DOWNLOAD_HTTP_3XX");
    assert_eq!(origin.requests().len(), 3);
}

#[test]
fn a_304_that_speaks_of_another_version_is_not_believed() {
    let origin =
        Origin::new(
            |_, head| if head.contains("if-none-match") { not_modified("ETag: \"v2\"\r\n") } else { with("ETag: \"v1\"\r\n", "body") },
        );
    let mut fetcher = Fetcher::new(reusing);
    let known = first(&mut fetcher, &origin.url("/"));
    assert_stored(&fetcher.run_known(again(&origin.url("/"), "two"), Some(known)));
    assert_eq!(origin.requests().len(), 3);
}

#[test]
fn a_304_that_nobody_asked_for_fails_as_ever() {
    let origin = Origin::always(not_modified("ETag: \"v\"\r\n"));
    assert_failed(&Fetcher::new(reusing).run_known(task(&origin.url("/")), None), "DOWNLOAD_HTTP_3XX");
    assert_eq!(origin.requests().len(), 1);
}

#[test]
fn the_same_body_is_not_stored_twice() {
    for size in [4usize, 300_000] {
        let body = vec![b'x'; size];
        let origin = Origin::always(ok(&body));
        let mut fetcher = Fetcher::new(reusing);
        let known = first(&mut fetcher, &origin.url("/"));
        let outcome = fetcher.run_known(again(&origin.url("/"), "two"), Some(known.clone()));
        assert_reused(&outcome, &known, "the same body again");
        assert_eq!(outcome.http_status, 200);
        let [one, two] = ["one", "two"].map(|job| fetcher.root.path().join(format!("resources/default/{job}/r")).metadata().unwrap().ino());
        assert_eq!(one, two);
        assert_eq!(fetcher.files().len(), 2, "nothing is left in the staging directory");
        assert!(fetcher.engine().metrics_text().contains(&format!("fetchbox_worker_download_bytes_total {}\n", 2 * size)));
    }
}

#[test]
fn within_reuse_max_age_nobody_is_asked() {
    let origin = Origin::new(|_, head| if head.contains("if-none-match") { not_modified("") } else { with("ETag: \"v\"\r\n", "body") });
    let mut fetcher = Fetcher::new(|config| {
        reusing(config);
        config.fetch.reuse_max_age = 60.0;
    });
    let known = first(&mut fetcher, &origin.url("/"));
    let aged = |age_ms| Some(Remembered { age_ms, ..known.clone() });
    let outcome = fetcher.run_known(again(&origin.url("/"), "two"), aged(59_000));
    assert_reused(&outcome, &known, "confirmed within reuse_max_age");
    assert_eq!((outcome.http_status, outcome.final_url.as_str()), (0, origin.url("/").as_str()));
    // What nobody confirmed does not become younger by that.
    assert!(outcome.reuse_key.is_empty());
    assert_eq!(origin.requests().len(), 1);
    assert_reused(&fetcher.run_known(again(&origin.url("/"), "three"), aged(60_001)), &known, "not modified");
    assert_eq!(origin.requests().len(), 2);
    std::fs::remove_file(fetcher.root.path().join("resources/default/one/r")).unwrap();
    assert_stored(&fetcher.run_known(again(&origin.url("/"), "four"), aged(0)));
    assert_eq!(origin.requests().len(), 3);
    // Sizes that the task would not have are not taken.
    let mut wants = again(&origin.url("/"), "five");
    wants.attributes =
        Some(fetchbox_model::message::TaskAttributes { tags: [("size".to_owned(), "5".to_owned())].into(), ..Default::default() });
    assert_failed(&fetcher.run_known(wants, aged(0)), "DOWNLOAD_SIZE_MISMATCH");
}

#[test]
fn what_nobody_is_asked_for_waits_for_no_hosts_limits() {
    let origin = Origin::new(|_, head| if head.contains("if-none-match") { not_modified("") } else { with("ETag: \"v\"\r\n", "body") });
    let mut fetcher = Fetcher::new(|config| {
        reusing(config);
        config.fetch.reuse_max_age = 60.0;
        config.fetch.per_host_concurrency = 1;
        // Three a minute.
        config.fetch.per_host_rate = 0.05;
    });
    let known = Arc::new(first(&mut fetcher, &origin.url("/")));
    for n in 0..500 {
        fetcher.submit_known(DownloadTask { resource_id: n.to_string(), ..again(&origin.url("/"), "two") }, Some(known.clone()));
    }
    assert!(fetcher.drain(500).into_iter().all(|finished| crate::support::outcome(finished).state() == ResourceState::Reused));
    assert_eq!(origin.requests().len(), 1);
    // What is gone has to wait like any other, and a cancelled job's does not come back.
    std::fs::remove_file(fetcher.root.path().join("resources/default/one/r")).unwrap();
    fetcher.submit_known(again(&origin.url("/"), "three"), Some(known));
    let until = std::time::Instant::now() + crate::support::LIMIT;
    while fetcher.engine().stats().hosts == 0 || fetcher.engine().stats().queued == 0 {
        assert!(std::time::Instant::now() < until);
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    fetcher.engine().cancel("three");
    assert!(matches!(fetcher.drain(1)[0].result, fetchbox_engine::FinishedKind::Dropped));
    assert_eq!(origin.requests().len(), 1);
}

#[test]
fn what_the_filters_leave_out_today_is_not_reused() {
    let origin = Origin::new(|_, head| {
        if head.contains("if-none-match") { not_modified("") } else { with("ETag: \"v\"\r\nContent-Type: text/css\r\n", "body") }
    });
    let mut fetcher = Fetcher::new(|config| {
        reusing(config);
        config.fetch.filter_statuses = vec!["3xx".into()];
        config.job_types.insert("images".into(), serde_json::from_str(r#"{"fetch": {"filter_types": ["image/*"]}}"#).unwrap());
    });
    let known = first(&mut fetcher, &origin.url("/"));
    // Nobody means the 304 that we asked for.
    assert_reused(&fetcher.run_known(again(&origin.url("/"), "two"), Some(known.clone())), &known, "not modified");
    let images = DownloadTask { job_type: "images".into(), ..again(&origin.url("/"), "three") };
    assert_eq!(fetcher.run_known(images, Some(known)).state(), ResourceState::Filtered);
}

#[test]
fn the_condition_goes_to_the_url_that_gave_the_object_and_to_no_other() {
    let target = Origin::new(|n, _| if n == 0 { with("ETag: \"v\"\r\n", "body") } else { not_modified("") });
    let moved = target.url("/there");
    let gate = Origin::always(vec![send(&format!("HTTP/1.1 302 Found\r\nLocation: {moved}\r\nContent-Length: 0\r\n\r\n"))]);
    let mut fetcher = Fetcher::new(reusing);
    let known = first(&mut fetcher, &gate.url("/"));
    assert_eq!(known.final_url, moved);
    let outcome = fetcher.run_known(again(&gate.url("/"), "two"), Some(known.clone()));
    assert_reused(&outcome, &known, "not modified");
    assert_eq!((outcome.redirects, &outcome.final_url), (1, &moved));
    assert!(gate.requests().iter().all(|head| !head.contains("if-none-match")), "{:?}", gate.requests());
    assert!(target.requests()[1].contains("if-none-match: \"v\""));
    // It leads elsewhere now.
    let elsewhere = Origin::always(ok(b"other"));
    let away = Origin::always(vec![send(&format!("HTTP/1.1 302 Found\r\nLocation: {}\r\nContent-Length: 0\r\n\r\n", elsewhere.url("/")))]);
    assert_stored(&fetcher.run_known(again(&away.url("/"), "three"), Some(known)));
    assert!(away.requests().iter().chain(&elsewhere.requests()).all(|head| !head.contains("if-none-match")));
}

#[test]
fn a_failed_attempt_does_not_forget_and_the_next_asks_again() {
    let origin = Origin::new(|n, head| match n {
        0 => with("ETag: \"v\"\r\n", "body"),
        1 => vec![send("HTTP/1.1 503 x\r\nContent-Length: 0\r\n\r\n")],
        _ if head.contains("if-none-match") => not_modified(""),
        _ => with("", "unasked"),
    });
    let mut fetcher = Fetcher::new(|config| {
        reusing(config);
        config.fetch.max_attempts = 3;
    });
    let known = first(&mut fetcher, &origin.url("/"));
    let outcome = fetcher.run_known(again(&origin.url("/"), "two"), Some(known.clone()));
    assert_reused(&outcome, &known, "not modified");
    assert_eq!(outcome.attempts, 2);
}

#[test]
fn only_tasks_of_a_job_type_that_reuses_have_a_name_and_those_with_conditions_do_not() {
    let plain = Fetcher::new(|_| {});
    assert_eq!(plain.engine().reuse_key(&task("http://h/")), None);
    let fetcher = Fetcher::new(|config| {
        config.job_types.insert("pages".into(), serde_json::from_str(r#"{"fetch": {"reuse": true}}"#).unwrap());
        config.job_types.insert(
            "kin".into(),
            serde_json::from_str(r#"{"fetch": {"reuse": true}, "default_headers": {"accept": "image/webp"}}"#).unwrap(),
        );
    });
    let of = |job_type: &str| fetcher.engine().reuse_key(&DownloadTask { job_type: job_type.into(), ..task("http://h/") });
    assert!(of("default").is_none() && of("pages").is_some() && of("pages") != of("kin"));
    let own = DownloadTask { job_type: "pages".into(), headers: vec![header("if-none-match", "x")], ..task("http://h/") };
    assert_eq!(fetcher.engine().reuse_key(&own), None);
}

#[test]
fn a_body_that_ends_with_its_connection_is_not_remembered() {
    let origin = Origin::always(vec![send("HTTP/1.1 200 OK\r\nETag: \"v\"\r\n\r\nperhaps all of it"), Step::Close]);
    let outcome = Fetcher::new(reusing).run_known(task(&origin.url("/")), None);
    assert_stored(&outcome);
    assert!(outcome.reuse_key.is_empty());
}

fn block<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn bucket(store: &Arc<InMemory>) -> Fetcher {
    Fetcher::with_store(Some(store.clone()), |config| {
        reusing(config);
        config.storage.url = "s3://bucket".into();
    })
}

#[test]
fn in_a_bucket_the_object_is_copied_by_the_store() {
    let origin = Origin::new(|_, head| if head.contains("if-none-match") { not_modified("") } else { with("ETag: \"v\"\r\n", "body") });
    let store = Arc::new(InMemory::new());
    let mut fetcher = bucket(&store);
    let known = first(&mut fetcher, &origin.url("/"));
    assert!(!known.storage_etag.is_empty());
    let outcome = fetcher.run_known(again(&origin.url("/"), "two"), Some(known.clone()));
    assert_reused(&outcome, &known, "not modified");
    assert_eq!(outcome.storage_url, "s3://bucket/resources/default/two/r");
    let head = |path: &str| block(store.head(&Path::from(path))).unwrap();
    assert_eq!(head("resources/default/two/r").e_tag.unwrap(), outcome.storage_etag);
    // Another object of the same size lies there now.
    block(store.put(&Path::from("resources/default/one/r"), "evil".into())).unwrap();
    let outcome = fetcher.run_known(again(&origin.url("/"), "three"), Some(known.clone()));
    assert_stored(&outcome);
    let got = block(async { store.get(&Path::from("resources/default/three/r")).await.unwrap().bytes().await.unwrap() });
    assert_eq!(got, "body");
    block(store.delete(&Path::from("resources/default/one/r"))).unwrap();
    assert_stored(&fetcher.run_known(again(&origin.url("/"), "four"), Some(known.clone())));
    // An object of another store is nobody's business here.
    let foreign = Remembered { storage_url: "s3://another/resources/default/three/r".into(), ..known };
    assert_stored(&fetcher.run_known(again(&origin.url("/"), "five"), Some(foreign)));
}

#[test]
fn in_a_bucket_the_same_body_is_not_sent_to_the_store_again_and_one_key_stays_as_it_is() {
    let origin = Origin::always(ok(b"body"));
    let store = Arc::new(InMemory::new());
    let mut fetcher = bucket(&store);
    let known = first(&mut fetcher, &origin.url("/"));
    assert_reused(&fetcher.run_known(again(&origin.url("/"), "two"), Some(known.clone())), &known, "the same body again");
    let before = block(store.head(&Path::from("resources/default/one/r"))).unwrap();
    let outcome = fetcher.run_known(again(&origin.url("/"), "one"), Some(known.clone()));
    assert_eq!(
        (outcome.state(), &outcome.storage_url, &outcome.storage_etag),
        (ResourceState::Reused, &known.storage_url, &known.storage_etag)
    );
    assert_eq!(block(store.head(&Path::from("resources/default/one/r"))).unwrap(), before);
}

#[test]
fn in_a_directory_one_key_stays_as_it_is_and_a_chosen_one_is_made() {
    let origin = Origin::new(|_, head| if head.contains("if-none-match") { not_modified("") } else { with("ETag: \"v\"\r\n", "body") });
    let mut fetcher = Fetcher::new(reusing);
    let keyed = |job: &str, key: &str| {
        let hint = StorageHint { key: key.into(), ..Default::default() };
        DownloadTask { storage_hint: Some(hint), ..again(&origin.url("/"), job) }
    };
    let outcome = fetcher.run_known(keyed("one", "pages/a.html"), None);
    assert_stored(&outcome);
    let known = Remembered::of(&outcome).unwrap();
    let outcome = fetcher.run_known(keyed("two", "pages/a.html"), Some(known.clone()));
    assert_eq!((outcome.state(), &outcome.storage_url), (ResourceState::Reused, &known.storage_url));
    assert_reused(&fetcher.run_known(keyed("three", "häß/b%.html"), Some(known.clone())), &known, "not modified");
    // Replaces what was there, and twice is as good as once.
    std::fs::write(fetcher.root.path().join("pages/c.html"), b"other").unwrap();
    for _ in 0..2 {
        assert_reused(&fetcher.run_known(keyed("four", "pages/c.html"), Some(known.clone())), &known, "not modified");
    }
    let files = fetcher.files();
    assert_eq!(files.keys().collect::<Vec<_>>(), ["h%C3%A4%C3%9F/b%25.html", "pages/a.html", "pages/c.html"]);
    assert!(files.values().all(|body| body == b"body"));
}

#[test]
fn many_at_once_adopt_one_file() {
    let origin = Origin::new(|_, head| if head.contains("if-none-match") { not_modified("") } else { with("ETag: \"v\"\r\n", "body") });
    let mut fetcher = Fetcher::new(|config| {
        reusing(config);
        config.sync_files = true;
        config.fetch.per_host_concurrency = 32;
    });
    let known = Arc::new(first(&mut fetcher, &origin.url("/")));
    for n in 0..200 {
        let mut task = again(&origin.url("/"), "two");
        task.resource_id = (n % 100).to_string();
        fetcher.submit_known(task, Some(known.clone()));
    }
    for finished in fetcher.drain(200) {
        assert_eq!(crate::support::outcome(finished).state(), ResourceState::Reused);
    }
    assert_eq!(fetcher.files().len(), 101);
    assert_eq!(origin.requests().len(), 201);
}
