//! Listing jobs, newest first.

use std::cmp::Reverse;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fetchbox_model::message::JobState;
use prost::Message;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::core::{Core, read_failed};
use crate::db::{Space, View};
use crate::error::HubError;
use crate::job::JobRecord;
use crate::keys::{self, Listing};
use crate::listing::{self, Place};
use crate::query::{job_json, parse_state};

const DEFAULT_LIMIT: usize = 50;
const MOST: usize = 1000;
/// Jobs looked at for one page: a rare match may need another page to be found, but no page takes seconds.
const SCAN: usize = 20_000;
const FINAL: [JobState; 4] = [JobState::Completed, JobState::Partial, JobState::Failed, JobState::Cancelled];

/// The filters of a listing.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Filter {
    pub status: Option<String>,
    pub tenant: Option<String>,
    pub job_type: Option<String>,
    pub crawl_id: Option<String>,
    pub limit: Option<usize>,
    pub cursor: Option<String>,
}

/// One page.
pub fn list(core: &Core, filter: Filter) -> Result<Value, HubError> {
    let invalid = |what: &str| HubError::refused("INVALID_PAYLOAD", what);
    let state = match filter.status.as_deref() {
        None | Some("") => None,
        Some(name) => Some(parse_state(name).ok_or_else(|| invalid("there is no such status"))?),
    };
    let limit = filter.limit.unwrap_or(DEFAULT_LIMIT).clamp(1, MOST);
    let before = match filter.cursor.as_deref() {
        None | Some("") => None,
        Some(cursor) => Some(parse_cursor(cursor).ok_or_else(|| invalid("the cursor is not one of ours"))?),
    };
    let filtered = state.is_some() || filter.tenant.is_some() || filter.job_type.is_some() || filter.crawl_id.is_some();
    let listings = listings(&filter, state);
    // Active ones first: a job that settles meanwhile is then seen twice, never not at all.
    let active =
        if listings.contains(&Listing::Active) { active(core, before, if filtered { SCAN } else { limit + 1 }) } else { Vec::new() };
    let view = core.db.view();
    let mut places = Merge::new(&view, active, &listings, before);
    let (mut jobs, mut last, mut looked, mut more) = (Vec::new(), None, 0, false);
    while let Some(place) = places.next()? {
        if jobs.len() == limit || looked == SCAN {
            more = true;
            break;
        }
        looked += 1;
        last = Some(place);
        let Some(raw) = view.get(Space::Jobs, &place.1).map_err(read_failed)? else { continue };
        let job = JobRecord::decode(raw).map_err(|error| HubError::Fatal(format!("a job's record is damaged: {error}")))?;
        if matches(&job, &filter, state) {
            jobs.push(job_json(&job));
        }
    }
    let next_cursor = last.filter(|_| more).map(cursor);
    Ok(json!({"jobs": jobs, "next_cursor": next_cursor}))
}

fn matches(job: &JobRecord, filter: &Filter, state: Option<JobState>) -> bool {
    let same = |wanted: &Option<String>, is: &str| wanted.as_ref().is_none_or(|wanted| wanted == is);
    state.is_none_or(|state| state == job.state())
        && same(&filter.tenant, &job.facts.tenant)
        && same(&filter.job_type, &job.facts.job_type)
        && same(&filter.crawl_id, &job.facts.crawl_id)
}

/// The listings to walk: the most selective one that holds every match.
fn listings(filter: &Filter, state: Option<JobState>) -> Vec<Listing> {
    if let Some(crawl) = &filter.crawl_id {
        return vec![Listing::Crawl(crawl.clone())];
    }
    match state {
        Some(JobState::Queued | JobState::InProgress) => return vec![Listing::Active],
        Some(state) => return vec![Listing::Settled(state)],
        None => {}
    }
    if let Some(job_type) = &filter.job_type {
        return vec![Listing::JobType(job_type.clone())];
    }
    if let Some(tenant) = &filter.tenant {
        return vec![Listing::Tenant(tenant.clone())];
    }
    std::iter::once(Listing::Active).chain(FINAL.map(Listing::Settled)).collect()
}

fn active(core: &Core, before: Option<Place>, most: usize) -> Vec<Place> {
    let active = core.active.read();
    match before {
        Some(before) => active.range(..before).rev().take(most).copied().collect(),
        None => active.iter().rev().take(most).copied().collect(),
    }
}

type Places = std::iter::Peekable<Box<dyn Iterator<Item = Result<Place, HubError>>>>;

/// Several listings as one, newest first, nothing twice.
struct Merge {
    sources: Vec<Places>,
    last: Option<Place>,
}

impl Merge {
    fn new(view: &View<'_>, active: Vec<Place>, listings: &[Listing], before: Option<Place>) -> Self {
        let source = |listing: &Listing| -> Places {
            if *listing == Listing::Active {
                let places: Box<dyn Iterator<Item = _>> = Box::new(active.clone().into_iter().map(Ok));
                return places.peekable();
            }
            let places: Box<dyn Iterator<Item = _>> =
                Box::new(listing::newest(view, listing, before).map(|place| place.map_err(read_failed)));
            places.peekable()
        };
        Self { sources: listings.iter().map(source).collect(), last: None }
    }

    fn next(&mut self) -> Result<Option<Place>, HubError> {
        loop {
            let heads = self.sources.iter_mut().enumerate().filter_map(|(i, source)| {
                // An error counts as the newest, so that it is met at once.
                source.peek().map(|head| (Reverse(head.as_ref().copied().unwrap_or((u64::MAX, [0xff; 16]))), i))
            });
            let Some((_, newest)) = heads.min() else { return Ok(None) };
            match self.sources[newest].next().transpose()? {
                Some(place) if self.last == Some(place) => {}
                place => {
                    self.last = place;
                    return Ok(place);
                }
            }
        }
    }
}

fn cursor((created, id): Place) -> String {
    URL_SAFE_NO_PAD.encode([&created.to_be_bytes()[..], &id].concat())
}

fn parse_cursor(text: &str) -> Option<Place> {
    let raw = URL_SAFE_NO_PAD.decode(text).ok()?;
    if raw.len() != 24 {
        return None;
    }
    keys::parse_listed(&raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_come_back_and_others_are_refused() {
        assert_eq!(parse_cursor(&cursor((7, [3; 16]))), Some((7, [3; 16])));
        for bad in ["", "!!", "AAAA", &cursor((1, [0; 16]))[1..]] {
            assert_eq!(parse_cursor(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_most_selective_listing_is_walked() {
        let filter = Filter { tenant: Some("t".into()), crawl_id: Some("c".into()), ..Default::default() };
        assert_eq!(listings(&filter, Some(JobState::Failed)), [Listing::Crawl("c".into())]);
        let filter = Filter { tenant: Some("t".into()), ..Default::default() };
        assert_eq!(listings(&filter, Some(JobState::Queued)), [Listing::Active]);
        assert_eq!(listings(&filter, None), [Listing::Tenant("t".into())]);
        assert_eq!(listings(&Filter::default(), None).len(), 5);
    }
}
