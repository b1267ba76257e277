//! What travels between the hub and its clients.
//!
//! A frame is `length: u32 | request id: u64 | op: u8 | payload`, little-endian inside the frame, the length as tokio-util's codec writes it. A reply
//! repeats the request's id with op [`OK`] or [`ERROR`]; a push has id 0 and op [`PUSH`]. Payloads are protobuf messages derived here by hand: nobody but
//! the hub and its client speaks this, and both come from the same build ([`PROTOCOL`] is compared in the greeting).

mod jobs;
mod streams;

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use serde::{Deserialize, Serialize};

use crate::error::HubError;

pub use self::jobs::*;
pub use self::streams::*;

/// The version of frames and payloads; client and hub must agree.
pub const PROTOCOL: u32 = 1;
/// Largest frame after the greeting: a manifest of 5 MB with its tasks fits many times.
pub const MAX_FRAME: usize = 128 << 20;
/// Largest frame before the greeting was accepted.
pub const MAX_GREETING: usize = 4 << 10;

/// Op of a successful reply.
pub const OK: u8 = 128;
/// Op of a failed reply, payload [`Failure`].
pub const ERROR: u8 = 129;
/// Op of a push, payload [`PushFrame`].
pub const PUSH: u8 = 130;

/// Op of a sign of life, id 0 and no payload; never answered.
pub const PING: u8 = 131;
/// How often a client gives a sign of life.
pub const PING_EVERY: Duration = Duration::from_secs(2);

/// What a client may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Op {
    Hello = 1,
    Reserve = 2,
    Release = 3,
    Accept = 4,
    Append = 5,
    Join = 6,
    Leave = 7,
    ReleasePartitions = 8,
    Poll = 9,
    Settled = 10,
    Cancel = 11,
    Query = 12,
    OutboxPeek = 13,
    OutboxDone = 14,
    Feed = 15,
    Ledger = 32,
    Rebuild = 33,
}

impl Op {
    const ALL: [Op; 17] = [
        Op::Hello,
        Op::Reserve,
        Op::Release,
        Op::Accept,
        Op::Append,
        Op::Join,
        Op::Leave,
        Op::ReleasePartitions,
        Op::Poll,
        Op::Settled,
        Op::Cancel,
        Op::Query,
        Op::OutboxPeek,
        Op::OutboxDone,
        Op::Feed,
        Op::Ledger,
        Op::Rebuild,
    ];

    /// The op of that number.
    pub fn from_id(id: u8) -> Option<Op> {
        Op::ALL.into_iter().find(|op| *op as u8 == id)
    }
}

/// Who a connection speaks for; it can do only what its role does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Role {
    /// An ingress process: reserve, accept, cancel, query.
    Api = 1,
    /// A worker: poll, settled, append, query.
    Worker = 2,
    /// An operator's tool or the hub's own helpers: everything.
    Operator = 3,
}

impl Role {
    /// The role of that number.
    pub fn from_id(id: u32) -> Option<Role> {
        [Role::Api, Role::Worker, Role::Operator].into_iter().find(|role| *role as u32 == id)
    }

    /// Whether this role may ask for that.
    pub fn may(self, op: Op) -> bool {
        match self {
            Role::Operator => true,
            Role::Api => matches!(op, Op::Hello | Op::Reserve | Op::Release | Op::Accept | Op::Cancel | Op::Query),
            Role::Worker => {
                matches!(op, Op::Hello | Op::Append | Op::Join | Op::Leave | Op::ReleasePartitions | Op::Poll | Op::Settled | Op::Query)
            }
        }
    }
}

/// The first request on a connection.
#[derive(Clone, PartialEq, Message)]
pub struct Hello {
    /// [`PROTOCOL`].
    #[prost(uint32, tag = "1")]
    pub protocol: u32,
    /// [`Role`] as a number.
    #[prost(uint32, tag = "2")]
    pub role: u32,
    /// Who connects, for logs: `api 0`.
    #[prost(string, tag = "3")]
    pub name: String,
    /// The hub's token, when it wants one.
    #[prost(string, optional, tag = "4")]
    pub token: Option<String>,
}

