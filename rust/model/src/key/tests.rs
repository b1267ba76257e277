use super::*;
use crate::message::{DownloadTask, StorageHint};
use proptest::prelude::*;
use std::collections::HashMap;

const JOB: &str = "0192f5c2-7d3a-7b1e-8c4d-1234567890ab";

fn parts(url: &str) -> KeyParts<'_> {
    KeyParts { job_type: "default", job_id: JOB, resource_id: "a b", index: 7, tenant: "acme", url }
}

fn render(template: &str, url: &str) -> String {
    KeyTemplate::parse(template).unwrap().render(&parts(url)).unwrap().into()
}

fn decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::new();
    let mut i = 0;
    while i < bytes.len() {
        if bytes[i] == b'%' {
            out.push(u8::from_str_radix(&text[i + 1..i + 3], 16).unwrap());
            i += 3;
        } else {
            out.push(bytes[i]);
            i += 1;
        }
    }
    out
}

#[test]
fn segments_by_example() {
    let table = [
        ("plain-1.jpg", "plain-1.jpg"),
        ("", "%"),
        (".", "%2E"),
        ("..", "%2E."),
        (".hidden", "%2Ehidden"),
        ("a/b", "a%2Fb"),
        ("a\\b", "a%5Cb"),
        ("a%2Fb", "a%252Fb"),
        ("\0", "%00"),
        ("é", "%C3%A9"),
        ("e\u{301}", "e%CC%81"),
        ("%", "%25"),
        ("sp ace", "sp%20ace"),
        ("CON", "CON"),
    ];
    for (value, expected) in table {
        assert_eq!(segment(value), expected, "{value:?}");
    }
}

#[test]
fn long_values_are_cut_and_hashed_at_a_whole_escape() {
    for len in [85, 86, 128, 5000] {
        for lead in ["", "a", "ab"] {
            let encoded = segment(&format!("{lead}{}", "é".repeat(len)));
            assert!(encoded.len() <= MAX_SEGMENT_BYTES);
            let (head, hash) = encoded.split_once(HASH_MARK).unwrap();
            assert_eq!(hash.len(), HASH_HEX);
            assert!(head.len() > 180);
            decode(head);
        }
    }
    assert_eq!(segment(&"x".repeat(255)), "x".repeat(255));
    let hashed = segment(&"x".repeat(256));
    assert_eq!(hashed.len(), 255);
    // A value that spells a hashed segment out is encoded itself, so it cannot take its place.
    assert_ne!(segment(&hashed), hashed);
}

#[test]
fn the_default_places() {
    assert_eq!(ObjectKey::manifest("gal/lery", JOB).as_str(), format!("manifests/gal%2Flery/{JOB}/manifest.json"));
    assert_eq!(ObjectKey::resource("default", JOB, "../x").as_str(), format!("resources/default/{JOB}/%2E.%2Fx"));
    assert_eq!(KeyTemplate::default().render(&parts("http://h/x")).unwrap().as_str(), format!("resources/default/{JOB}/a%20b"));
    let spelled_out = "resources/{job_type}/{job_id}/{resource_id}";
    assert_eq!(render(spelled_out, "http://h/x"), format!("resources/default/{JOB}/a%20b"));
}

