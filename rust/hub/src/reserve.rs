//! Idempotency keys: who posted what under which key, and who is at it right now.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use fetchbox_failpoint::fail_point;
use prost::Message;

use crate::collect::Intent;
use crate::db::Space;
use crate::error::HubError;
use crate::frame::{ReleaseRequest, ReserveReply, ReserveRequest};
use crate::job::{JobId, id_text, parse_id};
use crate::keys;
use crate::reply::Reply;
use crate::writer::Writer;

/// A post that holds its key longer than this is taken for dead.
const LEASE: Duration = Duration::from_secs(120);

/// A reservation in the database.
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs)]
pub struct Reserved {
    #[prost(bytes = "vec", tag = "1")]
    pub job: Vec<u8>,
    #[prost(string, tag = "2")]
    pub body_sha256: String,
    #[prost(bool, tag = "3")]
    pub accepted: bool,
    #[prost(uint64, tag = "4")]
    pub created_ms: u64,
}

impl Reserved {
    /// The job's id.
    pub fn id(&self) -> JobId {
        self.job.as_slice().try_into().unwrap_or_default()
    }
}

struct Waiter {
    request: ReserveRequest,
    connection: u64,
    reply: Reply<ReserveReply>,
}

struct Owner {
    connection: u64,
    since: Duration,
    waiters: Vec<Waiter>,
}

/// What keys of posts without one of their own begin with: no caller's key holds a control character.
pub const OWN_KEY: char = '\0';

/// Posts under way, by reservation. Only in memory: when the hub or the poster dies, nobody is at it any more.
#[derive(Default)]
pub struct Owners(HashMap<Bytes, Owner>);

impl Writer {
    /// The reservation under a key, as the group sees it.
    pub(crate) fn reserved(&self, key: &Bytes) -> Result<Option<Reserved>, HubError> {
        let Some(raw) = self.get(Space::Index, key)? else { return Ok(None) };
        Reserved::decode(raw).map(Some).map_err(|error| HubError::Fatal(format!("a reservation is damaged: {error}")))
    }

    /// Answers a reserve, or lets it wait for the live owner of its key.
    pub(crate) fn reserve(&mut self, request: ReserveRequest, connection: u64, reply: Reply<ReserveReply>) {
        if reply.is_closed() || !self.core.connections.lock().contains_key(&connection) {
            // Whoever asked is gone: it must not come to own the key, which nobody would take from it.
            return;
        }
        let key = keys::reservation(&request.tenant, &request.job_type, &request.key);
        let now = self.core.clock.elapsed();
        let result = match self.try_reserve(&key, &request, connection, now) {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => {
                if let Some(owner) = self.owners.0.get_mut(&key) {
                    owner.waiters.push(Waiter { request, connection, reply });
                }
                return;
            }
            Err(error) => Err(error),
        };
        self.answer(reply, result);
    }

    /// `None` when somebody else is at it.
    fn try_reserve(
        &mut self,
        key: &Bytes,
        request: &ReserveRequest,
        connection: u64,
        now: Duration,
    ) -> Result<Option<ReserveReply>, HubError> {
        let proposed = parse_id(&request.job_id).ok_or_else(|| HubError::Invalid("job_id is not a UUID".into()))?;
        let reserved = self.reserved(key)?;
        if let Some(reserved) = &reserved {
            check_body(reserved, &request.body_sha256)?;
            if reserved.accepted {
                return self.accepted_reply(reserved).map(Some);
            }
            let live = self.owners.0.get(key).is_some_and(|owner| now.saturating_sub(owner.since) < LEASE);
            if live && reserved.id() != proposed {
                return Ok(None);
            }
        }
        let id = match reserved {
            // Its post died, or asks again after a lost answer: go on with the same id.
            Some(reserved) => {
                let id = reserved.id();
                self.intend(&id, key, request);
                id
            }
            None => {
                self.core.check_store_space()?;
                self.check_limits(&request.tenant, request.daily_bytes, request.rate_limit, request.resource_limit, request.resources)?;
                let created_ms = self.stage.now_ms;
                let fresh = Reserved { job: proposed.to_vec(), body_sha256: request.body_sha256.clone(), accepted: false, created_ms };
                fail_point!("hub::reserve::before");
                self.stage.put(Space::Index, key.clone(), fresh.encode_to_vec());
                self.intend(&proposed, key, request);
                fail_point!("hub::reserve::after");
                proposed
            }
        };
        let owner = self.owners.0.entry(key.clone()).or_insert(Owner { connection, since: now, waiters: Vec::new() });
        (owner.connection, owner.since) = (connection, now);
        Ok(Some(ReserveReply { job_id: id_text(&id), ..Default::default() }))
    }

