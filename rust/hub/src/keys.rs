//! The keys of `meta` and `index`. Numbers are big-endian, so that ranges are in order.

use bytes::{BufMut, Bytes, BytesMut};
use fetchbox_model::message::JobState;
use fetchbox_model::stream::Topic;
use sha2::{Digest, Sha256};

use crate::job::{JobId, JobRecord};

/// Sequence of the last commit.
pub const SEQUENCE: &[u8] = b"sequence";
/// Sequence of the last commit of a hub that ended while no worker was at work. Any later commit makes it void.
pub const RESTED: &[u8] = b"rested";
/// The next hub reads `jobs.status` of its broker from the beginning.
pub const REREAD: &[u8] = b"reread";
/// What the database was created with, JSON.
pub const FORMAT: &[u8] = b"format";
/// Next offset of every partition of every topic, in their order, 8 bytes each: one key, because each commit changes many.
pub const NEXT: &[u8] = b"next";
/// Sums over all jobs.
pub const TOTALS: &[u8] = b"totals";
/// Sequence below which manifests are written.
pub const MANIFEST_HEAD: &[u8] = b"manifest-head";
/// Sequence below which the outbox is published, and the bytes above.
pub const OUTBOX: &[u8] = b"outbox";
/// The outbox stands in the log as if it were a topic of this number with one partition.
pub const OUTBOX_TOPIC: u8 = 0xf0;

fn numbered(kind: u8, topic: u8, partition: u32, group: &str) -> Bytes {
    let mut key = BytesMut::with_capacity(4 + group.len());
    key.put_u8(kind);
    key.put_u8(topic);
    key.put_u16(partition as u16);
    key.put_slice(group.as_bytes());
    key.freeze()
}

/// The value of [`NEXT`].
pub fn pack_offsets<'a>(offsets: impl Iterator<Item = &'a u64>) -> Vec<u8> {
    offsets.flat_map(|offset| offset.to_be_bytes()).collect()
}

/// The offsets in the value of [`NEXT`].
pub fn unpack_offsets(raw: &[u8]) -> impl Iterator<Item = u64> + '_ {
    raw.chunks(8).map(|number_at| number(Some(number_at)))
}

/// The next offset of one partition in the value of [`NEXT`]; 0 where nothing was ever appended. What the others leave is `jobs.tasks`.
pub fn next_of(packed: &[u8], topic: Topic, partition: u32) -> u64 {
    let others: u32 = Topic::ALL.into_iter().filter(|&other| other != Topic::Tasks).map(Topic::default_partitions).sum();
    let tasks = (packed.len() / 8).saturating_sub(others as usize);
    let size = |of: Topic| if of == Topic::Tasks { tasks } else { of.default_partitions() as usize };
    let before: usize = Topic::ALL.into_iter().take_while(|&earlier| earlier != topic).map(size).sum();
    unpack_offsets(packed).nth(before + partition as usize).unwrap_or(0)
}

/// First offset that a partition still holds.
pub fn start(topic: u8, partition: u32) -> Bytes {
    numbered(b'h', topic, partition, "")
}

/// Committed offset of a group.
pub fn committed(topic: u8, partition: u32, group: &str) -> Bytes {
    numbered(b'c', topic, partition, group)
}

/// Topic, partition and group of a [`committed`] key.
pub fn parse_committed(key: &[u8]) -> Option<(u8, u32, String)> {
    let (head, group) = key.split_at_checked(4)?;
    (head[0] == b'c').then(|| (head[1], u32::from(u16::from_be_bytes([head[2], head[3]])), String::from_utf8_lossy(group).into_owned()))
}

/// A reservation. Hashed, because callers choose its parts.
pub fn reservation(tenant: &str, job_type: &str, key: &str) -> Bytes {
    let mut hash = Sha256::new();
    for part in [tenant, job_type, key] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    let mut bytes = BytesMut::with_capacity(33);
    bytes.put_u8(b'r');
    bytes.put_slice(&hash.finalize());
    bytes.freeze()
}

/// What a tenant had stored on a day, counted from 1970.
pub fn usage(day: u64, tenant: &str) -> Bytes {
    let mut key = BytesMut::with_capacity(9 + tenant.len());
    key.put_u8(b'u');
    key.put_u64(day);
    key.put_slice(tenant.as_bytes());
    key.freeze()
}

/// All of the days before one, end exclusive.
pub fn usage_until(day: u64) -> (Bytes, Bytes) {
    (usage(0, ""), usage(day, ""))
}

/// Day and tenant of a [`usage`] key.
pub fn parse_usage(key: &[u8]) -> Option<(u64, String)> {
    let (head, tenant) = key.split_at_checked(9)?;
    (head[0] == b'u').then(|| (number(Some(&head[1..])), String::from_utf8_lossy(tenant).into_owned()))
}

/// A job that the collector is to look at when it is due. In order of that time.
pub fn collect(due_ms: u64, id: &JobId) -> Bytes {
    let mut key = BytesMut::with_capacity(25);
    key.put_u8(b'x');
    key.put_u64(due_ms);
    key.put_slice(id);
    key.freeze()
}

/// A post that may have stored a manifest and is not accepted yet.
pub fn intent(id: &JobId) -> Bytes {
    let mut key = BytesMut::with_capacity(17);
    key.put_u8(b'q');
    key.put_slice(id);
    key.freeze()
}

