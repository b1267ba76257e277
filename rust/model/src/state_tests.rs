use super::*;
use std::collections::BTreeSet;

const RESOURCES: [ResourceState; 6] = [
    ResourceState::Unknown,
    ResourceState::Stored,
    ResourceState::Reused,
    ResourceState::Filtered,
    ResourceState::Failed,
    ResourceState::Cancelled,
];

fn every_small_count() -> impl Iterator<Item = Counts> {
    (0..4u32.pow(6)).map(|n| {
        let digit = |place: u32| n / 4u32.pow(place) % 4;
        let [pending, stored, reused, filtered, failed, cancelled] = [0, 1, 2, 3, 4, 5].map(digit);
        Counts { total: pending + stored + reused + filtered + failed + cancelled, stored, reused, filtered, failed, cancelled }
    })
}

fn events() -> impl Iterator<Item = ResourceEvent> {
    RESOURCES.into_iter().map(ResourceEvent::Outcome).chain([ResourceEvent::Cancel, ResourceEvent::Replay])
}

fn document() -> &'static str {
    include_str!("../../../docs/states.md")
}

/// The rows of docs/states.md whose first cell is a letter in backticks: (letter, from, to).
fn documented() -> BTreeSet<(char, String, String)> {
    let rows = document().lines().filter(|line| line.starts_with("| `"));
    rows.map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        (cells[0].chars().next().unwrap(), cells[1].to_owned(), cells[2].to_owned())
    })
    .collect()
}

#[test]
fn job_state_is_the_designs_sentence() {
    for counts in every_small_count() {
        assert_eq!(counts.total, counts.pending() + counts.settled());
        for started in [false, true] {
            let expected = match counts {
                c if c.pending() > 0 && !started && c.settled() == 0 => JobState::Queued,
                c if c.pending() > 0 => JobState::InProgress,
                c if c.cancelled > 0 => JobState::Cancelled,
                c if c.failed == 0 => JobState::Completed,
                c if c.stored + c.reused > 0 => JobState::Partial,
                _ => JobState::Failed,
            };
            assert_eq!(job_state(&counts, started), expected, "{counts:?} {started}");
        }
    }
}

/// What one commit may do to a job: some outcomes, a cancellation of all that is pending, or some replays.
fn commits(pending: u32) -> Vec<Vec<Transition>> {
    let outcomes = [Transition::Store, Transition::Reuse, Transition::Filter, Transition::Fail];
    let pairs = outcomes.into_iter().flat_map(|first| outcomes.map(|second| vec![first, second]));
    let singles = outcomes.into_iter().map(|outcome| vec![outcome]);
    let others = [vec![Transition::Cancel; pending as usize], vec![Transition::Replay], vec![Transition::Replay; 2]];
    pairs.chain(singles).chain(others).collect()
}

#[test]
fn every_step_of_a_job_has_its_letter() {
    let mut seen = BTreeSet::new();
    for before in every_small_count() {
        for started in [false, true] {
            let old = job_state(&before, started);
            // A cancelled job refuses replay.
            if old == JobState::Cancelled || before.cancelled > 0 {
                continue;
            }
            for commit in commits(before.pending()) {
                let mut after = before;
                if commit.iter().any(|transition| after.apply(*transition).is_none()) {
                    continue;
                }
                let new = job_state(&after, true);
                if old != new {
                    let letter = job_transition(old, new).unwrap_or_else(|| panic!("{old:?} -> {new:?} by {commit:?}"));
                    seen.insert((letter, job_state_name(old).to_owned(), job_state_name(new).to_owned()));
                }
            }
        }
    }
    let drawn: BTreeSet<_> = documented().into_iter().filter(|row| row.0.is_ascii_uppercase()).collect();
    assert_eq!(seen, drawn);
}

#[test]
fn resources_move_only_as_drawn() {
    let mut seen = BTreeSet::new();
    for from in RESOURCES {
        for event in events() {
            if let Some(transition) = resource_transition(from, event) {
                let to = resource_state_name(transition.target());
                seen.insert((transition.letter(), resource_state_name(from).to_owned(), to.to_owned()));
            }
        }
    }
    let drawn: BTreeSet<_> = documented().into_iter().filter(|row| row.0.is_ascii_lowercase()).collect();
    assert_eq!(seen, drawn);
}

#[test]
fn the_drawing_has_an_arrow_for_each_row() {
    let arrows: BTreeSet<(char, String, String)> = document()
        .lines()
        .filter_map(|line| {
            let (from, rest) = line.trim().split_once(" --> ")?;
            let (to, label) = rest.split_once(": ")?;
            Some((label.chars().next()?, from.to_owned(), to.to_owned()))
        })
        .collect();
    assert_eq!(arrows, documented());
}

#[test]
fn apply_never_breaks_the_sum() {
    let all = [Transition::Store, Transition::Reuse, Transition::Filter, Transition::Fail, Transition::Cancel, Transition::Replay];
    for before in every_small_count() {
        for transition in all {
            let mut after = before;
            match after.apply(transition) {
                Some(()) => {
                    let delta = if transition == Transition::Replay { 1 } else { -1 };
                    assert_eq!(i64::from(after.pending()), i64::from(before.pending()) + delta);
                }
                None => assert_eq!(after, before),
            }
            assert!(after.is_exact());
            assert_eq!(after.total, before.total);
        }
    }
}

#[test]
fn a_damaged_row_is_seen_and_cannot_overflow() {
    let counts = Counts { total: 3, stored: u32::MAX, failed: u32::MAX, ..Counts::default() };
    assert!(!counts.is_exact());
    assert_eq!(counts.pending(), 0);
    assert_eq!(job_state(&counts, true), JobState::Partial);
}

#[test]
fn a_job_of_nothing_is_complete() {
    assert_eq!(job_state(&Counts::new(0), false), JobState::Completed);
    assert_eq!(job_state(&Counts::new(1), false), JobState::Queued);
    assert_eq!(job_state(&Counts::new(1), true), JobState::InProgress);
}
