//! Manifests into the local store: the bytes came with the job's commit, the files follow.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fetchbox_failpoint::fail_point;
use fetchbox_model::key::ObjectKey;
use prost::Message;

use crate::core::Core;
use crate::db::Space;
use crate::error::HubError;
use crate::keys;
use crate::writer::Command;

/// Manifests of a commit share values of about this size.
pub const PACK_BYTES: usize = 256 << 10;
/// Files written before one sync makes all of them durable.
const ROUND: usize = 256;
/// How long to wait after a failure, such as a full disk.
const RETRY: Duration = Duration::from_secs(1);
const IDLE: Duration = Duration::from_secs(5);

/// A manifest on its way to the local store.
#[derive(Clone, PartialEq, Message)]
pub struct Blob {
    /// Of the job that it belongs to.
    #[prost(string, tag = "1")]
    pub job_id: String,
    /// Of the job, too.
    #[prost(string, tag = "2")]
    pub job_type: String,
    /// The manifest itself.
    #[prost(bytes = "bytes", tag = "3")]
    pub body: Bytes,
}

/// Manifests of one commit: a value, as an lz4 block with its length before it.
#[derive(Clone, PartialEq, Message)]
pub struct Pack {
    /// In the order in which their jobs were accepted.
    #[prost(message, repeated, tag = "1")]
    pub blobs: Vec<Blob>,
}

impl Pack {
    /// The value.
    pub fn pack(&self) -> Vec<u8> {
        lz4_flex::block::compress_prepend_size(&self.encode_to_vec())
    }

    /// What [`Self::pack`] made.
    pub fn unpack(value: &[u8]) -> Result<Self, HubError> {
        let damaged = |error: &dyn std::fmt::Display| HubError::Fatal(format!("manifests are damaged: {error}"));
        let raw = lz4_flex::block::decompress_size_prepended(value).map_err(|error| damaged(&error))?;
        Self::decode(Bytes::from(raw)).map_err(|error| damaged(&error))
    }
}

/// Writes manifests until told to end. A file that cannot be written stays in the database and is tried again.
pub fn run(core: &Arc<Core>) {
    let Some(root) = core.config.store_root.clone() else { return };
    let head = core.db.get(Space::Meta, keys::MANIFEST_HEAD).ok().flatten();
    let mut head = keys::number(head.as_deref());
    loop {
        let pause = match round(core, &root, head) {
            Ok(below) if below == head => IDLE,
            Ok(below) => {
                if core.ask(|reply| Command::ManifestsWritten { below, reply }).is_err() {
                    return;
                }
                head = below;
                Duration::ZERO
            }
            Err(error) => {
                core.manifest_trouble.lock().replace(error);
                RETRY
            }
        };
        if pause == IDLE {
            core.manifest_trouble.lock().take();
        }
        if pause.is_zero() && !core.manifests.closed() {
            continue;
        }
        if !core.manifests.wait(pause) {
            return;
        }
    }
}

/// Writes a few hundred files and makes them durable; the sequence below which all are.
fn round(core: &Core, root: &Path, head: u64) -> Result<u64, String> {
    let (mut below, mut files) = (head, 0);
    let mut directories = Directories { root, open: HashMap::new() };
    'packs: for item in core.db.range(Space::Manifests, &head.to_be_bytes(), &[0xff; 9]) {
        let (key, value) = item.map_err(|error| error.0)?;
        for blob in Pack::unpack(&value).map_err(|error| error.to_string())?.blobs {
            fail_point!("hub::manifest::before");
            if let Err(error) = directories.write(&blob) {
                if below == head {
                    return Err(error);
                }
                // What came before is as good as it is; the rest is tried again.
                break 'packs;
            }
            fail_point!("hub::manifest::after");
            files += 1;
        }
        below = keys::number(Some(&key)) + 1;
        if files >= ROUND {
            break;
        }
    }
    if below > head {
        sync(root)?;
    }
    Ok(below)
}

/// The directories of job types, opened: a path from the root would be walked four times for each manifest.
struct Directories<'a> {
    root: &'a Path,
    open: HashMap<String, File>,
}

impl Directories<'_> {
    fn write(&mut self, blob: &Blob) -> Result<(), String> {
        let key = String::from(ObjectKey::manifest(&blob.job_type, &blob.job_id));
        let failed = |error: std::io::Error| format!("cannot write {}: {error}", self.root.join(&key).display());
        let mut parts = key.rsplitn(3, '/');
        let (Some(name), Some(job), Some(parent)) = (parts.next(), parts.next(), parts.next()) else { return Ok(()) };
        if !self.open.contains_key(parent) {
            let path = self.root.join(parent);
            let opened = DirBuilder::new().recursive(true).mode(0o755).create(&path).and_then(|()| File::open(&path)).map_err(failed)?;
            self.open.insert(parent.to_owned(), opened);
        }
        let Some(parent) = self.open.get(parent) else { return Ok(()) };
        write_at(parent, job, name, &blob.body).map_err(failed)
    }
}

/// Writes a file into a directory of its own below an open one: aside first, then renamed.
fn write_at(parent: &File, directory: &str, name: &str, body: &[u8]) -> std::io::Result<()> {
    let (made, aside, path) =
        (CString::new(directory)?, CString::new(format!("{directory}/.{name}.tmp"))?, CString::new(format!("{directory}/{name}"))?);
    let parent = parent.as_raw_fd();
    // SAFETY: in all four calls `parent` is open, and the names are NUL-terminated and outlive the call.
    if unsafe { libc::mkdirat(parent, made.as_ptr(), 0o755) } != 0 {
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::AlreadyExists {
            return Err(error);
        }
    }
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC | libc::O_CLOEXEC;
    // SAFETY: see above.
    let opened = unsafe { libc::openat(parent, aside.as_ptr(), flags, 0o644) };
    if opened < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened and is nobody else's.
    let mut file = unsafe { File::from_raw_fd(opened) };
    let written = file.write_all(body).and_then(|()| {
        // SAFETY: see above.
        if unsafe { libc::renameat(parent, aside.as_ptr(), parent, path.as_ptr()) } == 0 {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    });
    if written.is_err() {
        // Half a file helps nobody, and its space may be what is missing.
        // SAFETY: see above.
        unsafe { libc::unlinkat(parent, aside.as_ptr(), 0) };
    }
    written
}

/// One sync of the store's file system for the whole round.
fn sync(root: &Path) -> Result<(), String> {
    let directory = File::open(root).map_err(|error| format!("cannot open {}: {error}", root.display()))?;
    // SAFETY: syncfs takes a descriptor, which `directory` keeps open.
    if unsafe { libc::syncfs(directory.as_raw_fd()) } != 0 {
        return Err(format!("cannot sync {}: {}", root.display(), std::io::Error::last_os_error()));
    }
    Ok(())
}