/// The index of a resource of a job whose tasks say only its id. Hashed, because producers choose it.
pub fn direct_resource(id: &JobId, resource_id: &str) -> Bytes {
    let mut key = BytesMut::with_capacity(33);
    key.put_u8(b'd');
    key.put_slice(id);
    key.put_slice(&Sha256::digest(resource_id.as_bytes())[..16]);
    key.freeze()
}

/// All of a job, end exclusive.
pub fn direct_resources(id: &JobId) -> (Vec<u8>, Vec<u8>) {
    let from = [&[b'd'][..], id].concat();
    let to = [&from[..], &[0xff; 17]].concat();
    (from, to)
}

/// A job that is open: nobody has said how many resources it has.
pub fn open(id: &JobId) -> Bytes {
    let mut key = BytesMut::with_capacity(17);
    key.put_u8(b'o');
    key.put_slice(id);
    key.freeze()
}

/// All of them, end exclusive.
pub fn all_open() -> (Vec<u8>, Vec<u8>) {
    (vec![b'o'], vec![b'o' + 1])
}

/// The job of an [`open`] key.
pub fn parse_open(key: &[u8]) -> Option<JobId> {
    key.strip_prefix(b"o")?.try_into().ok()
}

/// One order of jobs by time of creation; [`crate::listing`] says how it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Listing {
    /// Jobs with something pending. Not packed as the others are.
    Active,
    /// Settled jobs of that state.
    Settled(JobState),
    /// Of a tenant.
    Tenant(String),
    /// Of a job type.
    JobType(String),
    /// Of a crawl.
    Crawl(String),
}

impl Listing {
    /// What all keys of this listing begin with.
    pub fn prefix(&self) -> BytesMut {
        let mut key = BytesMut::new();
        let named = |key: &mut BytesMut, kind: u8, name: &str| {
            key.put_u8(kind);
            key.put_u32(name.len() as u32);
            key.put_slice(name.as_bytes());
        };
        match self {
            Listing::Active => key.put_u8(b'a'),
            Listing::Settled(state) => {
                key.put_u8(b's');
                key.put_u8(*state as u8);
            }
            Listing::Tenant(name) => named(&mut key, b't', name),
            Listing::JobType(name) => named(&mut key, b'y', name),
            Listing::Crawl(name) => named(&mut key, b'w', name),
        }
        key
    }
}

/// The key of a job that has been active for a while.
pub fn active(created_ms: u64, id: &JobId) -> Bytes {
    let mut key = BytesMut::with_capacity(25);
    key.put_u8(b'a');
    key.put_u64(created_ms);
    key.put_slice(id);
    key.freeze()
}

/// The key of the jobs that a commit made active.
pub fn recent(sequence: u64) -> Bytes {
    let mut key = BytesMut::with_capacity(9);
    key.put_u8(b'n');
    key.put_u64(sequence);
    key.freeze()
}

/// Time of creation and id at the end of a key.
pub fn parse_listed(key: &[u8]) -> Option<(u64, JobId)> {
    let tail = key.get(key.len().checked_sub(24)?..)?;
    Some((u64::from_be_bytes(tail[..8].try_into().ok()?), tail[8..].try_into().ok()?))
}

/// The listing that a job's state puts it into.
pub fn state_listing(job: &JobRecord) -> Listing {
    if job.finished_ms == 0 { Listing::Active } else { Listing::Settled(job.state()) }
}

/// The listings that a job is in for life.
pub fn fixed_listings(job: &JobRecord) -> Vec<Listing> {
    let facts = &job.facts;
    let mut listings = vec![Listing::Tenant(facts.tenant.clone()), Listing::JobType(facts.job_type.clone())];
    if !facts.crawl_id.is_empty() {
        listings.push(Listing::Crawl(facts.crawl_id.clone()));
    }
    listings
}

/// A stored number; 0 for anything else.
pub fn number(value: Option<&[u8]>) -> u64 {
    value.and_then(|v| v.try_into().ok()).map_or(0, u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listings_are_ordered_by_time_and_do_not_run_into_each_other() {
        let a = Listing::Tenant("a".into());
        let ab = Listing::Tenant("ab".into());
        assert!(active(1, &[9; 16]) < active(2, &[0; 16]));
        assert!(!ab.prefix().starts_with(&a.prefix()));
        assert_eq!(parse_listed(&active(7, &[3; 16])), Some((7, [3; 16])));
        assert_eq!(parse_listed(b"short"), None);
    }

    #[test]
    fn offsets_come_back_in_their_order() {
        let offsets = [0, 7, u64::MAX];
        assert_eq!(unpack_offsets(&pack_offsets(offsets.iter())).collect::<Vec<_>>(), offsets);
        assert_eq!((unpack_offsets(b"").count(), next_of(b"", Topic::Dlq, 1)), (0, 0));
        // Three partitions of tasks, then the others.
        let others: u32 = Topic::ALL[1..].iter().map(|topic| topic.default_partitions()).sum();
        let packed = pack_offsets((0..3 + u64::from(others)).collect::<Vec<_>>().iter());
        assert_eq!((next_of(&packed, Topic::Tasks, 2), next_of(&packed, Topic::Retry, 0)), (2, 3));
        assert_eq!(next_of(&packed, Topic::Status, 1), 4 + u64::from(Topic::Retry.default_partitions()));
    }

    #[test]
    fn reservations_of_different_parts_differ() {
        assert_ne!(reservation("a", "b", "c"), reservation("ab", "", "c"));
        assert_eq!(parse_committed(&committed(1, 63, "workers")), Some((1, 63, "workers".into())));
    }
}
