//! Manifests into the local store: the bytes came with the job's commit, the files follow.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fetchbox_failpoint::fail_point;
use fetchbox_model::key::ObjectKey;
use prost::Message;

use crate::accept::ManifestBlob;
use crate::core::Core;
use crate::db::Space;
use crate::keys;
use crate::writer::Command;

/// Files written before one sync makes all of them durable.
const ROUND: usize = 256;
/// How long to wait after a failure, such as a full disk.
const RETRY: Duration = Duration::from_secs(1);
const IDLE: Duration = Duration::from_secs(5);

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
    let mut below = head;
    for item in core.db.range(Space::Manifests, &head.to_be_bytes(), &[0xff; 9]).take(ROUND) {
        let (key, value) = item.map_err(|error| error.0)?;
        let blob = ManifestBlob::decode(value).map_err(|error| format!("a manifest is damaged: {error}"))?;
        let body = blob.body().map_err(|error| error.to_string())?;
        fail_point!("hub::manifest::before");
        if let Err(error) = write(root, &blob, &body) {
            if below == head {
                return Err(error);
            }
            // What came before is as good as it is; the rest is tried again.
            break;
        }
        fail_point!("hub::manifest::after");
        below = keys::number(Some(&key)) + 1;
    }
    if below > head {
        sync(root)?;
    }
    Ok(below)
}

fn write(root: &Path, blob: &ManifestBlob, body: &[u8]) -> Result<(), String> {
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
        .and_then(|mut file| file.write_all(body))
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
