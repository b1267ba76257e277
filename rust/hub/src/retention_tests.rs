//! What is forgotten, how fast, and what never.

use fetchbox_model::message::{JobStatus, ResourceOutcome, ResourceState};
use fetchbox_model::stream::Topic;
use serde_json::json;

use crate::error::HubError;
use crate::frame::Entry;
use crate::retention::Retainer;
use crate::upkeep_tests::{Bed, batch};

const DAY_MS: u64 = 86_400_000;

fn name(number: usize) -> String {
    format!("0190b6d4-0000-7000-8000-{number:012}")
}

/// The only resources of these jobs end like that.
fn end(bed: &Bed, jobs: impl IntoIterator<Item = usize>, state: ResourceState) {
    let status = |number| {
        let outcome = ResourceOutcome { state: state.into(), code: "DOWNLOAD_HTTP_4XX".into(), ..Default::default() };
        JobStatus { job_id: name(number), outcomes: vec![outcome], ..Default::default() }
    };
    let statuses: Vec<JobStatus> = jobs.into_iter().map(status).collect();
    bed.append("", vec![Entry::new(Topic::Status, 0, batch(statuses))], vec![]).unwrap();
}

/// Which of these jobs are known.
fn known(bed: &Bed, jobs: std::ops::Range<usize>) -> Vec<usize> {
    let is_known = |number: &usize| {
        let params = json!({"job_id": name(*number)}).to_string();
        crate::query::answer(bed.core(), "job", params.as_bytes()).is_ok()
    };
    jobs.filter(is_known).collect()
}

fn accept(bed: &Bed, jobs: std::ops::Range<usize>) {
    for number in jobs {
        bed.accept(&name(number), 1, |request| request.facts.created_ms = 0).unwrap();
    }
}

#[test]
fn thousands_of_old_jobs_go_in_one_step() {
    let bed = Bed::new(|_| {});
    accept(&bed, 0..1300);
    end(&bed, 0..1200, ResourceState::Stored);
    let mut retainer = Retainer::default();
    retainer.step(bed.core()).unwrap();
    assert_eq!(known(&bed, 0..1300).len(), 1300);
    bed.clock.advance(31 * DAY_MS);
    // On a slow machine a step ends before everything is done, and the next one goes on.
    for _ in 0..20 {
        retainer.step(bed.core()).unwrap();
    }
    assert_eq!(known(&bed, 0..1300), (1200..1300).collect::<Vec<_>>());
}

#[test]
fn a_job_that_is_settled_late_goes_late_and_holds_nobody_up() {
    let bed = Bed::new(|_| {});
    let mut retainer = Retainer::default();
    accept(&bed, 0..1);
    bed.clock.advance(DAY_MS);
    accept(&bed, 1..3);
    end(&bed, [1], ResourceState::Stored);
    bed.clock.advance(20 * DAY_MS);
    end(&bed, [2], ResourceState::Stored);
    bed.clock.advance(11 * DAY_MS);
    retainer.step(bed.core()).unwrap();
    assert_eq!(known(&bed, 0..3), [0, 2], "the third is not old enough, the first not settled");
    end(&bed, [0], ResourceState::Stored);
    bed.clock.advance(20 * DAY_MS);
    retainer.step(bed.core()).unwrap();
    assert_eq!(known(&bed, 0..3), [0]);
    bed.clock.advance(11 * DAY_MS);
    retainer.step(bed.core()).unwrap();
    assert_eq!(known(&bed, 0..3), Vec::<usize>::new());
}

#[test]
fn a_ledger_that_is_too_large_forgets_what_is_settled_and_then_takes_no_more() {
    let bed = Bed::new(|_| {});
    accept(&bed, 0..6);
    end(&bed, 0..3, ResourceState::Stored);
    end(&bed, 3..5, ResourceState::Failed);
    let mut retainer = Retainer::limited(1);
    retainer.step(bed.core()).unwrap();
    assert_eq!(known(&bed, 0..6), [3, 4, 5], "dead letters may still be replayed, and what is pending is nobody's to forget");
    let refused = bed.accept(&name(6), 1, |_| {}).unwrap_err();
    assert!(matches!(refused, HubError::Refused { code, retry_after_ms: Some(_), .. } if code == "LEDGER_FULL"));
    // It goes when it is settled, and nothing is left that fills the ledger for good.
    end(&bed, [5], ResourceState::Stored);
    bed.clock.advance(DAY_MS);
    retainer.step(bed.core()).unwrap();
    assert_eq!(known(&bed, 0..6), [3, 4]);
    bed.accept(&name(6), 1, |_| {}).unwrap();
}
