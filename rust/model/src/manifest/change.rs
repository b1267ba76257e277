//! What an operator changes about a task before it is tried again: headers, the proxy pool, the URL.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::{Fault, Limits, check};
use crate::failure::Code;
use crate::message::{DownloadTask, HttpHeader, ProxyHint};

/// Replacements of one order; more are a mistake.
const MAX_RULES: usize = 32;

/// A checked set of changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// Lower-case names; `None` takes the header away.
    headers: Vec<(String, Option<String>)>,
    /// The pool to begin with.
    proxy_pool: Option<String>,
    /// Literal text and what stands in its place, in this order.
    url_replace: Vec<(String, String)>,
    max_headers: usize,
}

impl Change {
    /// Reads `headers`, `proxy_pool` and `url_replace` of an order; null and absent are the same. `headers` is a map of texts, null for a header
    /// that is to go. `url_replace` is `{"from": …, "to": …}`, an object of such pairs, or a list of them, in which `["from", "to"]` does as well.
    ///
    /// Errors: every fault, with pointers into the order.
    pub fn read(order: &Map<String, Value>, limits: &Limits) -> Result<Change, Vec<Fault>> {
        let mut faults = Vec::new();
        let mut change = Change { max_headers: limits.max_headers, ..Change::default() };
        let given = |name: &str| order.get(name).filter(|value| !value.is_null());
        if let Some(headers) = given("headers") {
            change.read_headers(headers, limits, &mut faults);
        }
        match given("proxy_pool") {
            Some(Value::String(pool)) if !pool.is_empty() => change.proxy_pool = Some(pool.clone()),
            Some(_) => faults.push(fault("/proxy_pool", Code::ValidationWrongType, "the name of a configured proxy pool is wanted")),
            None => {}
        }
        if let Some(rules) = given("url_replace") {
            change.read_rules(rules, &mut faults);
        }
        if faults.is_empty() { Ok(change) } else { Err(faults) }
    }

    /// Whether tasks stay as they are.
    pub fn is_none(&self) -> bool {
        self.headers.is_empty() && self.proxy_pool.is_none() && self.url_replace.is_empty()
    }

    /// Changes a task. `schemes` are allowed beside http and https.
    ///
    /// Errors: what is wrong with the changed task; the task is then not to be used.
    pub fn apply(&self, task: &mut DownloadTask, schemes: &[String]) -> Result<(), String> {
        let mut changed = false;
        for (from, to) in &self.url_replace {
            if let Some(at) = task.url.find(from) {
                task.url.replace_range(at..at + from.len(), to);
                changed = true;
            }
        }
        if changed {
            // Also a URL that is too long by now ends here.
            check::url(&task.url, schemes).map_err(|(_, message)| format!("the changed URL is not valid: {message}"))?;
        }
        for (name, value) in &self.headers {
            task.headers.retain(|header| !header.name.eq_ignore_ascii_case(name));
            task.headers.extend(value.iter().map(|value| HttpHeader { name: name.clone(), value: value.clone() }));
        }
        if task.headers.len() > self.max_headers && !self.headers.is_empty() {
            return Err(format!("with the new ones it has {} headers, at most {} are allowed", task.headers.len(), self.max_headers));
        }
        if let Some(pool) = &self.proxy_pool {
            task.proxy_hint = Some(ProxyHint { primary_pool: pool.clone(), fallbacks: Vec::new() });
        }
        Ok(())
    }

    fn read_headers(&mut self, headers: &Value, limits: &Limits, faults: &mut Vec<Fault>) {
        let Value::Object(headers) = headers else {
            faults.push(fault("/headers", Code::ValidationWrongType, "an object of header names and values is wanted"));
            return;
        };
        if headers.len() > limits.max_headers {
            let message = format!("{} headers, at most {} are allowed", headers.len(), limits.max_headers);
            faults.push(fault("/headers", Code::ValidationTooMany, message));
            return;
        }
        for (name, value) in headers {
            let pointer = format!("/headers/{}", escaped(name));
            let text = match value {
                Value::String(text) => text.as_str(),
                Value::Null => "",
                _ => {
                    faults.push(fault(&pointer, Code::ValidationWrongType, "a text is wanted, or null to take the header away"));
                    continue;
                }
            };
            match check::header(Cow::Borrowed(name), text, limits.max_header_bytes) {
                Ok(lower) if self.headers.iter().any(|(earlier, _)| *earlier == lower) => {
                    faults.push(fault(&pointer, Code::ValidationDuplicateKey, "header names are the same in upper and lower case"));
                }
                Ok(lower) => self.headers.push((lower.into_owned(), value.as_str().map(str::to_owned))),
                Err((code, message)) => faults.push(fault(&pointer, code, message)),
            }
        }
    }

