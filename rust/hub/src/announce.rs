//! Failed resources are told of as they fail, where the manifest asks for it: an event in the commit that counts them, long before their job is settled.

use fetchbox_model::message::{ResourceOutcome, ResourceState};
use fetchbox_model::stream::Topic;

use crate::frame::JobFacts;
use crate::job::JobId;
use crate::outcome::OutcomePart;
use crate::tell;
use crate::writer::Writer;

/// The event's name in `callback_events`.
const FAILED: &str = "resource.failed";

/// Whether somebody wants to hear of each resource that fails.
pub fn is_wanted(facts: &JobFacts) -> bool {
    !facts.callback_url.is_empty() && facts.callback_events.iter().any(|event| event == FAILED)
}

/// As much of an outcome as names it: the rest is in the ledger.
pub fn named(part: &OutcomePart) -> ResourceOutcome {
    ResourceOutcome {
        resource_id: part.resource_id.clone(),
        resource_index: part.index,
        generation: part.generation,
        state: ResourceState::Failed as i32,
        code: part.code.clone(),
        ..Default::default()
    }
}

impl Writer {
    /// Publishes one event for all that failed of a job in one report.
    pub(crate) fn announce(&mut self, id: &JobId, failed: &[ResourceOutcome]) {
        // Taken out for the time being: the streams and the job are both the group's.
        let Some(mut job) = (if failed.is_empty() { None } else { self.stage.jobs.remove(id) }) else { return };
        let now_ms = self.stage.now_ms;
        self.publish_one(Topic::Events, &job.record.facts.job_id, |out| tell::failures(out, &job.record, failed, now_ms));
        job.record.announced += failed.len() as u64;
        job.changed = true;
        self.stage.jobs.insert(*id, job);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_a_receiver_and_a_wish() {
        let facts = |url: &str, events: &[&str]| JobFacts {
            callback_url: url.into(),
            callback_events: events.iter().map(|&event| event.into()).collect(),
            ..Default::default()
        };
        assert!(is_wanted(&facts("http://r/", &["job.settled", FAILED])));
        assert!(!is_wanted(&facts("", &[FAILED])));
        assert!(!is_wanted(&facts("http://r/", &[])) && !is_wanted(&facts("http://r/", &["job.settled"])));
    }
}
