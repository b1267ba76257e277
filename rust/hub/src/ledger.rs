//! What operators may have done to ledger and store, beside asking: check, mend, sweep, collect, export, prune, back up, rebuild. JSON in, JSON out.

use prost::Message;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::core::{Core, read_failed};
use crate::db::Space;
use crate::desk;
use crate::error::HubError;
use crate::job::{JobRecord, id_text, parse_id};
use crate::query::OneJob;
use crate::retention::Retainer;
use crate::writer::Command;
use crate::{audit, backup, keep, query_resources, rebuild};

/// Jobs of one piece of an export; it also ends after so many resources.
const EXPORTED: usize = 50;
const EXPORTED_RESOURCES: u64 = 20_000;
/// Most steps of one prune.
const STEPS: usize = 1_000;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Nothing {}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Sweep {
    /// Only jobs that nothing has changed for so long, s; by default as configured.
    quiet: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Export {
    /// Jobs behind this one, by id.
    after: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Backup {
    path: std::path::PathBuf,
}

/// Does what an operator asks for by name.
pub fn answer(core: &Core, name: &str, params: &[u8]) -> Result<Vec<u8>, HubError> {
    match name {
        "check" => json(&audit::check(core, &parse(params)?)?),
        "recount" => {
            let one: OneJob = parse(params)?;
            let id = parse_id(&one.job_id).ok_or_else(|| HubError::not_found("the job").about(&one.job_id))?;
            json(&json!({"changed": core.ask(|reply| Command::Recount { id, reply })?}))
        }
        "sweep" => {
            let Sweep { quiet } = parse(params)?;
            let quiet = quiet.unwrap_or(core.config.keeping.sweep_after).max(0.0);
            json(&keep::sweep(core, (quiet * 1000.0) as u64)?)
        }
        "collect" => {
            let Nothing {} = parse(params)?;
            json(&keep::collect(core, true)?)
        }
        "export" => json(&export(core, &parse(params)?)?),
        "restate" => {
            let Nothing {} = parse(params)?;
            json(&rebuild::statuses(core)?)
        }
        "prune" => {
            let Nothing {} = parse(params)?;
            json(&json!({"pruned": prune(core)?}))
        }
        "backup" => {
            let Backup { path } = parse(params)?;
            json(&backup::write(core, &path)?)
        }
        "messages" => json(&desk::look(core, &parse(params)?)?),
        "publish" => json(&desk::publish(core, &parse(params)?)?),
        other => Err(HubError::Invalid(format!("there is no task {other}"))),
    }
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, HubError> {
    serde_json::to_vec(value).map_err(|error| HubError::Invalid(format!("the answer cannot be written: {error}")))
}

fn parse<T: DeserializeOwned>(params: &[u8]) -> Result<T, HubError> {
    let params = if params.is_empty() { b"{}" } else { params };
    serde_json::from_slice(params).map_err(|error| HubError::refused("INVALID_PAYLOAD", format!("the parameters are not valid: {error}")))
}

/// Forgets what is old enough, now; how many jobs.
fn prune(core: &Core) -> Result<u64, HubError> {
    let begun = core.metrics.pruned.get();
    let mut retainer = Retainer::default();
    for _ in 0..STEPS {
        if !retainer.step(core)? {
            break;
        }
    }
    Ok(core.metrics.pruned.get() - begun)
}

/// Jobs with all their resources, by id; `after` for the next piece, nothing at the end.
fn export(core: &Core, order: &Export) -> Result<Value, HubError> {
    let from = match &order.after {
        None => Vec::new(),
        Some(after) => {
            let id = parse_id(after).ok_or_else(|| HubError::refused("INVALID_PAYLOAD", "after is not the id of a job"))?;
            [&id[..], &[0]].concat()
        }
    };
    let (mut jobs, mut resources, mut last) = (Vec::new(), 0, None);
    for item in core.db.range(Space::Jobs, &from, &[0xff; 17]) {
        if jobs.len() >= EXPORTED || resources >= EXPORTED_RESOURCES {
            return Ok(json!({"jobs": jobs, "after": last}));
        }
        let (key, raw) = item.map_err(read_failed)?;
        let Ok(id) = key[..].try_into() else { continue };
        last = Some(id_text(&id));
        // A damaged record is a finding of `ledger check`.
        let Ok(record) = JobRecord::decode(raw) else { continue };
        resources += record.counts.total;
        match query_resources::receipt(core, &OneJob { job_id: id_text(&id), tenant: None }) {
            Ok(receipt) => jobs.push(receipt),
            // Pruned meanwhile.
            Err(HubError::Refused { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(json!({"jobs": jobs, "after": null}))
}