    fn read_rules(&mut self, rules: &Value, faults: &mut Vec<Fault>) {
        match rules {
            Value::Array(list) => {
                for (index, rule) in list.iter().enumerate() {
                    let pointer = format!("/url_replace/{index}");
                    match pair(rule) {
                        Some((from, to)) => self.add_rule(&pointer, from, to, faults),
                        None => faults.push(fault(&pointer, Code::ValidationWrongType, "a rule is {\"from\": text, \"to\": text}")),
                    }
                }
            }
            Value::Object(map) => match pair(rules) {
                Some((from, to)) => self.add_rule("/url_replace", from, to, faults),
                None => {
                    for (from, to) in map {
                        let pointer = format!("/url_replace/{}", escaped(from));
                        match to.as_str() {
                            Some(to) => self.add_rule(&pointer, from, to, faults),
                            None => faults.push(fault(&pointer, Code::ValidationWrongType, "a text is wanted")),
                        }
                    }
                }
            },
            _ => faults.push(fault(
                "/url_replace",
                Code::ValidationWrongType,
                "an object {\"from\": text, \"to\": text} or a list of them is wanted",
            )),
        }
        if self.url_replace.len() > MAX_RULES {
            let message = format!("{} rules, at most {MAX_RULES} are allowed", self.url_replace.len());
            faults.push(fault("/url_replace", Code::ValidationTooMany, message));
        }
    }

    fn add_rule(&mut self, pointer: &str, from: &str, to: &str, faults: &mut Vec<Fault>) {
        let longest = check::MAX_URL_BYTES;
        if from.is_empty() {
            faults.push(fault(pointer, Code::ValidationBadValue, "the text to be replaced is not empty"));
        } else if from.len() > longest || to.len() > longest {
            faults.push(fault(pointer, Code::ValidationTooLong, format!("a part of a URL has at most {longest} bytes")));
        } else {
            self.url_replace.push((from.to_owned(), to.to_owned()));
        }
    }
}

/// `{"from": …, "to": …}` or `["from", "to"]`.
fn pair(rule: &Value) -> Option<(&str, &str)> {
    match rule {
        Value::Object(map) if map.len() == 2 => Some((map.get("from")?.as_str()?, map.get("to")?.as_str()?)),
        Value::Array(list) if list.len() == 2 => Some((list[0].as_str()?, list[1].as_str()?)),
        _ => None,
    }
}

fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

fn fault(pointer: &str, code: Code, message: impl Into<String>) -> Fault {
    Fault { pointer: pointer.to_owned(), code, message: message.into() }
}

