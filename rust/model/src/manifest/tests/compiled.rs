//! From manifests to tasks.

use super::*;
use crate::batch;
use crate::message::DownloadTask;
use std::collections::BTreeSet;

fn context(extra: &str) -> CompileContext {
    let json = format!(
        r#"{{"job_id":"0192f5c2-7d3a-7b1e-8c4d-1234567890ab","job_type":"default","tenant":"acme","manifest_key":"file:///m.json",
            "trace_id":"t1","traceparent":null,"partitions":64,"partition_by":"job","max_resources":1000,"max_header_bytes":8000,"max_headers":32,
            "now_ms":5{extra}}}"#
    );
    serde_json::from_str(&json).unwrap()
}

fn tasks(compiled: &Compiled) -> Vec<DownloadTask> {
    let all = compiled.batches.iter().flat_map(|packed| {
        let list = batch::decode::<DownloadTask>(&packed.bytes).unwrap();
        assert_eq!(list.len(), packed.count as usize);
        list.into_iter().map(Result::unwrap)
    });
    let mut all: Vec<DownloadTask> = all.collect();
    all.sort_by_key(|task| task.resource_index);
    assert_eq!(all.len(), compiled.resource_count as usize);
    all
}

#[test]
fn a_task_carries_all_it_needs() {
    let body = r#"{"manifest_version":"v1","metadata":{},"resources":[
        {"url":"http://h/a","headers":{"Referer":"r","X-Own":"1"},"tags":{"checksum_hint":"MD5:00112233445566778899AABBCCDDEEFF","content_type":"image/png"},"key":"k/1"},
        {"url":"http://i/b","id":"x"}],"attributes":{"deadline":1700000000000,"callback_url":"https://c/","callback_events":["resource.failed"],"priority":3,"crawl_id":"cr","tenant":"acme"}}"#;
    let extra = r#","proxy":{"primary":"p","fallbacks":["q"]},"storage":{"bucket":"b","key_prefix":"pre","key":null,"metadata":{"m":"1"}},
        "default_headers":{"X-Own":"default","User-Agent":"ua"}"#;
    let manifest = parse(body.as_bytes(), &limits()).unwrap();
    let compiled = compile(&manifest, &context(extra));
    let list = tasks(&compiled);
    let first = &list[0];
    let headers: Vec<(&str, &str)> = first.headers.iter().map(|header| (&*header.name, &*header.value)).collect();
    assert_eq!(headers, [("referer", "r"), ("x-own", "1"), ("user-agent", "ua")]);
    let attributes = first.attributes.as_ref().unwrap();
    assert_eq!((&*attributes.checksum_hint, &*attributes.mime_hint), ("md5:00112233445566778899aabbccddeeff", "image/png"));
    assert_eq!(attributes.tags.len(), 2);
    let storage = first.storage_hint.as_ref().unwrap();
    assert_eq!((&*storage.bucket, &*storage.key_prefix, &*storage.key, &*storage.metadata["m"]), ("b", "pre", "k/1", "1"));
    let proxy = first.proxy_hint.as_ref().unwrap();
    assert_eq!((&*proxy.primary_pool, &*proxy.fallbacks[0]), ("p", "q"));
    assert_eq!((first.resource_index, first.resources_total, first.generation, first.attempt), (0, 2, 0, 0));
    assert_eq!((&*first.tenant, &*first.trace_id, &*first.traceparent, &*first.manifest_key), ("acme", "t1", "", "file:///m.json"));
    assert_eq!((first.deadline_ms, first.not_before_ms), (1_700_000_000_000, 0));
    let second = &list[1];
    assert_eq!((&*second.resource_id, &*second.url, second.resource_index), ("x", "http://i/b", 1));
    assert_eq!((second.headers.len(), &second.attributes), (2, &None));
    assert_eq!(second.storage_hint.as_ref().unwrap().key, "");
    let facts = serde_json::to_string(&compiled.facts).unwrap();
    let expected = concat!(
        r#"{"resource_count":2,"hosts":2,"tenant":"acme","crawl_id":"cr","priority":3,"#,
        r#""callback_url":"https://c/","callback_events":["resource.failed"],"deadline_ms":1700000000000}"#
    );
    assert_eq!(facts, expected);
}

