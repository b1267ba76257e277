//! Manifests into the local store: the bytes came with the job's commit, the files follow.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
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
    'packs: for item in core.db.range(Space::Manifests, &head.to_be_bytes(), &[0xff; 9]) {
        let (key, value) = item.map_err(|error| error.0)?;
        for blob in Pack::unpack(&value).map_err(|error| error.to_string())?.blobs {
            fail_point!("hub::manifest::before");
            if let Err(error) = write(root, &blob) {
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

fn write(root: &Path, blob: &Blob) -> Result<(), String> {
    let path = root.join(ObjectKey::manifest(&blob.job_type, &blob.job_id).as_str());
    let failed = |error: std::io::Error| format!("cannot write {}: {error}", path.display());
    let directory = path.parent().unwrap_or(root);
    DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(failed)?;
    let aside = directory.join(".manifest.json.tmp");
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(&aside)
        .and_then(|mut file| file.write_all(&blob.body))
        .and_then(|()| std::fs::rename(&aside, &path));
    if written.is_err() {
        // Half a file helps nobody, and its space may be what is missing.
        let _ = std::fs::remove_file(&aside);
    }
    written.map_err(failed)
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