/// A refused or failed request.
#[derive(Clone, PartialEq, Message)]
pub struct Failure {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(string, tag = "2")]
    code: String,
    #[prost(string, tag = "3")]
    message: String,
    #[prost(uint64, optional, tag = "4")]
    retry_after_ms: Option<u64>,
    #[prost(string, optional, tag = "5")]
    job_id: Option<String>,
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Self {
        let plain = |kind, message| Failure { kind, message, ..Default::default() };
        match error {
            HubError::Unavailable(message) => plain(1, message),
            HubError::Refused { code, message, retry_after_ms, job_id } => Failure { kind: 2, code, message, retry_after_ms, job_id },
            HubError::Invalid(message) => plain(3, message),
            HubError::Fatal(message) => plain(4, message),
        }
    }
}

impl From<Failure> for HubError {
    fn from(failure: Failure) -> Self {
        match failure.kind {
            1 => HubError::Unavailable(failure.message),
            2 => HubError::Refused {
                code: failure.code,
                message: failure.message,
                retry_after_ms: failure.retry_after_ms,
                job_id: failure.job_id,
            },
            3 => HubError::Invalid(failure.message),
            _ => HubError::Fatal(failure.message),
        }
    }
}

/// A question to the ledger; parameters and answer are JSON.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct QueryRequest {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// A JSON object, or nothing.
    #[prost(bytes = "bytes", tag = "2")]
    pub params: Bytes,
}

/// Bytes and nothing else.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct BytesReply {
    /// The content.
    #[prost(bytes = "bytes", tag = "1")]
    pub body: Bytes,
}

/// Nothing.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Empty {}

/// What the hub says without being asked.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PushFrame {
    /// This job was cancelled.
    #[prost(string, tag = "1")]
    pub cancelled_job_id: String,
}

/// A frame with an encoded message.
pub fn encode<M: Message>(id: u64, op: u8, message: &M) -> Bytes {
    let mut frame = BytesMut::with_capacity(9 + message.encoded_len());
    frame.put_u64_le(id);
    frame.put_u8(op);
    message.encode_raw(&mut frame);
    frame.freeze()
}

/// Request id, op and payload of a frame.
pub fn split(mut frame: Bytes) -> Option<(u64, u8, Bytes)> {
    let head = frame.get(..9)?;
    let id = u64::from_le_bytes(head[..8].try_into().ok()?);
    let op = head[8];
    bytes::Buf::advance(&mut frame, 9);
    Some((id, op, frame))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_split_into_what_they_were_made_of() {
        let frame = encode(7, Op::Query as u8, &QueryRequest { name: "job".into(), params: Bytes::from_static(b"{}") });
        let (id, op, payload) = split(frame.clone()).unwrap();
        assert_eq!((id, Op::from_id(op)), (7, Some(Op::Query)));
        assert_eq!(QueryRequest::decode(payload).unwrap().name, "job");
        assert_eq!(split(frame.slice(..8)), None);
    }

    #[test]
    fn every_error_survives_the_wire() {
        for error in [
            HubError::Unavailable("a".into()),
            HubError::refused("RATE_LIMITED", "slow down").after_ms(20).about("job"),
            HubError::Invalid("b".into()),
            HubError::Fatal("c".into()),
        ] {
            assert_eq!(HubError::from(Failure::from(error.clone())), error);
        }
    }

    #[test]
    fn roles_do_only_their_own_work() {
        assert!(!Role::Worker.may(Op::Accept) && !Role::Worker.may(Op::Cancel) && Role::Worker.may(Op::Append));
        assert!(!Role::Api.may(Op::Append) && !Role::Api.may(Op::Poll) && Role::Api.may(Op::Accept));
    }
}
