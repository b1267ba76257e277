//! Sizes, offsets and lag of the streams, for operators and metrics.

use std::fmt::Write;

use fetchbox_model::stream::Topic;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::Broker;
use crate::core::{Core, WORKERS};
use crate::db::{DbError, Space};
use crate::health::Queue;
use crate::record;
use crate::upkeep::MOVER;

/// Bytes of a partition's records. Reads all of it: not for every second.
pub fn bytes(core: &Core, topic: Topic, partition: u32) -> Result<u64, DbError> {
    let from = record::key(topic as u8, partition, core.start.get(topic, partition));
    let to = record::key(topic as u8, partition, u64::MAX);
    core.db.range(Space::Log, &from, &to).try_fold(0, |sum, item| Ok(sum + item?.1.len() as u64))
}

/// What is asked of the topics.
#[derive(Debug, Default, Deserialize)]
pub struct Topics {
    /// Also their sizes, which takes reading all of them.
    #[serde(default)]
    bytes: bool,
}

/// The answer to `topics`.
pub fn topics(core: &Core, asked: &Topics) -> Result<Value, DbError> {
    let topic = |topic: Topic| {
        let partitions: Vec<Value> = (0..core.partitions(topic))
            .map(|partition| json!({"partition": partition, "start": core.start.get(topic, partition), "next": core.next.get(topic, partition)}))
            .collect();
        let messages: u64 = (0..core.partitions(topic)).map(|p| core.next.get(topic, p) - core.start.get(topic, p)).sum();
        let sizes = asked.bytes.then(|| (0..core.partitions(topic)).map(|p| bytes(core, topic, p)).sum::<Result<u64, DbError>>());
        let bytes = sizes.transpose()?;
        Ok(json!({"topic": topic.name(), "messages": messages, "bytes": bytes, "partitions": partitions, "groups": groups(core, topic)}))
    };
    Ok(json!({"stream": "fetchbox", "topics": Topic::ALL.into_iter().map(topic).collect::<Result<Vec<_>, DbError>>()?}))
}

fn groups(core: &Core, topic: Topic) -> Vec<Value> {
    let mut names: Vec<String> = core.committed.read().keys().filter(|(t, _)| *t == topic as u8).map(|(_, name)| name.clone()).collect();
    let groups = core.groups.lock();
    names.extend(groups.keys().filter(|(t, _)| *t == topic as u8).map(|(_, name)| name.clone()));
    names.sort();
    names.dedup();
    let one = |name: String| {
        let members: Vec<Value> = groups
            .get(&(topic as u8, name.clone()))
            .map(|group| group.members().into_iter().map(|(member, owned)| json!({"member": member, "partitions": owned})).collect())
            .unwrap_or_default();
        let offsets: Vec<u64> = (0..core.partitions(topic)).map(|partition| core.committed(topic, &name, partition)).collect();
        json!({"group": name, "lag": lag(core, topic, &name), "committed": offsets, "members": members})
    };
    names.into_iter().map(one).collect()
}

/// Messages behind a group's committed offsets.
pub fn lag(core: &Core, topic: Topic, group: &str) -> u64 {
    (0..core.partitions(topic)).map(|p| core.next.get(topic, p).saturating_sub(core.committed(topic, group, p))).sum()
}

/// The queues whose lag says something: what waits for workers, and what waits for its time.
const QUEUES: [(Topic, &str); 2] = [(Topic::Tasks, WORKERS), (Topic::Retry, MOVER)];

/// Their lags and ages.
pub fn queues(core: &Core) -> Vec<Queue> {
    QUEUES.into_iter().map(|(topic, group)| Queue::new(topic, group, lag(core, topic, group), oldest_age(core, topic, group))).collect()
}

/// Age of the oldest message that is not done, in seconds; 0 without any.
fn oldest_age(core: &Core, topic: Topic, group: &str) -> f64 {
    let oldest = (0..core.partitions(topic)).filter_map(|partition| {
        let (from, to) = (core.committed(topic, group, partition), core.next.get(topic, partition));
        // The record before `from` may hold it too, and is done when there is nothing behind it.
        let mut records = (from < to).then(|| crate::log::records(core, topic, partition, from, to).ok())??;
        records.next()?.ok().map(|(_, record)| record.time_ms)
    });
    oldest.min().map_or(0.0, |ms| core.clock.now_ms().saturating_sub(ms) as f64 / 1000.0)
}

/// Lag and age as Prometheus text.
pub fn metrics(core: &Core) -> String {
    let mut out = String::from("# TYPE fetchbox_queue_lag gauge\n");
    // Writing into a String cannot fail.
    if core.config.broker == Broker::External {
        // The streams are elsewhere; whoever publishes to them tells of them.
        return String::new();
    }
    for (topic, group) in QUEUES {
        let _ = writeln!(out, "fetchbox_queue_lag{{topic=\"{}\",group=\"{group}\"}} {}", topic.name(), lag(core, topic, group));
    }
    out.push_str("# TYPE fetchbox_queue_oldest_age_seconds gauge\n");
    for (topic, group) in QUEUES {
        let _ = writeln!(out, "fetchbox_queue_oldest_age_seconds{{topic=\"{}\"}} {:.3}", topic.name(), oldest_age(core, topic, group));
    }
    out
}
