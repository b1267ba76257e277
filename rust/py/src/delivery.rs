//! `Delivery` and `Settled`: a poll's batches on their way into the engine.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use fetchbox_engine::window::{Delivered, Intake, Leaving, Window};
use fetchbox_hub::{Assignment, JobSettled, KnownUrl, PolledBatch};
use fetchbox_model::message::DownloadTask;
use fetchbox_model::reuse::{KEY_BYTES, Remembered};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::broker::pack;
use crate::completion::lock;

/// What one poll brought.
#[pyclass(frozen, module = "fetchbox._core")]
pub struct Delivery {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    batches: Vec<Delivered>,
    intake: Intake,
    /// Of each task the name under which its URL may be remembered; empty where nothing is reused.
    names: Vec<Option<Name>>,
}

type Name = [u8; KEY_BYTES];

#[pymethods]
impl Delivery {
    /// Messages of partitions, each list with the offset of its first.
    #[staticmethod]
    fn of(polled: Vec<(u32, u64, Vec<Bound<'_, PyBytes>>)>) -> Self {
        let batch = |(partition, base_offset, messages): (u32, u64, Vec<Bound<'_, PyBytes>>)| Delivered {
            partition,
            base_offset,
            count: messages.len() as u32,
            bytes: pack(&messages),
        };
        Self { state: Mutex::new(State { batches: polled.into_iter().map(batch).collect(), ..State::default() }) }
    }

    /// Messages that were polled, or that were admitted and not submitted yet.
    fn __len__(&self) -> usize {
        let state = lock(&self.state);
        state.batches.iter().map(|batch| batch.count as usize).sum::<usize>() + state.intake.tasks.len() + state.intake.malformed.len()
    }
}

impl From<Vec<PolledBatch>> for Delivery {
    fn from(batches: Vec<PolledBatch>) -> Self {
        let batches = batches
            .into_iter()
            .map(|batch| Delivered { partition: batch.partition, base_offset: batch.base_offset, count: batch.count, bytes: batch.bytes })
            .collect();
        Self { state: Mutex::new(State { batches, ..State::default() }) }
    }
}

impl Delivery {
    /// Takes the batches into the window; how many messages are new.
    pub fn admit(&self, window: &mut Window) -> usize {
        let mut state = lock(&self.state);
        let batches = std::mem::take(&mut state.batches);
        state.intake = window.admit(batches);
        state.intake.tasks.len() + state.intake.malformed.len()
    }

    /// The jobs of its tasks, each once.
    pub fn job_ids(&self) -> Vec<String> {
        let state = lock(&self.state);
        let mut ids: Vec<String> = Vec::new();
        for placed in &state.intake.tasks {
            // Tasks of a job stand together: comparing with the last one removes nearly all repeats.
            if ids.last() != Some(&placed.task.job_id) {
                ids.push(placed.task.job_id.clone());
            }
        }
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Notes the name of each task, as `name` gives it.
    pub fn name(&self, name: impl Fn(&DownloadTask) -> Option<Name>) {
        let mut state = lock(&self.state);
        state.names = state.intake.tasks.iter().map(|placed| name(&placed.task)).collect();
    }

    /// The names of its tasks, each once.
    pub fn names(&self) -> Vec<Bytes> {
        let names: HashSet<Name> = lock(&self.state).names.iter().flatten().copied().collect();
        names.iter().map(|name| Bytes::copy_from_slice(name)).collect()
    }

    /// The tasks and their names, once.
    pub fn take(&self) -> (Intake, Vec<Option<Name>>) {
        let mut state = lock(&self.state);
        (std::mem::take(&mut state.intake), std::mem::take(&mut state.names))
    }
}

/// Lays an assignment over the window; what goes from now on.
pub fn assign(window: &mut Window, assignment: &Assignment) -> Leaving {
    let owned: Vec<(u32, u64)> = assignment.partitions.iter().map(|p| (p.partition, p.committed)).collect();
    let revoking: Vec<u32> = assignment.partitions.iter().filter(|p| p.revoking).map(|p| p.partition).collect();
    window.assign(&owned, &revoking)
}

/// What is settled already of the jobs of a delivery, and what is remembered of its URLs.
#[derive(Default)]
#[pyclass(frozen, module = "fetchbox._core")]
pub struct Settled {
    jobs: HashMap<String, JobSettled>,
    known: HashMap<Bytes, Arc<Remembered>>,
}

#[pymethods]
impl Settled {
    /// Of nothing anything is known: everything is worked on.
    #[staticmethod]
    fn unknown() -> Self {
        Self::default()
    }
}

impl Settled {
    pub fn new((jobs, known): (Vec<JobSettled>, Vec<KnownUrl>)) -> Self {
        Self {
            jobs: jobs.into_iter().map(|job| (job.job_id.clone(), job)).collect(),
            known: known.into_iter().map(|known| (known.key, Arc::new(known.remembered))).collect(),
        }
    }

    /// What is remembered under a name.
    pub fn known(&self, name: &Name) -> Option<Arc<Remembered>> {
        self.known.get(&name[..]).cloned()
    }

    /// Why this task is none that a worker may work on: its producer published it itself, and not as one may.
    pub fn objection(&self, task: &DownloadTask) -> Option<&'static str> {
        if !task.manifest_key.is_empty() {
            return None;
        }
        if fetchbox_hub::parse_job_id(&task.job_id).is_none() {
            return Some("its job_id is not a UUID");
        }
        self.jobs.get(&task.job_id).is_some_and(|job| job.posted).then_some("its job was posted with a manifest that it is not part of")
    }

    /// Whether this task needs no more work.
    pub fn covers(&self, task: &DownloadTask) -> bool {
        self.jobs.get(&task.job_id).is_some_and(|job| job.covers(task.resource_index, task.generation))
    }
}
