//! Whatever happens to jobs, the ledger equals a naive model of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::*;
use fetchbox_hub::*;
use fetchbox_model::message::ResourceState;
use proptest::prelude::*;
use serde_json::{Value, json};

#[derive(Debug, Clone)]
enum Step {
    Accept { resources: u32, key: Option<u8> },
    Report { job: usize, outcomes: Vec<(u32, i32, u32, u8)> },
    Cancel { job: usize },
    Replay { job: usize },
    Purge { job: usize },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let outcome = (0u32..7, 1i32..=5, prop::sample::select(vec![0u32, 0, 0, 1, 1, 2]), 0u8..3);
    prop_oneof![
        3 => (0u32..6, prop::option::of(0u8..3)).prop_map(|(resources, key)| Step::Accept { resources, key }),
        6 => (0usize..8, prop::collection::vec(outcome, 1..6)).prop_map(|(job, outcomes)| Step::Report { job, outcomes }),
        1 => (0usize..8).prop_map(|job| Step::Cancel { job }),
        2 => (0usize..8).prop_map(|job| Step::Replay { job }),
        1 => (0usize..8).prop_map(|job| Step::Purge { job }),
        1 => Just(Step::Reopen),
    ]
}

/// A job as one would keep it on paper.
#[derive(Debug)]
struct Paper {
    id: String,
    resources: Vec<Option<(i32, u8)>>,
    generations: Vec<u32>,
    letters: BTreeSet<u32>,
}

impl Paper {
    fn is_cancelled(&self) -> bool {
        self.resources.iter().all(Option::is_some) && self.resources.iter().flatten().any(|(state, _)| *state == 5)
    }
}

async fn play(steps: Vec<Step>) {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = config(dir.path());
    settings.durability = Durability::Buffer;
    let mut running = Running::start(settings.clone());
    let mut all = running.client("all", Role::Operator).await;
    let (mut jobs, mut keys): (Vec<Paper>, BTreeMap<(u8, u32), String>) = Default::default();
    for step in steps {
        match step {
            Step::Accept { resources, key } => {
                let name = key.map(|key| format!("{key}-{resources}"));
                let reply = all.accept(accept_request(&new_id(), resources, name.as_deref())).await.unwrap();
                let known = key.and_then(|key| keys.get(&(key, resources)));
                assert_eq!(reply.created, known.is_none());
                match known {
                    Some(id) => assert_eq!(&reply.job_id, id),
                    None => jobs.push(Paper {
                        id: reply.job_id.clone(),
                        resources: vec![None; resources as usize],
                        generations: vec![0; resources as usize],
                        letters: BTreeSet::new(),
                    }),
                }
                key.map(|key| keys.insert((key, resources), reply.job_id));
            }
            Step::Report { job, outcomes } => {
                let Some(paper) = jobs.get_mut(job) else { continue };
                let mut messages = Vec::new();
                for (index, state, generation, sha) in outcomes {
                    let mut message = outcome(index, ResourceState::try_from(state).unwrap(), &sha.to_string());
                    if state == 4 {
                        message = failed(&paper.id, index, generation, "DOWNLOAD_TIMEOUT");
                    }
                    message.generation = generation;
                    messages.push(message);
                    let Some(slot) = paper.resources.get_mut(index as usize) else { continue };
                    match slot {
                        // Late, but of the object that the current generation stored: the newer description wins.
                        Some((1 | 2, description)) if matches!(state, 1 | 2) && generation < paper.generations[index as usize] => {
                            *description = sha
                        }
                        _ if generation != paper.generations[index as usize] => {}
                        None => {
                            *slot = Some((state, sha));
                            if state == 4 {
                                paper.letters.insert(index);
                            }
                        }
                        // A second object: what it was counted as stays, its content is another.
                        Some((1 | 2, description)) if matches!(state, 1 | 2) => *description = sha,
                        Some(_) => {}
                    }
                }
                report(&all, vec![status(&paper.id, messages)]).await;
            }
            Step::Cancel { job } => {
                let Some(paper) = jobs.get_mut(job) else { continue };
                all.cancel(CancelRequest { job_id: paper.id.clone(), tenant: None }).await.unwrap();
                for slot in &mut paper.resources {
                    slot.get_or_insert((5, 0));
                }
            }
            Step::Replay { job } => {
                let Some(paper) = jobs.get_mut(job) else { continue };
                let order = json!({"filter": {"job": paper.id}});
                if paper.is_cancelled() {
                    assert_eq!(code(try_ask(&all, "dlq_replay", order).await.unwrap_err()), "JOB_CANCELLED");
                    continue;
                }
                assert_eq!(ask(&all, "dlq_replay", order).await["count"], paper.letters.len());
                for index in std::mem::take(&mut paper.letters) {
                    paper.resources[index as usize] = None;
                    paper.generations[index as usize] += 1;
                }
            }
            Step::Purge { job } => {
                let Some(paper) = jobs.get_mut(job) else { continue };
                let purged = ask(&all, "dlq_purge", json!({"filter": {"job": paper.id}})).await;
                assert_eq!(purged["count"], std::mem::take(&mut paper.letters).len());
            }
            Step::Reopen => {
                running.stop().await;
                running = Running::start(settings.clone());
                all = running.client("all", Role::Operator).await;
            }
        }
    }
    let mut sums = [0u64; 6];
    for paper in &jobs {
        let now = job(&all, &paper.id).await;
        compare(paper, &now, &ask(&all, "receipt", json!({"job_id": paper.id})).await, &mut sums);
        let page = ask(&all, "dlq", json!({"filter": {"job": paper.id}, "limit": 1000})).await;
        let letters = |entry: &Value| (entry["index"].as_u64().unwrap() as u32, entry["generation"].as_u64().unwrap() as u32);
        let letters: BTreeSet<(u32, u32)> = page["entries"].as_array().unwrap().iter().map(letters).collect();
        assert_eq!(letters, paper.letters.iter().map(|&index| (index, paper.generations[index as usize])).collect());
    }
    let listed = ask(&all, "jobs", json!({"limit": 1000})).await;
    assert_eq!(listed["jobs"].as_array().unwrap().len(), jobs.len());
    let text = running.hub().metrics_text();
    assert!(text.contains(&format!("\nfetchbox_resources_accepted_total {}\n", sums.iter().sum::<u64>())), "{text}");
    assert!(text.contains(&format!("\nfetchbox_resources_pending {}\n", sums[0])), "{text}");
    running.stop().await;
}

fn compare(paper: &Paper, now: &Value, receipt: &Value, sums: &mut [u64; 6]) {
    let names = ["pending", "completed", "reused", "filtered", "failed", "cancelled"];
    let mut sum = 0;
    for (state, name) in (0..).zip(names) {
        let expected = paper.resources.iter().filter(|slot| slot.map_or(0, |(s, _)| s) == state).count() as u64;
        assert_eq!(now[format!("resource_{name}")], expected, "{name} of {paper:?}");
        sum += expected;
        sums[state as usize] += expected;
    }
    assert_eq!(now["resource_total"], sum);
    let states = ["pending", "stored", "reused", "filtered", "failed", "cancelled"];
    for (slot, resource) in paper.resources.iter().zip(receipt["resources"].as_array().unwrap()) {
        let (state, sha) = slot.unwrap_or((0, 0));
        assert_eq!(resource["state"], states[state as usize]);
        if matches!(state, 1 | 2) {
            assert_eq!(resource["sha256"], format!("{:02x}", sha.to_string().as_bytes()[0]));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..Default::default() })]
    #[test]
    fn the_ledger_equals_the_model(steps in prop::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(play(steps));
    }
}
