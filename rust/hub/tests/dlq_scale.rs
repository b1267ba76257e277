//! Many dead letters: nobody else waits long while they are looked at and replayed. `FETCHBOX_DLQ_ENTRIES=100000` makes it a measurement.

// The size comes from the environment.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::*;
use fetchbox_hub::*;
use serde_json::{Value, json};

const EACH: u32 = 1000;
/// Far above what it takes, for busy machines; a replay in one commit would exceed it.
const LONGEST_ACCEPT: Duration = Duration::from_millis(1500);

#[tokio::test(flavor = "multi_thread")]
async fn a_large_replay_lets_others_through_and_counts_all() {
    let wanted: u32 = std::env::var("FETCHBOX_DLQ_ENTRIES").map_or(20_000, |text| text.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(config(dir.path()));
    let all = running.client("all", Role::Operator).await;
    let begun = Instant::now();
    let mut jobs = Vec::new();
    for _ in 0..wanted.div_ceil(EACH) {
        let id = new_id();
        all.accept(accept_request(&id, EACH, None)).await.unwrap();
        let outcomes = (0..EACH).map(|index| failed(&id, index, 0, ["DOWNLOAD_TLS", "DOWNLOAD_TIMEOUT"][index as usize % 2])).collect();
        report(&all, vec![status(&id, outcomes)]).await;
        jobs.push(id);
    }
    let entries = jobs.len() as u64 * u64::from(EACH);
    println!("{entries} failed in {:?}", begun.elapsed());
    let timed = async |name: &str, params: Value| {
        let begun = Instant::now();
        let answer = ask(&all, name, params).await;
        println!("{name}: {:?}", begun.elapsed());
        answer
    };
    assert_eq!(timed("dlq", json!({})).await["entries"].as_array().unwrap().len(), 100);
    let rare = timed("dlq", json!({"filter": {"code": "NONE", "host": "nowhere"}})).await;
    assert_eq!(rare["entries"], json!([]));
    assert_eq!(timed("dlq_groups", json!({"by": "code"})).await["total"], entries);

    let over = Arc::new(AtomicBool::new(false));
    let others = tokio::spawn({
        let (all, over) = (all.clone(), Arc::clone(&over));
        async move {
            let mut took = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let begun = Instant::now();
                all.accept(accept_request(&new_id(), 1, None)).await.unwrap();
                took.push(begun.elapsed());
            }
            took.sort_unstable();
            took
        }
    });
    let begun = Instant::now();
    let (mut count, mut more) = (0, json!({}));
    loop {
        let mut order = json!({"filter": {}, "headers": {"x-new": "1"}});
        order.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let done = ask(&all, "dlq_replay", order).await;
        count += done["count"].as_u64().unwrap();
        if done["next_cursor"].is_null() {
            break;
        }
        more = json!({"until": done["until"], "cursor": done["next_cursor"]});
    }
    over.store(true, Ordering::Relaxed);
    let took = others.await.unwrap();
    let longest = *took.last().unwrap();
    println!(
        "{count} replayed in {:?}; {} accepts meanwhile, median {:?}, longest {longest:?}",
        begun.elapsed(),
        took.len(),
        took[took.len() / 2]
    );
    assert_eq!(count, entries);
    assert!(longest < LONGEST_ACCEPT, "{longest:?}");
    for id in &jobs {
        assert_eq!(job(&all, id).await["resource_pending"], EACH);
    }
    running.stop().await;
}