/// The host of a URL that was accepted once, lower-case ASCII, and its port if it names one; empty for a URL that has none.
pub fn host_port(url: &str) -> (String, Option<u16>) {
    match url::Url::parse(url) {
        Ok(parsed) => (parsed.host_str().unwrap_or_default().to_ascii_lowercase(), parsed.port()),
        Err(_) => Default::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(order: Value) -> Result<Change, Vec<(String, Code)>> {
        let faults = |faults: Vec<Fault>| faults.into_iter().map(|fault| (fault.pointer, fault.code)).collect();
        Change::read(order.as_object().unwrap(), &Limits::default()).map_err(faults)
    }

    fn task() -> DownloadTask {
        let header = |name: &str, value: &str| HttpHeader { name: name.into(), value: value.into() };
        DownloadTask {
            url: "http://old.example/a?u=http://old.example/".into(),
            headers: vec![header("referer", "http://r/"), header("cookie", "c")],
            proxy_hint: Some(ProxyHint { primary_pool: "slow".into(), fallbacks: vec!["slower".into()] }),
            ..Default::default()
        }
    }

    #[test]
    fn a_task_is_changed_as_ordered() {
        let order = json!({"headers": {"Referer": "x", "X-New": "y", "cookie": null}, "proxy_pool": "fast", "url_replace": {"http://old.": "https://new."}});
        let mut changed = task();
        read(order).unwrap().apply(&mut changed, &[]).unwrap();
        assert_eq!(changed.url, "https://new.example/a?u=http://old.example/");
        let mut headers: Vec<_> = changed.headers.iter().map(|h| (h.name.as_str(), h.value.as_str())).collect();
        headers.sort_unstable();
        assert_eq!(headers, [("referer", "x"), ("x-new", "y")]);
        assert_eq!(changed.proxy_hint.unwrap(), ProxyHint { primary_pool: "fast".into(), fallbacks: vec![] });
        let mut same = task();
        let nothing = read(json!({"headers": null, "filter": {}})).unwrap();
        assert!(nothing.is_none() && nothing.apply(&mut same, &[]).is_ok() && same == task());
    }

    #[test]
    fn rules_come_in_three_forms_and_apply_in_their_order() {
        for rules in [
            json!([{"from": "old", "to": "mid"}, ["mid.example/a", "new/b"]]),
            json!([["old.example", "mid"], {"from": "mid/a", "to": "new/b"}]),
        ] {
            let mut changed = task();
            read(json!({"url_replace": rules})).unwrap().apply(&mut changed, &[]).unwrap();
            assert!(changed.url.starts_with("http://new/b?u=http://old"), "{}", changed.url);
        }
        let one = read(json!({"url_replace": {"from": "a", "to": "b"}})).unwrap();
        assert_eq!(one.url_replace, [("a".to_owned(), "b".to_owned())]);
    }

    #[test]
    fn a_changed_url_is_checked_like_any_other() {
        for (to, told) in [
            ("http://user:pw@new", "user name"),
            ("file:///new", "scheme"),
            ("ftp://new", "scheme"),
            ("http://new\r\n", "percent-encode"),
            ("http:\\\\new", "percent-encode"),
            ("nothing", "scheme"),
        ] {
            let change = read(json!({"url_replace": {"http://old": to}})).unwrap();
            let error = change.apply(&mut task(), &[]).unwrap_err();
            assert!(error.contains(told), "{to}: {error}");
        }
        let ftp = read(json!({"url_replace": {"http://old": "ftp://new"}})).unwrap();
        ftp.apply(&mut task(), &["ftp".into()]).unwrap();
        let long = read(json!({"url_replace": {"/a": format!("/{}", "a".repeat(8190))}})).unwrap();
        assert!(long.apply(&mut task(), &[]).unwrap_err().contains("8192"));
    }

    #[test]
    fn every_fault_of_an_order_is_named() {
        let order = json!({
            "headers": {"Host": "x", "a": "b\r\nc", "Z": 1, "sp ace": "x", "b": "1", "B": "2"},
            "proxy_pool": 3,
            "url_replace": [{"from": "", "to": "x"}, ["one"], {"from": "a"}],
        });
        let mut faults = read(order).unwrap_err();
        faults.sort_by(|a, b| a.0.cmp(&b.0));
        let pointers: Vec<&str> = faults.iter().map(|(pointer, _)| pointer.as_str()).collect();
        assert_eq!(
            pointers,
            [
                "/headers/Host",
                "/headers/Z",
                "/headers/a",
                "/headers/b",
                "/headers/sp ace",
                "/proxy_pool",
                "/url_replace/0",
                "/url_replace/1",
                "/url_replace/2"
            ]
        );
        assert_eq!(read(json!({"url_replace": 1})).unwrap_err()[0].0, "/url_replace");
        assert_eq!(read(json!({"headers": []})).unwrap_err()[0].0, "/headers");
    }

    #[test]
    fn too_many_headers_together_are_refused() {
        let many: Map<String, Value> = (0..31).map(|i| (format!("h{i}"), json!("x"))).collect();
        let change = read(json!({"headers": many})).unwrap();
        assert!(change.apply(&mut task(), &[]).unwrap_err().contains("33 headers"));
    }

    #[test]
    fn hosts_are_named_as_the_engine_names_them() {
        for (url, host, port) in [
            ("http://EXAMPLE.org/a", "example.org", None),
            ("https://example.org:444/", "example.org", Some(444)),
            ("http://127.1:8080/", "127.0.0.1", Some(8080)),
            ("nonsense", "", None),
        ] {
            assert_eq!(host_port(url), (host.to_owned(), port), "{url}");
        }
    }
}