#[test]
fn a_key_of_the_context_is_for_one_resource() {
    let key = |list: &[u8]| {
        let compiled = compile_tasks(list, &context(r#","storage":{"key":"only/one"}"#)).unwrap();
        tasks(&compiled)[0].storage_hint.as_ref().map(|hint| hint.key.clone())
    };
    assert_eq!(key(br#"[{"url":"http://h/"}]"#).as_deref(), Some("only/one"));
    assert_eq!(key(br#"[{"url":"http://h/"},{"url":"http://h/"}]"#), None);
}

#[test]
fn partitions_are_stable() {
    // SHA-256 of "abc" begins ba7816bf8f01cfea, of "" e3b0c44298fc1c14.
    assert_eq!(partition_of("abc", 64), 0xba78_16bf_8f01_cfea_u64 as u32 % 64);
    assert_eq!(u64::from(partition_of("", 1000)), 0xe3b0_c442_98fc_1c14_u64 % 1000);
    assert_eq!(partition_of("abc", 1), 0);
    assert_eq!(partition_of("abc", 0), 0);
    let used: BTreeSet<u32> = (0..2000).map(|i| partition_of(&format!("job-{i}"), 64)).collect();
    assert_eq!(used.len(), 64);
}

#[test]
fn by_job_there_is_one_partition_and_by_host_one_a_host() {
    let list: Vec<String> = (0..300).map(|i| format!(r#"{{"url":"http://Host{}.example:80{}/x"}}"#, i % 20, i % 3)).collect();
    let body = format!(r#"{{"manifest_version":"v1","metadata":{{}},"resources":[{}]}}"#, list.join(","));
    let manifest = parse(body.as_bytes(), &limits()).unwrap();
    let by_job = compile(&manifest, &context(""));
    assert_eq!(by_job.batches.len(), 1);
    assert_eq!(by_job.batches[0].partition, partition_of("0192f5c2-7d3a-7b1e-8c4d-1234567890ab", 64));
    let mut by_host = context("");
    by_host.partition_by = PartitionBy::Host;
    let by_host = compile(&manifest, &by_host);
    assert_eq!((by_host.facts.hosts, by_host.resource_count), (20, 300));
    assert!(by_host.batches.is_sorted_by_key(|packed| packed.partition));
    for packed in &by_host.batches {
        for task in batch::decode::<DownloadTask>(&packed.bytes).unwrap() {
            let host = url::Url::parse(&task.unwrap().url).unwrap().host_str().unwrap().to_owned();
            assert_eq!(partition_of(&host, 64), packed.partition);
        }
    }
    assert_eq!(tasks(&by_host), tasks(&by_job));
}

#[test]
fn large_tasks_come_in_several_batches() {
    let list: Vec<String> = (0..1000).map(|i| format!(r#"{{"url":"http://h/{i}/{}"}}"#, "x".repeat(8000))).collect();
    let body = format!(r#"{{"manifest_version":"v1","metadata":{{}},"resources":[{}]}}"#, list.join(","));
    let compiled = compile(&parse(body.as_bytes(), &limits()).unwrap(), &context(""));
    assert_eq!(compiled.batches.len(), 2);
    assert_eq!(tasks(&compiled).len(), 1000);
}

#[test]
fn what_handlers_build() {
    let built = br#"[{"url":"http://h/1","id":null,"headers":{"A":"b"},"tags":null,"key":null,"bucket":"b2","key_prefix":"/p/","metadata":{"m":"2"},"proxy":"fast"},
        {"url":"http://h/2","proxy":{"primary":"a","fallbacks":["b","c"]}},{"url":"http://h/3"}]"#;
    let extra = r#","proxy":{"primary":"default","fallbacks":[]},"storage":{"bucket":"b1","metadata":{"m":"1","n":"1"}},
        "attributes":{"crawl_id":"cr","deadline":9,"callback_url":null}"#;
    let compiled = compile_tasks(built, &context(extra)).unwrap();
    let list = tasks(&compiled);
    let storage = |i: usize| list[i].storage_hint.clone().unwrap();
    assert_eq!((storage(0).bucket, storage(0).key_prefix), ("b2".into(), "/p/".into()));
    assert_eq!((&*storage(0).metadata["m"], &*storage(0).metadata["n"], &*storage(1).metadata["m"]), ("2", "1", "1"));
    assert_eq!(storage(1).bucket, "b1");
    let proxy = |i: usize| list[i].proxy_hint.clone().unwrap();
    assert_eq!((proxy(0).primary_pool, proxy(1).primary_pool, proxy(2).primary_pool), ("fast".into(), "a".into(), "default".into()));
    assert_eq!(proxy(1).fallbacks, ["b", "c"]);
    assert_eq!((&*list[0].resource_id, list[0].deadline_ms), ("0", 9));
    assert_eq!((compiled.facts.crawl_id.as_deref(), compiled.facts.deadline_ms), (Some("cr"), Some(9)));
    let none = compile_tasks(b"[]", &context("")).unwrap();
    assert_eq!((none.resource_count, none.batches.len()), (0, 0));
}

#[test]
fn faults_of_what_handlers_build() {
    let table = [
        (r#"{"url":"http://h/"}"#, "", "VALIDATION_WRONG_TYPE"),
        (r#"[{"url":"http://h/"},{"url":null}]"#, "/1/url", "VALIDATION_MISSING"),
        (r#"[{"url":"ftp://h/"}]"#, "/0/url", "VALIDATION_BAD_SCHEME"),
        (r#"[{"url":"http://h/","id":"1"},{"url":"http://h/"}]"#, "/1/id", "VALIDATION_DUPLICATE_ID"),
        (r#"[{"url":"http://h/","key_prefix":"../x"}]"#, "/0/key_prefix", "VALIDATION_BAD_KEY"),
        (r#"[{"url":"http://h/","proxy":7}]"#, "/0/proxy", "VALIDATION_WRONG_TYPE"),
        (r#"[{"url":"http://h/","proxy":{"fallbacks":[1]}}]"#, "/0/proxy/fallbacks/0", "VALIDATION_WRONG_TYPE"),
        (r#"[{"url":"http://h/","metadata":{"a":1}}]"#, "/0/metadata/a", "VALIDATION_WRONG_TYPE"),
        ("nonsense", "", "VALIDATION_BAD_JSON"),
    ];
    for (built, pointer, code) in table {
        let list = compile_tasks(built.as_bytes(), &context("")).unwrap_err();
        let list: Vec<(&str, &str)> = list.iter().map(|fault| (&*fault.pointer, fault.code.as_str())).collect();
        assert_eq!(list, [(pointer, code)], "{built}");
    }
}

/// A resource as JSON, and its url and id.
fn resources() -> impl Strategy<Value = Vec<(String, String, bool)>> {
    let one = ("[a-z]{1,8}(\\.[a-z]{2,4})?", "[!-~&&[^\\\\]]{0,20}", "[ -~éü日]{1,20}", any::<bool>())
        .prop_map(|(host, path, id, tagged)| (format!("https://{host}/{path}"), id, tagged));
    prop::collection::vec(one, 1..30)
}

proptest! {
    #[test]
    fn valid_manifests_become_their_tasks(list in resources(), by_host in any::<bool>()) {
        // Ids made unique by their place.
        let wanted: Vec<(String, String, bool)> = list.into_iter().enumerate().map(|(i, (url, id, tagged))| (url, format!("{i}{id}"), tagged)).collect();
        let json: Vec<serde_json::Value> = wanted.iter().map(|(url, id, tagged)| {
            let mut value = serde_json::json!({"url": url, "id": id});
            if *tagged {
                value["tags"] = serde_json::json!({"k": id});
            }
            value
        }).collect();
        let body = serde_json::json!({"manifest_version": "v1", "metadata": {"n": wanted.len()}, "resources": json}).to_string();
        // "1" + "2x" and "12" + "x" meet; such manifests are refused, and rightly.
        let unique: BTreeSet<&String> = wanted.iter().map(|(_, id, _)| id).collect();
        prop_assume!(unique.len() == wanted.len());
        let manifest = parse(body.as_bytes(), &limits()).unwrap();
        let mut context = context("");
        context.partition_by = if by_host { PartitionBy::Host } else { PartitionBy::Job };
        let tasks = tasks(&compile(&manifest, &context));
        prop_assert_eq!(tasks.len(), wanted.len());
        for (i, (task, (url, id, tagged))) in tasks.iter().zip(&wanted).enumerate() {
            prop_assert_eq!((&task.url, &task.resource_id, task.resource_index as usize), (url, id, i));
            prop_assert_eq!(task.attributes.is_some(), *tagged);
            prop_assert_eq!(task.resources_total as usize, wanted.len());
        }
        let again = compile_tasks(&serde_json::to_vec(&manifest.resources).unwrap(), &context).unwrap();
        prop_assert_eq!(super::compiled::tasks(&again), tasks);
    }
}
