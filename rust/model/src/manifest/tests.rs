use super::*;
use proptest::prelude::*;

mod compiled;

fn limits() -> Limits {
    Limits::default()
}

/// A manifest around the given members of its one resource.
fn with_resource(members: &str) -> String {
    format!(r#"{{"manifest_version":"v1","metadata":{{}},"resources":[{{"url":"http://h/ok"}},{{{members}}}]}}"#)
}

fn with_top(members: &str) -> String {
    format!(r#"{{"manifest_version":"v1","metadata":{{}},"resources":[{{"url":"http://h/ok"}}],{members}}}"#)
}

fn with_metadata(metadata: &str) -> String {
    format!(r#"{{"manifest_version":"v1","metadata":{metadata},"resources":[{{"url":"http://h/ok"}}]}}"#)
}

fn faults(body: impl AsRef<[u8]>) -> Vec<(String, &'static str)> {
    parse(body.as_ref(), &limits()).map(|_| ()).unwrap_err().into_iter().map(|fault| (fault.pointer, fault.code.as_str())).collect()
}

/// One fault each: the body, its pointer, its code.
fn assert_faults(table: &[(String, &str, &str)]) {
    for (body, pointer, code) in table {
        assert_eq!(faults(body), [((*pointer).to_owned(), *code)], "{body:.300}");
    }
}

#[test]
fn faults_of_the_document() {
    let many = vec![r#"{"url":"http://h/"}"#; 1001].join(",");
    assert_faults(&[
        ("".into(), "", "VALIDATION_BAD_JSON"),
        ("[]".into(), "", "VALIDATION_WRONG_TYPE"),
        ("null".into(), "", "VALIDATION_WRONG_TYPE"),
        (format!("{} x", with_resource(r#""url":"http://h/""#)), "", "VALIDATION_BAD_JSON"),
        (
            r#"{"manifest_version":"v2","metadata":{},"resources":[{"url":"http://h/"}]}"#.into(),
            "/manifest_version",
            "VALIDATION_UNSUPPORTED_VERSION",
        ),
        (r#"{"manifest_version":1,"metadata":{},"resources":[{"url":"http://h/"}]}"#.into(), "/manifest_version", "VALIDATION_WRONG_TYPE"),
        (r#"{"metadata":{},"resources":[{"url":"http://h/"}]}"#.into(), "/manifest_version", "VALIDATION_MISSING"),
        (r#"{"manifest_version":"v1","resources":[{"url":"http://h/"}]}"#.into(), "/metadata", "VALIDATION_MISSING"),
        (r#"{"manifest_version":"v1","metadata":{}}"#.into(), "/resources", "VALIDATION_MISSING"),
        (r#"{"manifest_version":"v1","metadata":{},"resources":[]}"#.into(), "/resources", "VALIDATION_TOO_FEW"),
        (r#"{"manifest_version":"v1","metadata":{},"resources":{}}"#.into(), "/resources", "VALIDATION_WRONG_TYPE"),
        (format!(r#"{{"manifest_version":"v1","metadata":{{}},"resources":[{many}]}}"#), "/resources", "VALIDATION_TOO_MANY"),
        (with_top(r#""resources":[]"#), "/resources", "VALIDATION_DUPLICATE_KEY"),
        (with_top(r#""x":1,"\u0078":2"#), "/x", "VALIDATION_DUPLICATE_KEY"),
        (with_top(r#""x":{"a/b~c":[0,{"k":1,"k":2}]}"#), "/x/a~1b~0c/1/k", "VALIDATION_DUPLICATE_KEY"),
        (with_top(r#""x":NaN"#), "/x", "VALIDATION_BAD_JSON"),
        (with_top(r#""x":"\udc00""#), "/x", "VALIDATION_BAD_JSON"),
    ]);
}

#[test]
fn faults_of_metadata() {
    for wrong in ["[]", "null", "\"x\"", "1", "true", "1.5", "-3"] {
        assert_faults(&[(with_metadata(wrong), "/metadata", "VALIDATION_WRONG_TYPE")]);
    }
    assert_faults(&[
        (with_metadata(r#"{"a":{"b":1,"b":1}}"#), "/metadata/a/b", "VALIDATION_DUPLICATE_KEY"),
        (with_metadata(r#"{"a":["\ud800"]}"#), "/metadata/a/0", "VALIDATION_BAD_JSON"),
        (with_metadata(r#"{"a":1e999}"#), "/metadata/a", "VALIDATION_BAD_JSON"),
        (with_metadata(r#"{"a":NaN}"#), "/metadata", "VALIDATION_BAD_JSON"),
        (with_metadata(r#"{"a":-Infinity}"#), "/metadata", "VALIDATION_BAD_JSON"),
    ]);
}

#[test]
fn depth_is_an_error_and_never_a_crash() {
    let bomb = |open: &str, close: &str| format!("{}1{}", open.repeat(10_000), close.repeat(10_000));
    let one = |body: String| {
        let list = parse(body.as_bytes(), &limits()).map(|_| ()).unwrap_err();
        assert_eq!(list.len(), 1);
        assert!(list[0].pointer.len() <= 512);
        (list[0].pointer.split('/').nth(1).unwrap_or("").to_owned(), list[0].code.as_str())
    };
    let deep = "VALIDATION_TOO_DEEP";
    assert_eq!(one(with_metadata(&bomb(r#"{"a":"#, "}"))), ("metadata".into(), deep));
    assert_eq!(one(with_metadata(&format!(r#"{{"a":{}}}"#, bomb("[", "]")))), ("metadata".into(), deep));
    assert_eq!(one(with_top(&format!(r#""x":{}"#, bomb("[", "]")))), ("x".into(), deep));
    assert_eq!(one(with_top(&format!(r#""attributes":{}"#, bomb(r#"{"a":"#, "}")))), ("attributes".into(), deep));
    assert_eq!(one(bomb("[", "]")), (String::new(), "VALIDATION_WRONG_TYPE"));
    assert_eq!(one("[".repeat(1_000_000)), (String::new(), "VALIDATION_BAD_JSON"));
    assert_eq!(one(with_metadata(&"[".repeat(1_000_000))), ("metadata".into(), "VALIDATION_BAD_JSON"));
}

#[test]
fn text_that_is_not_unicode_is_placed() {
    let mut body = with_metadata(r#"{"a":"é"}"#).into_bytes();
    let at = body.iter().position(|byte| *byte == 0xc3).unwrap();
    body[at] = 0xff;
    let list = parse(&body, &limits()).map(|_| ()).unwrap_err();
    assert_eq!(list[0].message, format!("the body is not UTF-8 at byte {at}"));
    let body = with_metadata("{\n\n \"a\": \"\\ud800\"}");
    let message = parse(body.as_bytes(), &limits()).map(|_| ()).unwrap_err()[0].message.clone();
    let place: usize = message.split("at byte ").nth(1).unwrap().split(':').next().unwrap().parse().unwrap();
    assert!(body[..place].ends_with("\\ud800\"") || body[..place].ends_with("\\ud800"), "{message}: {:?}", &body[..place]);
}

#[test]
fn faults_of_urls() {
    let table = [
        ("", "VALIDATION_BAD_URL"),
        ("/relative", "VALIDATION_BAD_URL"),
        ("//h/x", "VALIDATION_BAD_URL"),
        ("http:/h", "VALIDATION_BAD_URL"),
        ("http:h", "VALIDATION_BAD_URL"),
        ("http://", "VALIDATION_BAD_URL"),
        ("http:///x", "VALIDATION_BAD_URL"),
        ("http://?x", "VALIDATION_BAD_URL"),
        ("http://:80/", "VALIDATION_BAD_URL"),
        ("ftp://h/x", "VALIDATION_BAD_SCHEME"),
        ("file:///etc/passwd", "VALIDATION_BAD_SCHEME"),
        ("://h/", "VALIDATION_BAD_SCHEME"),
        ("http://user@h/", "VALIDATION_USERINFO"),
        ("http://user:pw@h/", "VALIDATION_USERINFO"),
        ("http://@h/", "VALIDATION_USERINFO"),
        ("http://h\\x", "VALIDATION_BAD_URL"),
        ("http://h/\\\\x", "VALIDATION_BAD_URL"),
        ("http://h/a b", "VALIDATION_BAD_URL"),
        (" http://h/", "VALIDATION_BAD_URL"),
        ("http://h/\r\nX: y", "VALIDATION_BAD_URL"),
        ("http://h/\n", "VALIDATION_BAD_URL"),
        ("http://h/\0", "VALIDATION_BAD_URL"),
        ("http://h/\t", "VALIDATION_BAD_URL"),
        ("ht\ttp://h/", "VALIDATION_BAD_URL"),
        ("http://h/\u{7f}", "VALIDATION_BAD_URL"),
        ("http://h/\u{85}", "VALIDATION_BAD_URL"),
        ("http://h/\u{3000}", "VALIDATION_BAD_URL"),
        ("http://127\u{ff0e}0\u{ff0e}0\u{ff0e}1/", "VALIDATION_BAD_URL"),
        ("http://a\u{3002}b/", "VALIDATION_BAD_URL"),
        ("http://a\u{ff61}b/", "VALIDATION_BAD_URL"),
        ("http://h:99999/", "VALIDATION_BAD_URL"),
        ("http://h:8a/", "VALIDATION_BAD_URL"),
        ("http://[::1/", "VALIDATION_BAD_URL"),
        ("http://300.1.1.1/", "VALIDATION_BAD_URL"),
        ("http://a%40b/", "VALIDATION_BAD_URL"),
        ("http://a%00b/", "VALIDATION_BAD_URL"),
        ("http://a<b/", "VALIDATION_BAD_URL"),
        ("http://XN--a\u{e9}/", "VALIDATION_BAD_URL"),
        ("http://a..b/", "VALIDATION_BAD_URL"),
        ("http://.a/", "VALIDATION_BAD_URL"),
        ("http://3.0.0.1../", "VALIDATION_BAD_URL"),
        ("http://./", "VALIDATION_BAD_URL"),
    ];
    for (url, code) in table {
        let member = format!(r#""url":{}"#, serde_json::to_string(url).unwrap());
        assert_eq!(faults(with_resource(&member)), [("/resources/1/url".to_owned(), code)], "{url:?}");
        let attribute = format!(r#""attributes":{{"callback_url":{}}}"#, serde_json::to_string(url).unwrap());
        assert_eq!(faults(with_top(&attribute)), [("/attributes/callback_url".to_owned(), code)], "{url:?}");
    }
    let long = format!(r#""url":"http://h/{}""#, "x".repeat(8184));
    assert_faults(&[(with_resource(&long), "/resources/1/url", "VALIDATION_TOO_LONG")]);
}

#[test]
fn good_urls_and_their_hosts() {
    let table = [
        ("http://example.com", "example.com"),
        ("HTTPS://EXAMPLE.com:8443/a?b#c", "example.com"),
        ("http://h:/", "h"),
        ("http://under_score.example./x", "under_score.example."),
        ("http://h?x=@y", "h"),
        ("http://h/@user:pw@x", "h"),
        ("http://XN--BCHER-KVA.example/", "xn--bcher-kva.example"),
        ("http://1.2.3.4./", "1.2.3.4"),
        ("http://h:0080/", "h"),
        ("http://127.0.0.1:80/", "127.0.0.1"),
        ("http://0x7f.1/", "127.0.0.1"),
        ("http://2130706433/", "127.0.0.1"),
        ("http://[::1]:8080/", "[::1]"),
        ("http://bücher.example/ü/日本", "xn--bcher-kva.example"),
        ("http://ex%61mple.com/", "example.com"),
        ("http://h/%00%0d%0a", "h"),
    ];
    for (url, host) in table {
        assert_eq!(check::url(url, &[]).unwrap(), host, "{url}");
    }
    let schemes = ["ftp".to_owned(), "sftp".to_owned()];
    assert_eq!(check::url("ftp://H/x", &schemes).unwrap(), "h");
    assert_eq!(check::url("sftp://h:22/x", &schemes).unwrap(), "h");
    assert_eq!(check::url("gopher://h/", &schemes).unwrap_err().0, Code::ValidationBadScheme);
}

#[test]
fn faults_of_resources() {
    let id = |id: &str| format!(r#""url":"http://h/","id":{}"#, serde_json::to_string(id).unwrap());
    let with = |member: &str| with_resource(&format!(r#""url":"http://h/",{member}"#));
    assert_faults(&[
        (with_resource(""), "/resources/1/url", "VALIDATION_MISSING"),
        (with_resource(r#""url":null"#), "/resources/1/url", "VALIDATION_WRONG_TYPE"),
        (with_resource(r#""url":7"#), "/resources/1/url", "VALIDATION_WRONG_TYPE"),
        (with_resource(r#""url":"http://h/","url":"http://h/""#), "/resources/1/url", "VALIDATION_DUPLICATE_KEY"),
        (with(r#""x":{"y":1,"y":2}"#), "/resources/1/x/y", "VALIDATION_DUPLICATE_KEY"),
        (with_resource(&id("")), "/resources/1/id", "VALIDATION_BAD_ID"),
        (with_resource(&id("a\u{7}")), "/resources/1/id", "VALIDATION_BAD_ID"),
        (with_resource(&id("a\u{202e}b")), "/resources/1/id", "VALIDATION_BAD_ID"),
        (with_resource(&id("\u{ffff}")), "/resources/1/id", "VALIDATION_BAD_ID"),
        (with_resource(&id(&"x".repeat(129))), "/resources/1/id", "VALIDATION_TOO_LONG"),
        (with_resource(&id(&"é".repeat(129))), "/resources/1/id", "VALIDATION_TOO_LONG"),
        (with_resource(&id("0")), "/resources/1/id", "VALIDATION_DUPLICATE_ID"),
        (with(r#""id":5"#), "/resources/1/id", "VALIDATION_WRONG_TYPE"),
        (with(r#""id":null"#), "/resources/1/id", "VALIDATION_WRONG_TYPE"),
        (with(r#""headers":[]"#), "/resources/1/headers", "VALIDATION_WRONG_TYPE"),
        (with(r#""headers":{"a":1}"#), "/resources/1/headers/a", "VALIDATION_WRONG_TYPE"),
        (with(r#""headers":{"a":"1","a":"2"}"#), "/resources/1/headers/a", "VALIDATION_DUPLICATE_KEY"),
        (with(r#""headers":{"a":"1","A":"2"}"#), "/resources/1/headers/A", "VALIDATION_DUPLICATE_KEY"),
        (with(r#""headers":{"a b":"1"}"#), "/resources/1/headers/a b", "VALIDATION_BAD_HEADER"),
        (with(r#""headers":{"":"1"}"#), "/resources/1/headers/", "VALIDATION_BAD_HEADER"),
        (with(r#""headers":{":path":"1"}"#), "/resources/1/headers/:path", "VALIDATION_BAD_HEADER"),
        (with(r#""headers":{"é":"1"}"#), "/resources/1/headers/é", "VALIDATION_BAD_HEADER"),
        (with(r#""headers":{"a/~":"1"}"#), "/resources/1/headers/a~1~0", "VALIDATION_BAD_HEADER"),
        (with(r#""headers":{"a":"x\r\ny: z"}"#), "/resources/1/headers/a", "VALIDATION_BAD_HEADER"),
        (with(r#""headers":{"a":"\u0000"}"#), "/resources/1/headers/a", "VALIDATION_BAD_HEADER"),
        (with(&format!(r#""headers":{{"a":"{}"}}"#, "x".repeat(8001))), "/resources/1/headers/a", "VALIDATION_TOO_LONG"),
        (with(r#""headers":{"Host":"x"}"#), "/resources/1/headers/Host", "VALIDATION_FORBIDDEN_HEADER"),
        (with(r#""headers":{"Content-Length":"1"}"#), "/resources/1/headers/Content-Length", "VALIDATION_FORBIDDEN_HEADER"),
        (with(r#""headers":{"te":"x"}"#), "/resources/1/headers/te", "VALIDATION_FORBIDDEN_HEADER"),
        (with(r#""tags":"x""#), "/resources/1/tags", "VALIDATION_WRONG_TYPE"),
        (with(r#""tags":{"a":{"b":1}}"#), "/resources/1/tags/a", "VALIDATION_WRONG_TYPE"),
        (with(r#""tags":{"checksum_hint":"sha256:12"}"#), "/resources/1/tags/checksum_hint", "VALIDATION_BAD_CHECKSUM"),
        (with(r#""tags":{"checksum_hint":"crc:00000000"}"#), "/resources/1/tags/checksum_hint", "VALIDATION_BAD_CHECKSUM"),
        (with(r#""tags":{"expected_size":"-1"}"#), "/resources/1/tags/expected_size", "VALIDATION_BAD_VALUE"),
        (with(r#""tags":{"content_type":"a\nb"}"#), "/resources/1/tags/content_type", "VALIDATION_BAD_VALUE"),
        (with(r#""key":"""#), "/resources/1/key", "VALIDATION_BAD_KEY"),
        (with(r#""key":"a/../b""#), "/resources/1/key", "VALIDATION_BAD_KEY"),
        (with(r#""key":"/a""#), "/resources/1/key", "VALIDATION_BAD_KEY"),
        (with(r#""key":"manifests/x""#), "/resources/1/key", "VALIDATION_BAD_KEY"),
        (with(&format!(r#""key":"{}""#, "a/".repeat(600) + "b")), "/resources/1/key", "VALIDATION_TOO_LONG"),
        (with(r#""key":{}"#), "/resources/1/key", "VALIDATION_WRONG_TYPE"),
    ]);
    let headers = (0..33).map(|i| format!(r#""h{i}":"""#)).collect::<Vec<_>>().join(",");
    assert_faults(&[(with(&format!(r#""headers":{{{headers}}}"#)), "/resources/1/headers", "VALIDATION_TOO_MANY")]);
    let keys = |first: &str, second: &str| {
        let list = format!(r#"{{"url":"http://h/","key":"{first}"}},{{"url":"http://h/","key":"{second}"}}"#);
        format!(r#"{{"manifest_version":"v1","metadata":{{}},"resources":[{list}]}}"#)
    };
    assert_faults(&[
        (keys("a", "a"), "/resources/1/key", "VALIDATION_BAD_KEY"),
        (keys("a/b", "a/b/c/d"), "/resources/1/key", "VALIDATION_BAD_KEY"),
        (keys("a/b/c/d", "a"), "/resources/0/key", "VALIDATION_BAD_KEY"),
    ]);
    assert!(parse(keys("a/b", "a/bc").as_bytes(), &limits()).is_ok());
}

#[test]
fn faults_of_attributes() {
    let with = |members: &str| with_top(&format!(r#""attributes":{{{members}}}"#));
    assert_faults(&[
        (with_top(r#""attributes":[]"#), "/attributes", "VALIDATION_WRONG_TYPE"),
        (with_top(r#""attributes":null"#), "/attributes", "VALIDATION_WRONG_TYPE"),
        (with(r#""tenant":1"#), "/attributes/tenant", "VALIDATION_WRONG_TYPE"),
        (with(r#""crawl_id":{}"#), "/attributes/crawl_id", "VALIDATION_WRONG_TYPE"),
        (with(r#""crawl_id":"a\nb""#), "/attributes/crawl_id", "VALIDATION_BAD_VALUE"),
        (with(&format!(r#""crawl_id":"{}""#, "x".repeat(257))), "/attributes/crawl_id", "VALIDATION_TOO_LONG"),
        (with(r#""priority":1.5"#), "/attributes/priority", "VALIDATION_WRONG_TYPE"),
        (with(r#""deadline":"tomorrow""#), "/attributes/deadline", "VALIDATION_BAD_VALUE"),
        (with(r#""deadline":"2026-02-30T00:00:00Z""#), "/attributes/deadline", "VALIDATION_BAD_VALUE"),
        (with(r#""deadline":-1"#), "/attributes/deadline", "VALIDATION_BAD_VALUE"),
        (with(r#""deadline":true"#), "/attributes/deadline", "VALIDATION_WRONG_TYPE"),
        (with(r#""x":1,"x":1"#), "/attributes/x", "VALIDATION_DUPLICATE_KEY"),
        (with(r#""x":"\ud800""#), "/attributes/x", "VALIDATION_BAD_JSON"),
    ]);
}

#[test]
fn every_fault_at_once_in_order() {
    let body = r#"{"metadata":[],"manifest_version":"v0","resources":[{"url":"ftp://h/","id":""},7,{"headers":{"Host":"x","b":2}},
        {"url":"http://u@h/","id":"2","key":"../x"}],"attributes":{"deadline":"x","deep":{"k":0,"k":0}},"metadata":{}}"#;
    let expected = [
        ("/metadata", "VALIDATION_WRONG_TYPE"),
        ("/manifest_version", "VALIDATION_UNSUPPORTED_VERSION"),
        ("/resources/0/url", "VALIDATION_BAD_SCHEME"),
        ("/resources/0/id", "VALIDATION_BAD_ID"),
        ("/resources/1", "VALIDATION_WRONG_TYPE"),
        ("/resources/2/headers/b", "VALIDATION_WRONG_TYPE"),
        ("/resources/2/headers/Host", "VALIDATION_FORBIDDEN_HEADER"),
        ("/resources/2/url", "VALIDATION_MISSING"),
        ("/resources/3/url", "VALIDATION_USERINFO"),
        ("/resources/3/key", "VALIDATION_BAD_KEY"),
        ("/resources/3/id", "VALIDATION_DUPLICATE_ID"),
        ("/attributes/deadline", "VALIDATION_BAD_VALUE"),
        ("/attributes/deep/k", "VALIDATION_DUPLICATE_KEY"),
        ("/metadata", "VALIDATION_DUPLICATE_KEY"),
    ];
    assert_eq!(faults(body), expected.map(|(pointer, code)| (pointer.to_owned(), code)));
}

#[test]
fn broken_json_keeps_what_was_found_before_it() {
    let body = r#"{"manifest_version":"v1","metadata":{},"resources":[{"url":"x"},{"url":"http://h/","id":NaN"#;
    let expected = [("/resources/0/url", "VALIDATION_BAD_URL"), ("/resources/1/id", "VALIDATION_BAD_JSON")];
    assert_eq!(faults(body), expected.map(|(pointer, code)| (pointer.to_owned(), code)));
}

#[test]
fn a_hundred_faults_are_enough() {
    let bad = vec![r#"{"url":"x","id":""}"#; 1000].join(",");
    let list = faults(format!(r#"{{"manifest_version":"v1","metadata":{{}},"resources":[{bad}]}}"#));
    assert_eq!(list.len(), MAX_FAULTS);
    assert_eq!(list.last().unwrap(), &("/resources/49/id".to_owned(), "VALIDATION_BAD_ID"));
}

#[test]
fn a_good_manifest_in_its_normal_form() {
    let body = r#" {"metadata": {"b" : 1.50, "a":"\u00e9"}, "manifest_version":"v1", "unknown": [1],
        "resources":[{"url":"HTTP://H/a"}, {"id":"../é","url":"https://h/b","headers":{"X-A":"1"},"tags":{"t":"v"},"key":"k/é","other":null}],
        "attributes":{"tenant":"acme","priority":"high","crawl_id":"c","deadline":"2026-11-23T12:00:00.5+01:00","mine":{}}} "#;
    let manifest = parse(body.as_bytes(), &limits()).unwrap();
    assert_eq!(manifest.metadata.get(), r#"{"b" : 1.50, "a":"\u00e9"}"#);
    assert_eq!(manifest.attributes.deadline_ms, Some(1_795_431_600_500));
    assert_eq!(manifest.attributes.priority, Some(Priority::Name("high".into())));
    let expected = concat!(
        r#"{"manifest_version":"v1","metadata":{"b" : 1.50, "a":"\u00e9"},"resources":["#,
        r#"{"url":"HTTP://H/a","id":"0","headers":{},"tags":{}},"#,
        r#"{"url":"https://h/b","id":"../é","headers":{"x-a":"1"},"tags":{"t":"v"},"key":"k/é"}],"#,
        r#""attributes":{"tenant":"acme","priority":"high","crawl_id":"c","deadline":"2026-11-23T12:00:00.5+01:00","mine":{}}}"#,
    );
    let json = String::from_utf8(manifest.to_json()).unwrap();
    assert_eq!(json, expected);
    assert_eq!(parse(json.as_bytes(), &limits()).unwrap().to_json(), json.as_bytes());
}

#[test]
fn ids_may_be_anything_printable() {
    let ids = [".", "..", "a/b", "\\", " ", "👩‍👩‍👧", &"é".repeat(128), "%2e", "CON", "null"];
    let list: Vec<String> = ids.iter().map(|id| format!(r#"{{"url":"http://h/","id":{}}}"#, serde_json::to_string(id).unwrap())).collect();
    let body = format!(r#"{{"manifest_version":"v1","metadata":{{}},"resources":[{}]}}"#, list.join(","));
    let manifest = parse(body.as_bytes(), &limits()).unwrap();
    assert!(manifest.resources.iter().map(|resource| &*resource.id).eq(ids));
}

/// Bytes that are nearly a manifest: a good one, cut, spliced and overwritten.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let good = with_top(r#""attributes":{"deadline":5,"x":[1,{"y":"\u00e9"}]},"resources":[{"url":"http://h/","headers":{"A":"b"}}]"#);
    let edit = (any::<prop::sample::Index>(), prop_oneof![any::<u8>(), prop::sample::select(b"{}[]\",:\\u0d8-1eN".to_vec())], 0..3u8);
    prop::collection::vec(edit, 0..6).prop_map(move |edits| {
        let mut body = good.clone().into_bytes();
        for (place, byte, kind) in edits {
            let at = place.index(body.len());
            match kind {
                0 => body[at] = byte,
                1 => body.insert(at, byte),
                _ => drop(body.remove(at)),
            }
        }
        body
    })
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(body in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse(&body, &limits());
    }

    #[test]
    fn what_is_nearly_a_manifest_never_panics_and_refusals_say_why(body in nearly()) {
        match parse(&body, &limits()) {
            Ok(manifest) => {
                let json = manifest.to_json();
                prop_assert_eq!(parse(&json, &limits()).unwrap().to_json(), json.clone());
            }
            Err(list) => {
                prop_assert!((1..=MAX_FAULTS).contains(&list.len()));
                prop_assert!(list.iter().all(|f| f.pointer.is_empty() || f.pointer.starts_with('/')));
                prop_assert!(list.iter().all(|f| f.code.family() == crate::failure::Family::Validation));
            }
        }
    }

    #[test]
    fn urls_never_panic_and_the_short_way_agrees_with_the_parser(url in "https?://(xn--|XN--|0x)?[a-zA-Z0-9.:_@\\[\\]%x-]{0,24}(/[ -~]{0,9})?") {
        if let Ok(host) = check::url(&url, &[]) {
            let parsed = url::Url::parse(&url).unwrap();
            prop_assert_eq!(parsed.host_str().unwrap(), &*host);
            prop_assert!(parsed.username().is_empty() && parsed.password().is_none());
        }
    }
}
