//! A copy of the whole database while it is worked on: one state of it that stands still, written into a new directory.

use std::path::Path;

use serde_json::{Value, json};

use crate::config::Durability;
use crate::core::{Core, read_failed};
use crate::db::{Batch, Db, Space, io};
use crate::error::HubError;

/// Bytes of one commit of the copy.
const BATCH_BYTES: usize = 4 << 20;

/// Copies the database into a directory that must not exist yet: it can be opened as `hub.path`.
pub fn write(core: &Core, path: &Path) -> Result<Value, HubError> {
    let refused = |message: String| HubError::refused("INVALID_PAYLOAD", message);
    if !path.is_absolute() {
        return Err(refused(format!("{} is not an absolute path", path.display())));
    }
    if path.exists() {
        return Err(refused(format!("{} exists already: name a new directory", path.display())));
    }
    // Made aside and renamed, so that half a copy is never taken for one.
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let aside = path.with_file_name(format!("{name}.part"));
    let failed = |error: &dyn std::fmt::Display| refused(format!("the copy failed: {error}"));
    std::fs::create_dir_all(&aside).map_err(|error| failed(&io("create", &aside)(error)))?;
    let copied = copy(core, &aside);
    if copied.is_err() {
        // Half a copy helps nobody.
        let _ = std::fs::remove_dir_all(&aside);
    }
    let (items, bytes) = copied?;
    std::fs::rename(&aside, path).map_err(|error| failed(&io("rename the copy to", path)(error)))?;
    Ok(json!({"path": path, "items": items, "bytes": bytes}))
}

fn copy(core: &Core, directory: &Path) -> Result<(u64, u64), HubError> {
    let failed = |error: &dyn std::fmt::Display| HubError::refused("INVALID_PAYLOAD", format!("the copy failed: {error}"));
    let view = core.db.view();
    let target = Db::open(directory, Durability::Buffer, Batch::default()).map_err(|error| failed(&error))?;
    let (mut items, mut bytes) = (0, 0);
    for space in Space::every() {
        let (mut batch, mut size) = (Batch::default(), 0);
        // No key is longer than a name and an id.
        for item in view.range(space, &[], &[0xff; 2048]) {
            let (key, value) = item.map_err(read_failed)?;
            size += key.len() + value.len();
            items += 1;
            batch.put(space, key, value);
            if size >= BATCH_BYTES {
                bytes += size as u64;
                size = 0;
                target.commit(std::mem::take(&mut batch)).map_err(|error| failed(&error))?;
                if core.keep.signal.closed() {
                    return Err(HubError::Unavailable("the hub is closing".into()));
                }
            }
        }
        bytes += size as u64;
        target.commit(batch).map_err(|error| failed(&error))?;
    }
    target.sync().map_err(|error| failed(&error))?;
    Ok((items, bytes))
}
