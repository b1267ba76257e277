//! Objects as files under a root directory.
//!
//! A file is written without a name (O_TMPFILE) and linked into its directory when it is whole; where the file system cannot do that, and to replace
//! an object, it gets a name in a hidden staging directory and is renamed. Nobody ever sees half a file under an object's name.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use fetchbox_model::key::ObjectKey;
use fetchbox_model::reuse::Remembered;
use rustix::fs::{
    AtFlags, FileType, FlockOperation, Mode, OFlags, Stat, flock, fstat, linkat, mkdirat, openat, renameat, statat, unlinkat,
};
use rustix::io::Errno;

use super::adopt::Adopted;
use crate::sync::lock;

/// Where files wait that cannot do without a name; no key begins with a dot.
const STAGING: &str = ".fetchbox-staging";
/// How often the staging directory may vanish under one file; each time a worker must have started at that very moment.
const STAGING_TRIES: usize = 16;
/// Directories kept open.
const MAX_DIRS: usize = 512;
/// Most slices of one write.
const MAX_SLICES: usize = 256;
const DIR_FLAGS: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC).union(OFlags::RDONLY);
const FILE_MODE: Mode = Mode::from_raw_mode(0o644);
const DIR_MODE: Mode = Mode::from_raw_mode(0o755);

/// The root directory and what is known of it.
pub struct LocalStore {
    root: PathBuf,
    root_fd: Arc<OwnedFd>,
    dirs: Mutex<HashMap<Box<str>, Arc<OwnedFd>>>,
    /// Whether files without a name can be made here.
    nameless: AtomicBool,
    /// Whether a file descriptor can be linked directly; else by way of /proc.
    direct_link: AtomicBool,
    /// Directories were made since the last whole sync.
    new_dirs: AtomicBool,
    next: AtomicU64,
}

/// A file under way. Dropping it leaves nothing behind.
pub struct Draft {
    /// The file.
    pub file: OwnedFd,
    dir: Arc<OwnedFd>,
    parent: Box<str>,
    name: String,
    staged: Option<(Arc<OwnedFd>, String)>,
}

impl LocalStore {
    /// Opens the root, made if missing, and clears what a crash left in its staging directory.
    pub fn open(root: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(root)?;
        let root = std::fs::canonicalize(root)?;
        let root_fd = Arc::new(rustix::fs::open(&root, DIR_FLAGS, Mode::empty())?);
        let store = Self {
            root,
            root_fd,
            dirs: Mutex::default(),
            nameless: AtomicBool::new(true),
            direct_link: AtomicBool::new(true),
            new_dirs: AtomicBool::new(true),
            next: AtomicU64::new(0),
        };
        store.sweep();
        Ok(store)
    }

    /// The root directory, absolute.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The root directory's descriptor.
    pub fn root_fd(&self) -> &OwnedFd {
        &self.root_fd
    }

    /// Whether directories were made since this was last asked.
    pub fn has_new_dirs(&self) -> bool {
        self.new_dirs.swap(false, Ordering::Relaxed)
    }

    /// Begins the file of a key.
    pub fn create(&self, key: &ObjectKey) -> io::Result<Draft> {
        let (parent, name) = key.as_str().rsplit_once('/').unwrap_or(("", key.as_str()));
        let dir = self.dir(parent)?;
        if self.nameless.load(Ordering::Relaxed) {
            match openat(&*dir, c".", OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, FILE_MODE) {
                Ok(file) => return Ok(Draft { file, dir, parent: parent.into(), name: name.to_owned(), staged: None }),
                Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => self.nameless.store(false, Ordering::Relaxed),
                Err(Errno::NOENT | Errno::PERM) => {
                    // The directory was removed behind our back; file systems say so in different ways.
                    self.forget(parent);
                    let dir = self.dir(parent)?;
                    let file = openat(&*dir, c".", OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, FILE_MODE)?;
                    return Ok(Draft { file, dir, parent: parent.into(), name: name.to_owned(), staged: None });
                }
                Err(error) => return Err(error.into()),
            }
        }
        let (file, staged) = self.stage(|staging, staged| {
            let file = openat(staging, staged, OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC, FILE_MODE)?;
            flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            // A sweep may have come before the lock.
            if fstat(&file)?.st_nlink == 0 { Err(Errno::NOENT) } else { Ok(file) }
        })?;
        Ok(Draft { file, dir, parent: parent.into(), name: name.to_owned(), staged: Some(staged) })
    }

