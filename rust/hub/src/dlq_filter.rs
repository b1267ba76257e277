//! Which dead letters are meant.

use std::collections::HashMap;

use prost::Message;
use serde::Deserialize;

use crate::core::read_failed;
use crate::db::{Space, View};
use crate::dlq::{Letter, Place, Which};
use crate::error::HubError;
use crate::job::{JobId, JobRecord, id_text, parse_id};
use crate::query::{OneJob, find};

/// Jobs remembered while a shelf is walked.
const REMEMBERED: usize = 10_000;

/// The filters of a question or an order; all of them must hold.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Filter {
    /// One entry, by its id.
    pub id: Option<String>,
    /// Of this job.
    pub job: Option<String>,
    /// Of jobs of this tenant.
    pub tenant: Option<String>,
    pub code: Option<String>,
    /// Of the task's URL: a host, or a host and port.
    pub host: Option<String>,
    /// Failed at or after this time, Unix ms.
    pub since_ms: Option<u64>,
}

/// Filters, looked up.
#[derive(Debug)]
pub struct Selection {
    /// The one job, and its record.
    pub job: Option<(JobId, JobRecord)>,
    which: Option<Which>,
    tenant: Option<String>,
    code: Option<String>,
    host: Option<(String, Option<u32>)>,
    since_ms: u64,
}

impl Selection {
    /// Looks filters up. `NOT_FOUND` for a job or entry that is not there, or is another tenant's.
    pub fn new(view: &View<'_>, filter: &Filter) -> Result<Self, HubError> {
        let mut which = None;
        let mut job_id = filter.job.clone();
        if let Some(id) = &filter.id {
            let (job, entry) = parse_entry_id(id).ok_or_else(|| HubError::not_found("the dead letter"))?;
            if job_id.as_deref().is_some_and(|other| parse_id(other) != Some(job)) {
                return Err(HubError::not_found("the dead letter"));
            }
            (job_id, which) = (Some(id_text(&job)), Some(entry));
        }
        let find_job = |job_id| find(view, &OneJob { job_id, tenant: filter.tenant.clone() });
        let host = filter.host.as_deref().map(|host| {
            let host = host.to_ascii_lowercase();
            // An IPv6 address is full of colons; its port stands behind the bracket.
            match host.rsplit_once(':').filter(|(name, _)| !name.contains(':') || name.ends_with(']')) {
                Some((name, port)) if port.parse::<u16>().is_ok() => (name.to_owned(), port.parse().ok()),
                _ => (host, None),
            }
        });
        Ok(Self {
            job: job_id.map(find_job).transpose()?,
            which,
            tenant: filter.tenant.clone(),
            code: filter.code.clone(),
            host,
            since_ms: filter.since_ms.unwrap_or(0),
        })
    }

    /// Whether an entry that was written at `time_ms` is meant, as far as the entry says.
    pub fn takes(&self, time_ms: u64, letter: &Letter) -> bool {
        time_ms >= self.since_ms
            && self.which.is_none_or(|which| which == letter.which())
            && self.code.as_ref().is_none_or(|code| *code == letter.code)
            && self.host.as_ref().is_none_or(|(host, port)| *host == letter.host && port.is_none_or(|port| port == letter.port))
    }

    /// Whether entries of this job are meant.
    pub fn takes_job(&self, job: &JobRecord) -> bool {
        self.tenant.as_ref().is_none_or(|tenant| *tenant == job.facts.tenant)
    }

    /// The id of the one job.
    pub fn job_id(&self) -> Option<&JobId> {
        self.job.as_ref().map(|(id, _)| id)
    }
}

/// The jobs of the entries that are met, each read once or nearly so.
pub struct Jobs<'v, 'd> {
    view: &'v View<'d>,
    known: HashMap<JobId, Option<JobRecord>>,
}

impl<'v, 'd> Jobs<'v, 'd> {
    /// None known yet.
    pub fn new(view: &'v View<'d>) -> Self {
        Self { view, known: HashMap::new() }
    }

    /// The job of a place; `None` for one that was pruned meanwhile.
    pub fn of(&mut self, place: &Place) -> Result<Option<&JobRecord>, HubError> {
        if self.known.len() >= REMEMBERED {
            self.known.clear();
        }
        if !self.known.contains_key(&place.1) {
            let damaged = |error| HubError::Fatal(format!("the record of job {} is damaged: {error}", id_text(&place.1)));
            let raw = self.view.get(Space::Jobs, &place.1).map_err(read_failed)?;
            self.known.insert(place.1, raw.map(JobRecord::decode).transpose().map_err(damaged)?);
        }
        Ok(self.known.get(&place.1).and_then(Option::as_ref))
    }
}

/// An entry's id: job, index and generation.
pub fn entry_id(job_id: &str, (index, generation): Which) -> String {
    format!("{job_id}.{index}.{generation}")
}

/// Reads [`entry_id`].
pub fn parse_entry_id(id: &str) -> Option<(JobId, Which)> {
    let mut parts = id.split('.');
    let (job, index, generation) = (parts.next()?, parts.next()?, parts.next()?);
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u32>().ok()).flatten();
    parts.next().is_none().then_some((parse_id(job)?, (number(index)?, number(generation)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(host: Option<(&str, Option<u32>)>) -> Selection {
        let host = host.map(|(host, port)| (host.to_owned(), port));
        Selection { job: None, which: None, tenant: None, code: Some("A".into()), host, since_ms: 10 }
    }

    #[test]
    fn all_filters_must_hold() {
        let letter = Letter { code: "A".into(), host: "h".into(), port: 80, ..Default::default() };
        assert!(selection(None).takes(10, &letter) && !selection(None).takes(9, &letter));
        assert!(!selection(None).takes(10, &Letter { code: "B".into(), ..letter.clone() }));
        assert!(selection(Some(("h", None))).takes(10, &letter) && !selection(Some(("i", None))).takes(10, &letter));
        assert!(selection(Some(("h", Some(80)))).takes(10, &letter) && !selection(Some(("h", Some(81)))).takes(10, &letter));
        let one = Selection { which: Some((0, 1)), ..selection(None) };
        assert!(!one.takes(10, &letter) && one.takes(10, &Letter { generation: 1, ..letter }));
    }

    #[test]
    fn ids_of_entries_lead_back_to_them() {
        let job = "0190b6d4-0000-7000-8000-000000000001";
        assert_eq!(parse_entry_id(&entry_id(job, (3, 1))), Some((parse_id(job).unwrap(), (3, 1))));
        for bad in [
            "",
            "x.1.2",
            &format!("{job}.1"),
            &format!("{job}.1.2.3"),
            &format!("{job}.-1.2"),
            &format!("{job}.+1.2"),
            &format!("{job}..2"),
        ] {
            assert_eq!(parse_entry_id(bad), None, "{bad}");
        }
    }
}
