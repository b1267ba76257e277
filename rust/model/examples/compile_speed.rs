//! How long a manifest of 1,000 resources takes from bytes to task batches: `cargo run --release -p fetchbox-model --example compile_speed`.

use fetchbox_model::manifest::{CompileContext, Limits, compile, parse};
use std::time::Instant;

const ROUNDS: u32 = 500;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for (name, rich) in [("urls only", false), ("ids, headers, tags", true)] {
        let list: Vec<String> = (0..1000).map(|i| resource(i, rich)).collect();
        let body = format!(r#"{{"manifest_version":"v1","metadata":{{"crawl":"speed"}},"resources":[{}]}}"#, list.join(","));
        for by in ["job", "host"] {
            let context = format!(
                r#"{{"job_id":"0192f5c2-7d3a-7b1e-8c4d-1234567890ab","job_type":"default","tenant":"acme","trace_id":"4bf92f3577b34da6a3ce929d0e0e4736",
                    "manifest_key":"file:///data/manifests/default/0192f5c2/manifest.json","partition_by":"{by}"}}"#
            );
            let context: CompileContext = serde_json::from_str(&context)?;
            // The best round, since other work on the machine only ever adds.
            let (mut parsing, mut compiling, mut packed) = (f64::MAX, f64::MAX, 0);
            for _ in 0..ROUNDS {
                let start = Instant::now();
                let manifest = parse(body.as_bytes(), &Limits::default()).map_err(|faults| format!("{faults:?}"))?;
                let middle = Instant::now();
                let compiled = compile(&manifest, &context);
                compiling = compiling.min(middle.elapsed().as_secs_f64());
                parsing = parsing.min((middle - start).as_secs_f64());
                packed = compiled.batches.iter().map(|batch| batch.bytes.len()).sum();
            }
            let (parse, compile) = (parsing * 1e6, compiling * 1e6);
            println!("{name}, by {by}: body {} B, parse {parse:.0} us, compile {compile:.0} us, batches {packed} B", body.len());
        }
    }
    Ok(())
}

fn resource(i: usize, rich: bool) -> String {
    let url = format!("https://img{}.example.com/gallery/2026/11/{i:06}.jpg?w=1600&sig={:016x}", i % 40, i * 0x9e37_79b9);
    if rich {
        let tags = format!(r#"{{"checksum_hint":"sha256:{:064x}","content_type":"image/jpeg"}}"#, i * 77);
        format!(
            r#"{{"url":"{url}","id":"photo-{i}","headers":{{"Referer":"https://example.com/p/{i}","Accept":"image/*"}},"tags":{tags}}}"#
        )
    } else {
        format!(r#"{{"url":"{url}"}}"#)
    }
}
