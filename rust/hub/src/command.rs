//! What the writer is asked to do.

use bytes::Bytes;
use fetchbox_model::message::ResourceOutcome;
use fetchbox_model::stream::Topic;

use crate::dlq::{Place, Shelf, Which};
use crate::frame::{
    AcceptReply, AcceptRequest, AppendReply, AppendRequest, CancelRequest, FeedRequest, RebuildReply, ReleaseRequest, ReserveReply,
    ReserveRequest,
};
use crate::job::JobId;
use crate::outcome::StatusPart;
use crate::record::Part;
use crate::replay::{Done, Revival};
use crate::reply::Reply;
use crate::sweep::Returned;

/// One of its commands, with whom to answer.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum Command {
    Reserve {
        request: ReserveRequest,
        connection: u64,
        reply: Reply<ReserveReply>,
    },
    Release {
        request: ReleaseRequest,
        reply: Reply<()>,
    },
    Accept {
        request: Box<AcceptRequest>,
        reply: Reply<AcceptReply>,
    },
    Append {
        request: AppendRequest,
        reply: Reply<AppendReply>,
    },
    Cancel {
        request: CancelRequest,
        reply: Reply<()>,
    },
    /// A connection is gone, and with it the reservations it was working on.
    Disconnected {
        connection: u64,
    },
    /// The outbox is published up to and with this sequence.
    OutboxDone {
        up_to: u64,
        reply: Reply<()>,
    },
    /// This was read from an external broker.
    Feed {
        request: FeedRequest,
        reply: Reply<()>,
    },
    /// Manifests below this sequence are safely in the store.
    ManifestsWritten {
        below: u64,
        reply: Reply<()>,
    },
    /// A retry record is due: its batches go back to `jobs.tasks`.
    Move {
        tier: u32,
        base: u64,
        parts: Vec<Part>,
        reply: Reply<()>,
    },
    /// Records of a partition go, of so many bytes; it starts at `start` then.
    Trim {
        topic: Topic,
        partition: u32,
        bases: Vec<u64>,
        bytes: u64,
        start: u64,
        reply: Reply<()>,
    },
    /// Dead letters go back to work.
    Replay {
        chunk: Vec<(JobId, Vec<Revival>)>,
        reply: Reply<Done>,
    },
    /// Entries of the dead letters go.
    Purge {
        shelf: Shelf,
        chunk: Vec<(Place, Vec<Which>)>,
        reply: Reply<u64>,
    },
    /// The hub closes: the last command.
    Stop,
    /// Lost tasks go back into the queue, unless the job has changed since `seen_ms`.
    PutBack {
        id: JobId,
        seen_ms: u64,
        tasks: Vec<Returned>,
        reply: Reply<u64>,
    },
    /// Objects of these jobs are about to be removed: nobody replays them meanwhile. Those that are settled.
    CollectBegin {
        jobs: Vec<JobId>,
        reply: Reply<Vec<JobId>>,
    },
    /// That is over, and these keys leave the collector's queue.
    CollectEnd {
        jobs: Vec<JobId>,
        done: Vec<Bytes>,
        reply: Reply<()>,
    },
    /// Posts that were never accepted are given up. Those whose manifests may go.
    Abandon {
        jobs: Vec<JobId>,
        reply: Reply<Vec<JobId>>,
    },
    /// Manifests of such posts are gone.
    Forget {
        jobs: Vec<JobId>,
        reply: Reply<()>,
    },
    /// A job's counts and listings are made again from its outcomes; whether anything was wrong.
    Recount {
        id: JobId,
        reply: Reply<bool>,
    },
    /// An open job has been silent since then.
    EndDirect {
        id: JobId,
        seen_ms: u64,
        reply: Reply<()>,
    },
    /// What a pack of remembered URLs names goes.
    ForgetUrls {
        pack: Bytes,
        reply: Reply<()>,
    },
    /// A job that is not known, with what became of its resources as far as that is known.
    Rebuild {
        request: Box<AcceptRequest>,
        outcomes: Vec<ResourceOutcome>,
        reply: Reply<RebuildReply>,
    },
    /// What was reported is projected once more; how many resources it settled.
    Restate {
        statuses: Vec<StatusPart>,
        reply: Reply<u64>,
    },
    /// The next hub reads its broker's `jobs.status` from the beginning.
    Reread {
        reply: Reply<()>,
    },
    /// Settled jobs go.
    Prune {
        jobs: Vec<JobId>,
        reply: Reply<()>,
    },
}