    /// Notes that a manifest may be in the store without a job.
    fn intend(&mut self, id: &JobId, reservation: &Bytes, request: &ReserveRequest) {
        if request.stores_manifest {
            let (job_type, reservation, since_ms) = (request.job_type.clone(), reservation.clone(), self.stage.now_ms);
            let intent = Intent { job_type, reservation, since_ms, abandoned: false };
            self.stage.put(Space::Index, keys::intent(id), intent.encode_to_vec());
        }
    }

    /// Whether somebody is at it right now.
    pub(crate) fn is_owned(&self, reservation: &Bytes) -> bool {
        let now = self.core.clock.elapsed();
        self.owners.0.get(reservation).is_some_and(|owner| now.saturating_sub(owner.since) < LEASE)
    }

    fn accepted_reply(&mut self, reserved: &Reserved) -> Result<ReserveReply, HubError> {
        let id = reserved.id();
        let job = self.job(&id)?.ok_or_else(|| HubError::Fatal(format!("job {} has a reservation but no record", id_text(&id))))?;
        let facts = &job.record.facts;
        Ok(ReserveReply {
            job_id: facts.job_id.clone(),
            accepted: true,
            resource_count: facts.resource_count,
            manifest_key: facts.manifest_key.clone(),
        })
    }

    /// Deletes a reservation that will not be accepted.
    pub(crate) fn release(&mut self, request: &ReleaseRequest) -> Result<(), HubError> {
        let key = keys::reservation(&request.tenant, &request.job_type, &request.key);
        if let Some(reserved) = self.reserved(&key)?
            && !reserved.accepted
            && Some(reserved.id()) == parse_id(&request.job_id)
        {
            let intent = keys::intent(&reserved.id());
            if let Some(mut given_up) = self.intent(&intent)? {
                // Its manifest may be there, if the poster could not remove it.
                (given_up.abandoned, given_up.since_ms) = (true, self.stage.now_ms);
                self.stage.put(Space::Index, intent, given_up.encode_to_vec());
            }
            self.stage.delete(Space::Index, key.clone());
            self.resolved(&key);
        }
        Ok(())
    }

    /// The owner of a reservation is done with it: whoever waits may try.
    pub(crate) fn resolved(&mut self, key: &Bytes) {
        for waiter in self.owners.0.remove(key).map(|owner| owner.waiters).unwrap_or_default() {
            if !waiter.reply.is_closed() {
                self.reserve(waiter.request, waiter.connection, waiter.reply);
            }
        }
    }

    /// A connection is gone: the reservations it was working on have no live owner any more.
    pub(crate) fn disconnected(&mut self, connection: u64) {
        let gone: Vec<Bytes> =
            self.owners.0.iter().filter(|(_, owner)| owner.connection == connection).map(|(key, _)| key.clone()).collect();
        for key in gone {
            self.resolved(&key);
        }
    }
}

/// The same key with another body is a conflict.
pub fn check_body(reserved: &Reserved, body_sha256: &str) -> Result<(), HubError> {
    if reserved.body_sha256 == body_sha256 {
        return Ok(());
    }
    Err(HubError::refused("IDEMPOTENCY_CONFLICT", "the idempotency key was used with another body").about(&id_text(&reserved.id())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HubConfig;
    use crate::hub::Hub;
    use crate::writer::Command;

    #[test]
    fn a_request_that_outlives_its_connection_owns_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let hub = Hub::open(HubConfig::new(dir.path().join("hub"), dir.path().join("socket"))).unwrap();
        let core = hub.core();
        let reserve = |connection: u64| {
            let job_id = uuid::Uuid::now_v7().to_string();
            let request = ReserveRequest { tenant: "t".into(), job_type: "j".into(), key: "k".into(), job_id, ..Default::default() };
            core.ask(|reply| Command::Reserve { request, connection, reply })
        };
        core.connections.lock().insert(2, crate::frame::Role::Api);
        // Its end was told before its request came by, and will not be told again.
        core.commands.blocking_send(Command::Disconnected { connection: 1 }).unwrap();
        assert!(matches!(reserve(1), Err(HubError::Unavailable(_))));
        assert!(!reserve(2).unwrap().accepted);
        hub.close();
    }
}
