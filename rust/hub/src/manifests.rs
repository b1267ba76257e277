//! Manifests into the local store: the bytes came with the job's commit, the files follow.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes};
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
/// Manifests beyond this size are not compressed.
const WORTH_PACKING: usize = 4 << 10;
/// Files written before one sync makes all of them durable.
const ROUND: usize = 256;
/// Rounds that had less to do begin so long after one another: what each costs beside its files is a commit and a sync, and nobody waits for the files.
const GAP: Duration = Duration::from_millis(50);
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
        if self.blobs.iter().any(|blob| blob.body.len() > WORTH_PACKING) {
            self.literal()
        } else {
            lz4_flex::block::compress_prepend_size(&self.encode_to_vec())
        }
    }

    /// The value as a block that is one run of literals: what lies in the database for a moment only is not worth the time that compressing takes.
    fn literal(&self) -> Vec<u8> {
        let len = self.encoded_len();
        let mut value = Vec::with_capacity(4 + 2 + len / 255 + len);
        value.put_u32_le(len as u32);
        value.put_u8((len.min(15) as u8) << 4);
        if let Some(rest) = len.checked_sub(15) {
            value.put_bytes(0xff, rest / 255);
            value.put_u8((rest % 255) as u8);
        }
        self.encode_raw(&mut value);
        value
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
        // What was accepted just before the end is still written, as far as one round goes; the next hub does the rest.
        let last = core.manifests.closed();
        let pause = match round(core, &root, head) {
            Ok((below, _)) if below == head => IDLE,
            Ok((below, files)) => {
                if core.ask(|reply| Command::ManifestsWritten { below, reply }).is_err() {
                    return;
                }
                head = below;
                if files < ROUND {
                    core.manifests.rest(GAP);
                }
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
        if last {
            return;
        }
        if !pause.is_zero() {
            core.manifests.wait(pause);
        }
    }
}

/// Writes a few hundred files and makes them durable; the sequence below which all are, and how many files that were.
fn round(core: &Core, root: &Path, head: u64) -> Result<(u64, usize), String> {
    let (mut below, mut files) = (head, 0);
    let mut directories = Directories { root, open: HashMap::new(), nameless: true };
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
    Ok((below, files))
}

/// The directories of job types, opened: a path from the root would be walked four times for each manifest.
struct Directories<'a> {
    root: &'a Path,
    open: HashMap<String, File>,
    /// Whether files can be made without a name and linked when they are whole.
    nameless: bool,
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
        write_at(parent, job, name, &blob.body, &mut self.nameless).map_err(failed)
    }
}

/// Writes a file into a directory of its own below an open one, so that it appears whole: without a name until then where the file system has that,
/// otherwise aside and then renamed.
fn write_at(parent: &File, directory: &str, name: &str, body: &[u8], nameless: &mut bool) -> std::io::Result<()> {
    let (made, path) = (CString::new(directory)?, CString::new(format!("{directory}/{name}"))?);
    // SAFETY: `parent` is open, and the name is NUL-terminated and outlives the call.
    if unsafe { libc::mkdirat(parent.as_raw_fd(), made.as_ptr(), 0o755) } != 0 {
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::AlreadyExists {
            return Err(error);
        }
    }
    if *nameless {
        *nameless = link_at(parent, &path, body)?;
        if *nameless {
            return Ok(());
        }
    }
    rename_at(parent, &CString::new(format!("{directory}/.{name}.tmp"))?, &path, body)
}

/// Makes a file without a name and links it when it is whole; false when that cannot be done here, or there is a file of that name.
fn link_at(parent: &File, path: &CStr, body: &[u8]) -> std::io::Result<bool> {
    let flags = libc::O_WRONLY | libc::O_TMPFILE | libc::O_CLOEXEC;
    let Ok(mut file) = open_at(parent, c".", flags) else { return Ok(false) };
    file.write_all(body)?;
    // SAFETY: both descriptors are open, and the names are NUL-terminated and outlive the call.
    Ok(unsafe { libc::linkat(file.as_raw_fd(), c"".as_ptr(), parent.as_raw_fd(), path.as_ptr(), libc::AT_EMPTY_PATH) } == 0)
}

/// Writes a file aside and renames it.
fn rename_at(parent: &File, aside: &CStr, path: &CStr, body: &[u8]) -> std::io::Result<()> {
    let mut file = open_at(parent, aside, libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC | libc::O_CLOEXEC)?;
    let parent = parent.as_raw_fd();
    let written = file.write_all(body).and_then(|()| {
        // SAFETY: `parent` is open, and the names are NUL-terminated and outlive the call.
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

fn open_at(parent: &File, path: &CStr, flags: libc::c_int) -> std::io::Result<File> {
    // SAFETY: `parent` is open, and the name is NUL-terminated and outlives the call.
    let opened = unsafe { libc::openat(parent.as_raw_fd(), path.as_ptr(), flags, 0o644) };
    if opened < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened and is nobody else's.
    Ok(unsafe { File::from_raw_fd(opened) })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_come_back_compressed_or_not() {
        let blob = |size: usize| Blob { job_id: "j".into(), job_type: "t".into(), body: vec![b'{'; size].into() };
        for sizes in [&[10usize, 10, 10][..], &[WORTH_PACKING], &[WORTH_PACKING + 1], &[7, 100_000], &[]] {
            let pack = Pack { blobs: sizes.iter().map(|&size| blob(size)).collect() };
            assert_eq!(Pack::unpack(&pack.pack()).unwrap(), pack);
        }
        // Every length at which the run's own length changes its form.
        for size in (0..600).chain([65_535, 65_536]) {
            let pack = Pack { blobs: vec![blob(size)] };
            assert_eq!(Pack::unpack(&pack.literal()).unwrap(), pack);
        }
        assert!(Pack::unpack(b"xx").is_err() && Pack::unpack(&[0xff; 9]).is_err());
    }

    #[test]
    fn a_manifest_appears_whole_replaces_what_is_there_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let parent = File::open(dir.path()).unwrap();
        for nameless in [true, false] {
            let job = format!("job-{nameless}");
            for body in [&b"first"[..], &[b'b'; 100_000], b""] {
                let mut able = nameless;
                write_at(&parent, &job, "manifest.json", body, &mut able).unwrap();
                let names: Vec<_> = std::fs::read_dir(dir.path().join(&job)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
                assert_eq!(
                    (names, std::fs::read(dir.path().join(&job).join("manifest.json")).unwrap()),
                    (vec!["manifest.json".into()], body.to_vec())
                );
            }
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