    /// The file of `source` under `key` as well, unless it is not there any more as it is remembered. It gets its second name at once, in the staging
    /// directory.
    pub fn adopt(&self, source: &ObjectKey, known: &Remembered, key: &ObjectKey) -> Option<Adopted> {
        // Every trouble means the same: there is nothing to adopt.
        let open = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = openat(&*self.root_fd, source.as_str(), open, Mode::empty()).ok()?;
        let is = fstat(&file).ok()?;
        let is_file = FileType::from_raw_mode(is.st_mode) == FileType::RegularFile && u64::try_from(is.st_size).ok()? == known.size;
        let etag = etag_of(&is);
        if !is_file || (!known.storage_etag.is_empty() && known.storage_etag != etag) {
            return None;
        }
        let (parent, name) = key.as_str().rsplit_once('/').unwrap_or(("", key.as_str()));
        let dir = self.dir(parent).ok()?;
        let there = statat(&*dir, name, AtFlags::SYMLINK_NOFOLLOW);
        if there.is_ok_and(|there| (there.st_dev, there.st_ino) == (is.st_dev, is.st_ino)) {
            return Some(Adopted { etag, draft: None });
        }
        // Shared: several tasks may adopt one file at a time, and a sweep of another process leaves locked ones alone.
        flock(&file, FlockOperation::NonBlockingLockShared).ok()?;
        let ((), staged) = self.stage(|staging, staged| self.link(&file, staging, staged)).ok()?;
        let draft = Draft { file, dir, parent: parent.into(), name: name.to_owned(), staged: Some(staged) };
        Some(Adopted { etag, draft: Some(draft) })
    }

