//! `Delivery` and `Settled`: a poll's batches on their way into the engine.

use std::collections::HashMap;
use std::sync::Mutex;

use fetchbox_engine::window::{Delivered, Intake, Window};
use fetchbox_hub::{Assignment, JobSettled, PolledBatch};
use fetchbox_model::message::DownloadTask;
use pyo3::prelude::*;

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
}

#[pymethods]
impl Delivery {
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
        Self { state: Mutex::new(State { batches, intake: Intake::default() }) }
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

    /// The tasks, once.
    pub fn take(&self) -> Intake {
        std::mem::take(&mut lock(&self.state).intake)
    }
}

/// Lays an assignment over the window.
pub fn assign(window: &mut Window, assignment: &Assignment) {
    let owned: Vec<(u32, u64)> = assignment.partitions.iter().map(|p| (p.partition, p.committed)).collect();
    let revoking: Vec<u32> = assignment.partitions.iter().filter(|p| p.revoking).map(|p| p.partition).collect();
    window.assign(&owned, &revoking);
}

/// What is settled already of the jobs of a delivery.
#[pyclass(frozen, module = "fetchbox._core")]
pub struct Settled(HashMap<String, JobSettled>);

impl Settled {
    pub fn new(jobs: Vec<JobSettled>) -> Self {
        Self(jobs.into_iter().map(|job| (job.job_id.clone(), job)).collect())
    }

    /// Whether this task needs no more work.
    pub fn covers(&self, task: &DownloadTask) -> bool {
        self.0.get(&task.job_id).is_some_and(|job| job.covers(task.resource_index, task.generation))
    }
}
