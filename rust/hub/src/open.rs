//! Opening the database: the lock, the checks that nothing acknowledged is missing, and what readers and the writer start from.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};

use fetchbox_model::stream::Topic;
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, mpsc, watch};

use crate::background::Signal;
use crate::clock::Clock;
use crate::config::HubConfig;
use crate::core::{Core, Offsets};
use crate::db::{Batch, Db, DbError, Space, io, side_file};
use crate::error::HubOpenError;
use crate::feed::PROJECTION;
use crate::keep::Keep;
use crate::keys;
use crate::listing::Recent;
use crate::metrics::Metrics;
use crate::record;
use crate::shelf::Directory;
use crate::upkeep::{parse_outbox_state, parse_totals};
use crate::usage::Usage;
use crate::writer::{Command, Start};

/// Commands waiting for the writer; callers beyond that wait.
const COMMANDS: usize = 8192;
/// Cancellations a slow connection may lag behind.
const CANCELLATIONS: usize = 1024;
/// The layout of this build; another one is not opened.
const FORMAT: u32 = 3;
/// Partitions fit into two bytes of a key.
const MAX_PARTITIONS: u32 = 1024;

#[derive(Debug, Serialize, Deserialize)]
struct Format {
    format: u32,
    partitions: u32,
}

/// An open database with its lock.
pub struct Opened {
    pub core: Arc<Core>,
    pub start: Start,
    pub commands: mpsc::Receiver<Command>,
    /// Hangs up when the database is closed.
    pub gone: std::sync::mpsc::Receiver<Infallible>,
    pub lock: File,
}

/// Opens or creates the database of a configuration.
pub fn open(config: HubConfig, clock: Arc<dyn Clock>) -> Result<Opened, HubOpenError> {
    if config.partitions == 0 || config.partitions > MAX_PARTITIONS {
        return Err(HubOpenError::Config(format!("tasks.partitions is {}, not 1 to {MAX_PARTITIONS}", config.partitions)));
    }
    let directory = config.path.clone();
    std::fs::create_dir_all(&directory).map_err(io("create", &directory))?;
    let lock = lock(&directory)?;
    let format = serde_json::to_vec(&Format { format: FORMAT, partitions: config.partitions }).unwrap_or_default();
    let mut first = Batch::default();
    first.put(Space::Meta, keys::FORMAT, format);
    let existed = directory.join("db").exists();
    let side_path = side_file(&directory);
    if !existed && side_path.exists() {
        let what = "the file `sequence` is there but the database is not: restore it, or remove the file to begin anew".to_owned();
        return Err(HubOpenError::Damaged { path: directory, what });
    }
    let db = Db::open(&directory, config.durability, first)?;
    let damaged = |what: String| HubOpenError::Damaged { path: directory.clone(), what };
    let failed = |error: DbError| damaged(error.0);
    let format: Format = db
        .get(Space::Meta, keys::FORMAT)
        .map_err(failed)?
        .and_then(|raw| serde_json::from_slice(&raw).ok())
        .ok_or_else(|| damaged("it does not say what format it has".into()))?;
    if format.format != FORMAT {
        let (is, path) = (format.format, directory.display());
        let what = format!("the database in {path} has format {is}, and this version of FetchBox works with format {FORMAT} only");
        let advice = "let the version that made it finish and `fetchbox ledger export` it, then begin with a new directory";
        return Err(HubOpenError::Config(format!("{what}: {advice}")));
    }
    let side = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&side_path)
        .map_err(io("open", &side_path))?;
    let sequence = keys::number(db.get(Space::Meta, keys::SEQUENCE).map_err(failed)?.as_deref());
    check_sequence(&side, sequence).map_err(damaged)?;
    let rested = db.get(Space::Meta, keys::RESTED).map_err(failed)?.is_some_and(|at| keys::number(Some(&at)) == sequence);
    let partitions = |topic: Topic| if topic == Topic::Tasks { format.partitions } else { topic.default_partitions() };
    let (next, start) = (Offsets::new(partitions), Offsets::new(partitions));
    let packed = db.get(Space::Meta, keys::NEXT).map_err(failed)?.unwrap_or_default();
    let mut offsets = keys::unpack_offsets(&packed);
    for topic in Topic::ALL {
        for partition in 0..partitions(topic) {
            // A partition that nothing was ever appended to begins at 0.
            next.set(topic, partition, offsets.next().unwrap_or(0));
            check_partition(&db, topic, partition, &next, &start).map_err(failed)?;
        }
    }
    let mut committed: BTreeMap<(u8, String), BTreeMap<u32, u64>> = BTreeMap::new();
    for item in db.range(Space::Meta, b"c\0", b"c\xff") {
        let (key, value) = item.map_err(failed)?;
        if let Some((topic, partition, group)) = keys::parse_committed(&key) {
            committed.entry((topic, group)).or_default().insert(partition, keys::number(Some(&value)));
        }
    }
    if db.get(Space::Meta, keys::REREAD).map_err(failed)?.is_some() {
        let mut anew = Batch::default();
        anew.delete(Space::Meta, keys::REREAD);
        let read = committed.remove(&(Topic::Status as u8, PROJECTION.to_owned()));
        for partition in read.into_iter().flat_map(BTreeMap::into_keys) {
            anew.delete(Space::Meta, keys::committed(Topic::Status as u8, partition, PROJECTION));
        }
        db.commit(anew).map_err(failed)?;
    }
    let (recent, active) = Recent::open(&db).map_err(failed)?;
    let totals = parse_totals(db.get(Space::Meta, keys::TOTALS).map_err(failed)?);
    let outbox = parse_outbox_state(&db.get(Space::Meta, keys::OUTBOX).map_err(failed)?.unwrap_or_default());
    let head = keys::number(db.get(Space::Meta, keys::MANIFEST_HEAD).map_err(failed)?.as_deref());
    let last = db.range(Space::Manifests, &head.to_be_bytes(), &[0xff; 9]).next_back().transpose().map_err(failed)?;
    let manifest_next = last.map_or(head, |(key, _)| keys::number(Some(&key)) + 1);

    let usage = Usage::open(&db).map_err(failed)?;
    let remembered = crate::reuse::count(&db).map_err(failed)?;
    let keep = Keep::new(&config.keeping).map_err(HubOpenError::Config)?;
    if let Some(root) = &config.store_root {
        keep.set_shelf(Arc::new(Directory::new(root.clone(), config.keeping.buckets.clone())));
    }
    let token = RwLock::new(config.token.clone());
    let (commands, queue) = mpsc::channel(COMMANDS);
    let (closed, gone) = std::sync::mpsc::sync_channel(0);
    let core = Core {
        clock,
        task_partitions: format.partitions,
        next,
        tail: Default::default(),
        untouched: Mutex::default(),
        start,
        committed: RwLock::new(committed),
        groups: Mutex::new(HashMap::new()),
        interrupted: existed && !rested,
        serving: OnceLock::new(),
        connections: Mutex::default(),
        wake: (0..=Topic::ALL.len()).map(|_| watch::Sender::new(0)).collect(),
        outbox_wake: watch::Sender::new(0),
        active: RwLock::new(active),
        cancelled: broadcast::Sender::new(CANCELLATIONS),
        fatal: watch::Sender::new(None),
        full: AtomicBool::new(false),
        overfull: AtomicBool::new(false),
        store_full: AtomicBool::new(false),
        short: AtomicBool::new(false),
        rest: Default::default(),
        outbox_bytes: AtomicU64::new(outbox.2),
        remembered: AtomicU64::new(remembered),
        metrics: Metrics::default(),
        upkeep: Signal::default(),
        manifests: Signal::default(),
        reclaim: Default::default(),
        keep,
        manifest_trouble: Mutex::new(None),
        told: Default::default(),
        commands,
        db,
        token,
        config,
        _closed: closed,
    };
    *core.metrics.totals.lock() = totals;
    Ok(Opened {
        core: Arc::new(core),
        start: Start { sequence, totals, usage, manifest_next, outbox, recent, side },
        commands: queue,
        gone,
        lock,
    })
}