    /// Gives a whole file its name, replacing what had it.
    pub fn publish(&self, draft: &mut Draft) -> io::Result<()> {
        if draft.staged.is_none() {
            match self.link(&draft.file, &draft.dir, &draft.name) {
                Ok(()) => return Ok(()),
                Err(Errno::EXIST) => {}
                Err(Errno::NOENT) => {
                    self.forget(&draft.parent);
                    draft.dir = self.dir(&draft.parent)?;
                    match self.link(&draft.file, &draft.dir, &draft.name) {
                        Ok(()) => return Ok(()),
                        Err(Errno::EXIST) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Err(error) => return Err(error.into()),
            }
            // A sweep of another process leaves locked files alone.
            flock(&draft.file, FlockOperation::NonBlockingLockExclusive)?;
            let ((), staged) = self.stage(|staging, staged| self.link(&draft.file, staging, staged))?;
            draft.staged = Some(staged);
        }
        if let Some((staging, staged)) = &draft.staged {
            renameat(&**staging, staged, &*draft.dir, &draft.name)?;
            // Two names of one file stay both: somebody else gave it this one meanwhile. Otherwise there is nothing to remove.
            let _ = unlinkat(&**staging, staged, AtFlags::empty());
            draft.staged = None;
        }
        Ok(())
    }

    /// Gives `make` the staging directory and a new name in it, again when the sweep of another process removed the directory meanwhile.
    fn stage<T>(&self, make: impl Fn(&OwnedFd, &str) -> Result<T, Errno>) -> io::Result<(T, (Arc<OwnedFd>, String))> {
        for _ in 0..STAGING_TRIES {
            let staging = match self.dir(STAGING) {
                Ok(staging) => staging,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let staged = self.unique();
            match make(&staging, &staged) {
                Ok(made) => return Ok((made, (staging, staged))),
                Err(Errno::NOENT) => self.forget(STAGING),
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::Error::other("the staging directory is removed again and again"))
    }

    fn link(&self, file: &OwnedFd, dir: &OwnedFd, name: &str) -> Result<(), Errno> {
        if self.direct_link.load(Ordering::Relaxed) {
            match linkat(file, c"", dir, name, AtFlags::EMPTY_PATH) {
                // Without CAP_DAC_READ_SEARCH older kernels answer ENOENT, which also means that the directory is gone: /proc tells them apart.
                Err(Errno::NOENT | Errno::PERM) => {}
                other => return other,
            }
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            let result = linkat(rustix::fs::CWD, &path, dir, name, AtFlags::SYMLINK_FOLLOW);
            if result.is_ok() {
                self.direct_link.store(false, Ordering::Relaxed);
            }
            return result;
        }
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        linkat(rustix::fs::CWD, &path, dir, name, AtFlags::SYMLINK_FOLLOW)
    }

    fn unique(&self) -> String {
        format!("{}-{}-{:016x}", std::process::id(), self.next.fetch_add(1, Ordering::Relaxed), fastrand::u64(..))
    }

    fn forget(&self, path: &str) {
        lock(&self.dirs).remove(path);
    }

    /// The directory of a path under the root, made if missing.
    fn dir(&self, path: &str) -> io::Result<Arc<OwnedFd>> {
        if path.is_empty() {
            return Ok(self.root_fd.clone());
        }
        if let Some(dir) = lock(&self.dirs).get(path) {
            return Ok(dir.clone());
        }
        let dir = match openat(&*self.root_fd, path, DIR_FLAGS, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => self.make(path)?,
            Err(error) => return Err(error.into()),
        };
        let dir = Arc::new(dir);
        let mut dirs = lock(&self.dirs);
        if dirs.len() >= MAX_DIRS {
            dirs.clear();
        }
        dirs.insert(path.into(), dir.clone());
        Ok(dir)
    }

    fn make(&self, path: &str) -> io::Result<OwnedFd> {
        for (end, _) in path.match_indices('/').chain([(path.len(), "")]) {
            match mkdirat(&*self.root_fd, &path[..end], DIR_MODE) {
                Ok(()) => self.new_dirs.store(true, Ordering::Relaxed),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(openat(&*self.root_fd, path, DIR_FLAGS, Mode::empty())?)
    }

    /// Removes staged files that nobody holds, and the staging directory when it is empty.
    pub fn sweep(&self) {
        self.forget(STAGING);
        let path = self.root.join(STAGING);
        let Ok(entries) = std::fs::read_dir(&path) else { return };
        for entry in entries.flatten() {
            if let Ok(file) = std::fs::File::open(entry.path())
                && flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
            {
                // Gone already is as good.
                let _ = std::fs::remove_file(entry.path());
            }
        }
        // Fails while another process stages files, as it should.
        let _ = std::fs::remove_dir(&path);
    }
}

/// Tells a file from every other that ever has its name: each object is a new file, and one that somebody writes to gets another time.
fn etag_of(is: &Stat) -> String {
    format!("{:x}-{:x}-{:x}", is.st_ino, is.st_mtime, is.st_mtime_nsec)
}

impl Draft {
    /// What [`etag_of`] says of the file once it is whole; nothing if the system does not say.
    pub fn etag(&self) -> String {
        fstat(&self.file).as_ref().map(etag_of).unwrap_or_default()
    }

    /// Appends to the file.
    pub fn write(&mut self, chunks: &[Bytes]) -> io::Result<()> {
        write_all(self.file.as_fd(), chunks)
    }

    /// The directory that the file will be in.
    pub fn dir(&self) -> &Arc<OwnedFd> {
        &self.dir
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some((staging, staged)) = self.staged.take() {
            // The sweep at the next start takes what this cannot.
            let _ = unlinkat(&*staging, &staged, AtFlags::empty());
        }
    }
}

fn write_all(file: std::os::fd::BorrowedFd<'_>, chunks: &[Bytes]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = chunks.iter().filter(|chunk| !chunk.is_empty()).map(|chunk| IoSlice::new(chunk)).collect();
    let mut rest = &mut slices[..];
    while !rest.is_empty() {
        let written = match rustix::io::writev(file, &rest[..rest.len().min(MAX_SLICES)]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => written,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        IoSlice::advance_slices(&mut rest, written);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