#[test]
fn templates_by_example() {
    assert_eq!(render("{host}/{resource_id}.{ext}", "https://Img.Example:8443/p/A.JPG?x=.png#f"), "img.example/a%20b.jpg");
    assert_eq!(render("{host}/{resource_id}.{ext}", "https://h/p/noext"), "h/a%20b");
    assert_eq!(render("{index}.{ext}", "https://h.tld"), "7");
    assert_eq!(render("{index}.{ext}", "https://h/.jpg"), "7");
    assert_eq!(render("{index}.{ext}", "https://h/a.b%2Fc"), "7");
    assert_eq!(render("{tenant}/{date}/{index}", "https://h/"), "acme/2024-11-04/7");
    assert_eq!(render(".x/{index}", "https://h/"), "%2Ex/7");
    assert_eq!(render("{ext}/{index}", "https://h/"), "%/7");
    assert_eq!(render("[{host}]/{index}", "not a url"), "%5Bunknown%5D/7");
    let shard = render("{shard}/{index}", "https://h/");
    assert_eq!((shard.len(), &shard[2..]), (4, "/7"));
    assert_eq!(render("{url_hash}", "abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

#[test]
fn templates_are_checked() {
    let table = [
        ("", KeyError::EmptySegment),
        ("/{index}", KeyError::EmptySegment),
        ("a//{index}", KeyError::EmptySegment),
        ("{index}/", KeyError::EmptySegment),
        ("../{index}", KeyError::DotSegment),
        ("{job_id}/{host}", KeyError::NotUnique),
        ("{index", KeyError::UnbalancedBrace),
        ("index}", KeyError::UnbalancedBrace),
        ("{index}}", KeyError::UnbalancedBrace),
        ("{{index}}", KeyError::UnknownPlaceholder),
        ("{}{index}", KeyError::UnknownPlaceholder),
        ("{url}", KeyError::UnknownPlaceholder),
    ];
    for (template, expected) in table {
        assert_eq!(KeyTemplate::parse(template), Err(expected), "{template}");
    }
    let long = ["{resource_id}"; 6].join("/");
    let id = "x".repeat(250);
    let parts = KeyParts { resource_id: &id, ..parts("http://h/") };
    assert_eq!(KeyTemplate::parse(&long).unwrap().render(&parts), Err(KeyError::TooLong));
}

#[test]
fn the_date_is_the_jobs_own_day() {
    let day = |millis: u64| {
        let id = uuid::Builder::from_unix_timestamp_millis(millis, &[7; 10]).into_uuid().to_string();
        let parts = KeyParts { job_id: &id, ..parts("http://h/") };
        String::from(KeyTemplate::parse("{date}{index}").unwrap().render(&parts).unwrap())
    };
    assert_eq!(day(0), "1970-01-017");
    assert_eq!(day(951_782_399_000), "2000-02-287");
    assert_eq!(day(951_782_400_000), "2000-02-297");
    assert_eq!(day(951_868_800_000), "2000-03-017");
    assert_eq!(day(1_798_761_599_999), "2026-12-317");
    assert_eq!(day(4_107_542_400_000), "2100-03-017");
}

#[test]
fn chosen_keys_are_encoded_and_kept_out_of_our_places() {
    let other = JOB.replace("ab", "cd");
    let table = [
        ("a/b c.jpg", Ok("a/b%20c.jpg")),
        ("été/x", Ok("%C3%A9t%C3%A9/x")),
        ("resources/mine.jpg", Ok("resources/mine.jpg")),
        ("", Err(KeyError::EmptySegment)),
        ("/a", Err(KeyError::EmptySegment)),
        ("a/", Err(KeyError::EmptySegment)),
        ("a//b", Err(KeyError::EmptySegment)),
        ("a/../b", Err(KeyError::DotSegment)),
        ("./b", Err(KeyError::DotSegment)),
        ("manifests/x", Err(KeyError::Reserved)),
        ("manifests", Err(KeyError::Reserved)),
    ];
    for (path, expected) in table {
        assert_eq!(ObjectKey::chosen(path, JOB).as_ref().map(ObjectKey::as_str), expected.as_ref().copied(), "{path}");
    }
    assert_eq!(ObjectKey::chosen(&format!("resources/default/{other}/x"), JOB), Err(KeyError::Reserved));
    assert!(ObjectKey::chosen(&format!("resources/default/{JOB}/x"), JOB).is_ok());
    assert_eq!(ObjectKey::chosen("a/".repeat(600).trim_end_matches('/'), JOB), Err(KeyError::TooLong));
}

#[test]
fn a_tasks_key_follows_its_hint() {
    let mut task = DownloadTask { job_type: "t".into(), job_id: "j".into(), resource_id: "r".into(), ..Default::default() };
    let key = |task: &DownloadTask| ObjectKey::of_task(task, &KeyTemplate::default()).map(String::from);
    assert_eq!(key(&task).unwrap(), "resources/t/j/r");
    task.storage_hint = Some(StorageHint { key_prefix: "/pre/fix/".into(), ..Default::default() });
    assert_eq!(key(&task).unwrap(), "pre/fix/resources/t/j/r");
    task.storage_hint = Some(StorageHint { key_prefix: "pre".into(), key: "own/key".into(), ..Default::default() });
    assert_eq!(key(&task).unwrap(), "pre/own/key");
    task.storage_hint = Some(StorageHint { key_prefix: "..".into(), ..Default::default() });
    assert_eq!(key(&task), Err(KeyError::DotSegment));
}

#[test]
fn urls_lead_to_the_very_object() {
    let key = ObjectKey::resource("t", "j", "50% é");
    assert_eq!(key.as_str(), "resources/t/j/50%25%20%C3%A9");
    assert_eq!(join_url("s3://bucket/pre%20fix/", &key), "s3://bucket/pre%20fix/resources/t/j/50%2525%2520%25C3%25A9");
    let root = Path::new("/srv/as sets/ü%");
    let url = url::Url::parse(&file_url(root, &key)).unwrap();
    assert_eq!(url.to_file_path().unwrap(), root.join(key.as_str()));
    assert_eq!(file_url(Path::new("/"), &ObjectKey::resource("t", "j", "r")), "file:///resources/t/j/r");
}

proptest! {
    #[test]
    fn a_segment_is_one_safe_name_that_decodes_to_its_value(value in any::<String>()) {
        let encoded = segment(&value);
        prop_assert!(!encoded.is_empty() && encoded.len() <= MAX_SEGMENT_BYTES);
        prop_assert!(!encoded.starts_with('.'));
        prop_assert!(encoded.bytes().all(|b| is_plain(b) || b == b'%'));
        if !value.is_empty() && !encoded.contains(HASH_MARK) {
            prop_assert_eq!(decode(&encoded), value.as_bytes());
        }
    }

    #[test]
    fn different_ids_give_different_segments(ids in prop::collection::vec("[.%~/\\\\\u{0}a%2Eé]{0,4}|[aé.]{120,300}", 2..60)) {
        let mut seen: HashMap<String, String> = HashMap::new();
        for id in ids {
            let encoded = segment(&id);
            if let Some(earlier) = seen.insert(encoded, id.clone()) {
                prop_assert_eq!(earlier, id);
            }
        }
    }

    #[test]
    fn no_id_leaves_its_prefix(job_type in any::<String>(), id in any::<String>()) {
        let key = ObjectKey::resource(&job_type, JOB, &id);
        prop_assert!(key.as_str().len() <= MAX_KEY_BYTES);
        let root = Path::new("/root");
        let path = root.join(key.as_str());
        prop_assert_eq!(path.components().count(), 6);
        prop_assert!(path.components().all(|c| matches!(c, std::path::Component::Normal(_) | std::path::Component::RootDir)));
        let url = url::Url::parse(&file_url(root, &key)).unwrap();
        prop_assert_eq!(url.to_file_path().unwrap(), path);
    }

    #[test]
    fn chosen_keys_never_panic_and_stay_inside(path in any::<String>()) {
        if let Ok(key) = ObjectKey::chosen(&path, JOB) {
            prop_assert!(key.as_str().split('/').all(|s| !s.is_empty() && !s.starts_with('.')));
        }
    }

    #[test]
    fn templates_never_panic(text in "[{}a-z_/.%é]{0,40}", url in any::<String>(), id in any::<String>()) {
        if let Ok(template) = KeyTemplate::parse(&text) {
            let _ = template.render(&KeyParts { url: &url, job_id: &id, ..Default::default() });
        }
    }
}

#[test]
fn urls_lead_back_to_their_keys_and_others_nowhere() {
    let keys = ["plain", "häß/lich", "a b/100%", "..", "%25", "x/%~"].map(|id| ObjectKey::resource("default", "j", id));
    for key in keys.iter().chain(&[ObjectKey::from_path("a/b.c").unwrap()]) {
        for base in ["s3://bucket", "s3://bucket/pre%20fix", "object:///"] {
            assert_eq!(ObjectKey::of_url(base, &join_url(base, key)).as_ref(), Some(key), "{base}");
        }
        let root = Path::new("/a store%");
        assert_eq!(ObjectKey::of_url(&root_url(root), &file_url(root, key)).as_ref(), Some(key));
    }
    for url in [
        "s3://bucket2/x",
        "s3://bucketx",
        "s3://bucket",
        "s3://bucket/",
        "s3://bucket/a//b",
        "s3://bucket/a/../b",
        "s3://bucket/.x",
        "s3://bucket/a%2Fb",
        "s3://bucket/a b",
        "s3://bucket/a%",
        "s3://bucket/a?b",
        "file:///bucket/x",
    ] {
        assert_eq!(ObjectKey::of_url("s3://bucket", url), None, "{url}");
    }
}
