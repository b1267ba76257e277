//! The flight recorder: what is under way, in a file that outlives the process.
//!
//! Each running download has a slot of eight bytes in a mapped file, which holds a digest of its task while it runs. The process pays two stores to
//! memory for that; when it is killed, in whatever way, the kernel keeps the page. Its file is locked while it lives, so whoever finds one without a
//! lock knows that its owner died, and what it was doing. Such a file becomes a *crash record*. A task that stands in two of them is suspect:
//! workers died twice while it was under way.
//!
//! A crash of the whole machine may lose the pages. Then nothing is suspect, and the next deaths tell.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use fetchbox_model::message::DownloadTask;
use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock, fstat};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::sync::lock;

const LIVE: &str = "live-";
const CRASH: &str = "crash-";
/// Crash records kept; older ones are forgotten.
const RECORDS: usize = 64;
/// Crash records with a task that make it suspect. The first death may have been anybody's fault, and most are nobody's: somebody's kill -9.
const SUSPICION: usize = 2;
/// Largest file that is read as a record.
const MAX_RECORD: u64 = 1 << 20;
/// How often a fresh file may be taken for a dead one's before it is locked.
const TRIES: usize = 16;
const SLOT: usize = size_of::<AtomicU64>();

/// What stands for a task in the recorder: the same for every delivery of it, and never 0.
pub fn digest(task: &DownloadTask) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&task.job_id, task.resource_index, &task.resource_id).hash(&mut hasher);
    hasher.finish().max(1)
}

/// The recorder of one process. Dropping it says that nothing was under way.
pub struct Flight {
    slots: Slots,
    free: Mutex<Vec<usize>>,
    dir: PathBuf,
    path: PathBuf,
    /// Holds the lock.
    _file: File,
}

/// The mapped file.
struct Slots {
    start: *mut AtomicU64,
    count: usize,
}

// SAFETY: the memory is shared and only touched through atomics.
unsafe impl Send for Slots {}
// SAFETY: see above.
unsafe impl Sync for Slots {}

impl Slots {
    fn map(file: &File, count: usize) -> io::Result<Self> {
        // SAFETY: a fresh mapping of a file whose blocks are allocated for its whole length; it is unmapped once, on drop.
        let start = unsafe { mmap(std::ptr::null_mut(), count * SLOT, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, file, 0)? };
        Ok(Self { start: start.cast(), count })
    }

    fn all(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, `count` slots long and lives as long as self.
        unsafe { std::slice::from_raw_parts(self.start, self.count) }
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length. Failure would leave a page mapped.
        let _ = unsafe { munmap(self.start.cast(), self.count * SLOT) };
    }
}

/// A lane's slot; without a recorder, or with none free, it records nothing.
pub struct Slot<'a> {
    flight: Option<(&'a Flight, usize)>,
}

impl Slot<'_> {
    /// The task is under way from here on, and the one before is not any more.
    pub fn begin(&self, task: &DownloadTask) {
        if let Some((flight, index)) = self.flight {
            flight.slots.all()[index].store(digest(task), Ordering::Release);
        }
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        if let Some((flight, index)) = self.flight {
            flight.slots.all()[index].store(0, Ordering::Release);
            lock(&flight.free).push(index);
        }
    }
}

impl Flight {
    /// Begins a record in `dir`, made if missing, for up to `slots` downloads at once.
    pub fn open(dir: &Path, slots: usize) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let slots = slots.max(1);
        for _ in 0..TRIES {
            let path = dir.join(format!("{LIVE}{:016x}", fastrand::u64(..)));
            let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
            let fresh = Self::begin(&path, file, slots, dir);
            match fresh {
                Ok(Some(flight)) => return Ok(flight),
                Ok(None) => {}
                Err(error) => {
                    let _ = fs::remove_file(&path);
                    return Err(error);
                }
            }
        }
        Err(io::Error::other("others remove every new flight record"))
    }

    fn begin(path: &Path, file: File, slots: usize, dir: &Path) -> io::Result<Option<Self>> {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            // Somebody took it for a dead one's before it was locked.
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error.into()),
            Ok(()) if fstat(&file)?.st_nlink == 0 => return Ok(None),
            Ok(()) => {}
        }
        // With its blocks allocated no store can hit a full disk.
        match fallocate(&file, FallocateFlags::empty(), 0, (slots * SLOT) as u64) {
            // Not every file system can do it at once.
            Err(Errno::OPNOTSUPP) => (&file).write_all(&vec![0; slots * SLOT])?,
            done => done?,
        }
        let mapped = Slots::map(&file, slots)?;
        let free = Mutex::new((0..slots).rev().collect());
        Ok(Some(Self { slots: mapped, free, dir: dir.to_owned(), path: path.to_owned(), _file: file }))
    }

    /// The process ends well: whatever is still under way is no evidence.
    pub fn end(&self) {
        // A file that stays is evidence against its tasks, which only makes them run apart once.
        let _ = fs::remove_file(&self.path);
    }

    /// A slot for a lane.
    pub fn slot(of: Option<&Self>) -> Slot<'_> {
        Slot { flight: of.and_then(|flight| Some((flight, lock(&flight.free).pop()?))) }
    }

    /// Turns what dead processes left into crash records; the digests of the tasks that are suspect now.
    pub fn suspects(&self) -> io::Result<HashSet<u64>> {
        let mut records = Vec::new();
        let mut dead = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            match path.file_name().and_then(|name| name.to_str()) {
                Some(name) if name.starts_with(CRASH) => records.push(path),
                Some(name) if name.starts_with(LIVE) && path != self.path => dead.push(path),
                _ => {}
            }
        }
        // Names sort by age.
        records.sort_unstable();
        let mut next = records.last().map_or(0, |path| number(path) + 1);
        for path in dead {
            if let Some(record) = bury(&path, next) {
                records.push(record);
                next += 1;
            }
        }
        let old = records.len().saturating_sub(RECORDS);
        for path in records.drain(..old) {
            // Another worker may have been quicker.
            let _ = fs::remove_file(path);
        }
        let mut seen: HashMap<u64, usize> = HashMap::new();
        for path in records {
            // One that another worker has just forgotten counts no more.
            for digest in read(&path).unwrap_or_default() {
                *seen.entry(digest).or_default() += 1;
            }
        }
        Ok(seen.into_iter().filter(|(_, records)| *records >= SUSPICION).map(|(digest, _)| digest).collect())
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.end();
    }
}

/// Makes a crash record of a dead process's file; `None` when it lives, held nothing, or somebody else was quicker.
fn bury(path: &Path, number: u64) -> Option<PathBuf> {
    let file = File::open(path).ok()?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
    // Locked by now, but perhaps renamed or removed since it was listed.
    if read(path)?.is_empty() {
        let _ = fs::remove_file(path);
        return None;
    }
    let record = path.with_file_name(format!("{CRASH}{number:016x}-{:08x}", fastrand::u32(..)));
    fs::rename(path, &record).ok().map(|()| record)
}

fn number(path: &Path) -> u64 {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.strip_prefix(CRASH).and_then(|rest| rest.split('-').next()).and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0)
}

/// The digests in a file, each once.
fn read(path: &Path) -> Option<HashSet<u64>> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MAX_RECORD).read_to_end(&mut bytes).ok()?;
    let slots = bytes.chunks_exact(SLOT).filter_map(|slot| slot.try_into().ok()).map(u64::from_ne_bytes);
    Some(slots.filter(|digest| *digest != 0).collect())
}

#[cfg(test)]
mod tests;