fn lock(directory: &Path) -> Result<File, HubOpenError> {
    let path = directory.join("lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(io("open", &path))?;
    // SAFETY: flock takes a descriptor, which `file` keeps open, and a flag.
    let held = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
    if held == 0 {
        return Ok(file);
    }
    let error = std::io::Error::last_os_error();
    if error.kind() == std::io::ErrorKind::WouldBlock {
        return Err(HubOpenError::Locked(directory.to_owned()));
    }
    Err(io("lock", &path)(error))
}

/// The side file names the last commit that was acknowledged as durable; the database must have it.
fn check_sequence(side: &File, sequence: u64) -> Result<(), String> {
    let mut raw = [0; 8];
    match side.read_exact_at(&mut raw, 0) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
        Err(error) => return Err(format!("the file `sequence` cannot be read: {error}")),
    }
    let noted = u64::from_be_bytes(raw);
    if sequence >= noted {
        return Ok(());
    }
    Err(format!(
        "the commits {} to {noted} were acknowledged and are gone: a journal (db/*.jnl) is damaged behind commit {sequence}. Restore a backup, or \
         remove the file `sequence` to go on without them",
        sequence + 1
    ))
}

/// The last record of a partition must end at the partition's next offset.
fn check_partition(db: &Db, topic: Topic, partition: u32, next: &Offsets, start: &Offsets) -> Result<(), DbError> {
    let id = topic as u8;
    let expected = next.get(topic, partition);
    let begin = keys::number(db.get(Space::Meta, &keys::start(id, partition))?.as_deref());
    start.set(topic, partition, begin);
    let (from, to) = (record::key(id, partition, begin), record::key(id, partition, u64::MAX));
    let end = match db.range(Space::Log, &from, &to).next_back().transpose()? {
        None => begin,
        Some((key, value)) => {
            let base = record::base_of(&key).unwrap_or(0);
            base + record::decode(topic.name(), partition, base, &value)?.messages()
        }
    };
    if end == expected {
        return Ok(());
    }
    Err(DbError(format!("{} partition {partition} ends at offset {end}, but {expected} were written", topic.name())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::config::Durability;

    #[test]
    fn a_database_of_another_format_is_refused_with_advice() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = Batch::default();
        first.put(Space::Meta, keys::FORMAT, serde_json::to_vec(&Format { format: FORMAT - 1, partitions: 64 }).unwrap());
        drop(Db::open(dir.path(), Durability::Sync, first).unwrap());
        let config = HubConfig::new(dir.path().to_owned(), dir.path().join("socket"));
        let error = open(config, Arc::new(SystemClock::default())).err().unwrap().to_string();
        let said =
            [&format!("has format {}", FORMAT - 1), &format!("format {FORMAT} only"), "ledger export"].map(|part| error.contains(part));
        assert_eq!(said, [true; 3], "{error}");
    }
}
