//! Object stores: one PUT or a multipart upload, whole or not at all.

use std::sync::Arc;

use futures_util::StreamExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{GetOptions, ObjectStore, ObjectStoreExt};

use crate::support::origin::{Origin, Step, ok, send};
use crate::support::{Fetcher, assert_failed, assert_stored, task};

fn block<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn objects(store: &InMemory) -> Vec<(String, u64)> {
    block(store.list(None).map(|meta| meta.unwrap()).map(|meta| (meta.location.to_string(), meta.size)).collect())
}

fn fetcher(store: &Arc<InMemory>) -> Fetcher {
    Fetcher::with_store(Some(store.clone()), |config| {
        config.storage.url = "s3://bucket/pre fix".replace(' ', "%20");
        config.storage.multipart_threshold = 1_000_000;
        config.storage.part_size = 1_000_000;
        config.storage.metadata.insert("Owner".into(), "crawler\r\n".into());
        config.memory_budget = 4_000_000;
    })
}

#[test]
fn small_and_large_bodies_arrive_whole() {
    for size in [0usize, 1, 65_537, 999_999, 1_000_000, 1_000_001, 12_345_678] {
        let body: Vec<u8> = (0..size).map(|n| (n * 7 % 253) as u8).collect();
        let origin = Origin::always(ok(&body));
        let store = Arc::new(InMemory::new());
        let mut fetcher = fetcher(&store);
        let outcome = fetcher.get(&origin.url("/"));
        assert_stored(&outcome);
        assert_eq!(outcome.storage_url, "s3://bucket/pre%20fix/resources/default/job/r");
        let got = block(async { store.get(&Path::from("resources/default/job/r")).await.unwrap().bytes().await.unwrap() });
        assert!(got == body, "{size}");
        assert_eq!(fetcher.engine().stats().memory_used, 0);
    }
}

#[test]
fn case_27_type_encoding_and_metadata_are_kept_on_the_object_cleaned() {
    let origin =
        Origin::always(vec![send("HTTP/1.1 200 OK\r\nContent-Type: text/css\r\nContent-Encoding: br\r\nContent-Length: 2\r\n\r\nok")]);
    let store = Arc::new(InMemory::new());
    assert_stored(&fetcher(&store).get(&origin.url("/")));
    let attributes =
        block(async { store.get_opts(&Path::from("resources/default/job/r"), GetOptions::default()).await.unwrap().attributes });
    let mut seen: Vec<String> = attributes.iter().map(|(name, value)| format!("{name:?}={}", value.as_ref())).collect();
    seen.sort();
    assert_eq!(seen, ["ContentEncoding=br", "ContentType=text/css", "Metadata(\"owner\")=crawler??"]);
}

#[test]
fn case_27_values_of_the_origin_are_cleaned_and_cut() {
    let coding = "é".repeat(600);
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain;\tx=\u{e9}{}\r\nContent-Encoding: {coding}\r\n", "t".repeat(4096));
    let origin = Origin::always(vec![send(&format!("{head}Content-Length: 2\r\n\r\nok"))]);
    let store = Arc::new(InMemory::new());
    let mut fetcher = fetcher(&store);
    let mut task = task(&origin.url("/"));
    task.storage_hint = Some(fetchbox_model::message::StorageHint {
        metadata: [("na\r\nme".to_owned(), "a\r\nX-Amz-Acl: public-read".to_owned()), ("big".to_owned(), "v".repeat(9000))].into(),
        ..Default::default()
    });
    assert_stored(&fetcher.outcome(task));
    let got = block(async { store.get_opts(&Path::from("resources/default/job/r"), GetOptions::default()).await.unwrap() });
    let mut seen = 0;
    for (name, value) in &got.attributes {
        let value: &str = value.as_ref();
        assert!(value.len() <= 512 && value.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()), "{name:?}: {value:?}");
        seen += 1;
    }
    assert_eq!(seen, 5, "type, encoding, the store's owner and two of the task");
    let name = object_store::Attribute::Metadata("na--me".into());
    assert_eq!(got.attributes.get(&name).unwrap().as_ref(), "a??X-Amz-Acl: public-read");
}

#[test]
fn case_19_and_13_a_failed_multipart_leaves_no_object() {
    let store = Arc::new(InMemory::new());
    let mut fetcher = fetcher(&store);
    let cut = Origin::always(vec![
        Step::Send([b"HTTP/1.1 200 OK\r\nContent-Length: 5000000\r\n\r\n".to_vec(), vec![1; 3_500_000]].concat()),
        Step::Close,
    ]);
    assert_failed(&fetcher.get(&cut.url("/")), "DOWNLOAD_TRUNCATED");
    let wrong = Origin::always(ok(&vec![1; 3_500_000]));
    let mut task = task(&wrong.url("/"));
    task.attributes = Some(fetchbox_model::message::TaskAttributes {
        checksum_hint: "md5:00000000000000000000000000000000".into(),
        ..Default::default()
    });
    assert_failed(&fetcher.outcome(task), "DOWNLOAD_CHECKSUM_MISMATCH");
    assert_eq!(objects(&store), []);
    assert_eq!(fetcher.engine().stats().memory_used, 0);
}

#[test]
fn a_broken_multipart_goes_on_into_the_same_upload() {
    let body: Vec<u8> = (0..5_000_000u32).map(|n| (n % 251) as u8).collect();
    let (first, rest) = (body[..3_333_333].to_vec(), body[3_333_333..].to_vec());
    let origin = Origin::new(move |n, _| {
        if n == 0 {
            let head = b"HTTP/1.1 200 OK\r\nContent-Length: 5000000\r\nAccept-Ranges: bytes\r\nETag: \"v\"\r\n\r\n".to_vec();
            return vec![Step::Send([head, first.clone()].concat()), Step::Close];
        }
        let head = format!("HTTP/1.1 206 x\r\nContent-Range: bytes 3333333-4999999/5000000\r\nContent-Length: {}\r\n\r\n", rest.len());
        vec![Step::Send([head.into_bytes(), rest.clone()].concat())]
    });
    let store = Arc::new(InMemory::new());
    let mut fetcher = Fetcher::with_store(Some(store.clone()), |config| {
        config.storage.multipart_threshold = 1_000_000;
        config.storage.part_size = 1_000_000;
        config.fetch.max_attempts = 3;
    });
    let outcome = fetcher.get(&origin.url("/"));
    assert_stored(&outcome);
    assert_eq!((outcome.attempts, origin.requests().len()), (2, 2));
    let got = block(async { store.get(&Path::from("resources/default/job/r")).await.unwrap().bytes().await.unwrap() });
    assert!(got == body);
}

#[test]
fn many_large_bodies_share_a_small_budget() {
    let body = vec![5; 3_000_000];
    let origin = Origin::always(ok(&body));
    let store = Arc::new(InMemory::new());
    let mut fetcher = fetcher(&store);
    for n in 0..20 {
        let mut task = task(&origin.url("/"));
        task.resource_id = n.to_string();
        fetcher.submit(task);
    }
    for finished in fetcher.drain(20) {
        assert_stored(&crate::support::outcome(finished));
    }
    assert_eq!(objects(&store).iter().map(|(_, size)| *size).collect::<Vec<_>>(), [3_000_000; 20]);
}
