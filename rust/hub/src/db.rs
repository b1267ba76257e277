//! The database: the only file that names Fjall.
//!
//! Seven keyspaces with small memtables, because the journal can be dropped only when every keyspace it touches was flushed. A database is created aside
//! and renamed into place, so a kill in between leaves nothing that looks like a database. Every key may stand only once in a [`Batch`]: Fjall gives
//! all items of a batch one sequence number.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use fjall::compaction::Leveled;
use fjall::config::{BlockSizePolicy, CompressionPolicy};
use fjall::{AbstractTree, CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Snapshot};

use crate::config::Durability;
use crate::error::HubOpenError;

const MIB: u64 = 1 << 20;
const CACHE_BYTES: u64 = 64 * MIB;
/// Fjall's own soft limit of all journals.
const JOURNAL_BYTES: u64 = 128 * MIB;
/// Fjall does not always keep its limit: beyond this all memtables are rotated, which lets it drop journals.
const JOURNAL_ROTATE_BYTES: u64 = 192 * MIB;

/// Size of a table. Most keys come in order, so that what is new overlaps the end of what is there: a table of Fjall's 64 MiB would be written anew
/// each time.
const TABLE_BYTES: u64 = 16 * MIB;

/// A database error in words; there is nothing to do about one but to end.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct DbError(pub String);

impl From<fjall::Error> for DbError {
    fn from(error: fjall::Error) -> Self {
        // Fjall's Display is its Debug for most errors, which is what one wants to read here.
        Self(format!("database: {error:?}"))
    }
}

/// A keyspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Space {
    /// Sequence, offsets, heads, totals: small and rewritten all the time.
    Meta,
    /// The streams' records and the outbox.
    Log,
    /// A record per job.
    Jobs,
    /// Packs of outcomes.
    Outcomes,
    /// Reservations and the listings' orders.
    Index,
    /// Manifests on their way to the local store.
    Manifests,
    /// What is remembered of URLs.
    Reuse,
}

impl Space {
    const ALL: [(Space, &str, u64); 7] = [
        (Space::Meta, "meta", 4 * MIB),
        (Space::Log, "log", 16 * MIB),
        (Space::Jobs, "jobs", 16 * MIB),
        (Space::Outcomes, "outcomes", 8 * MIB),
        (Space::Index, "index", 8 * MIB),
        (Space::Manifests, "manifests", 4 * MIB),
        (Space::Reuse, "reuse", 8 * MIB),
    ];

    /// All of them.
    pub fn every() -> impl Iterator<Item = Space> {
        Space::ALL.into_iter().map(|(space, _, _)| space)
    }
}

/// A key and its value.
pub type Item = Result<(Bytes, Bytes), DbError>;

/// What one commit changes; each key at most once.
#[derive(Debug, Default)]
pub struct Batch {
    items: Vec<(Space, Bytes, Option<Bytes>)>,
}

impl Batch {
    /// Sets a key.
    pub fn put(&mut self, space: Space, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.items.push((space, key.into(), Some(value.into())));
    }

    /// Deletes a key.
    pub fn delete(&mut self, space: Space, key: impl Into<Bytes>) {
        self.items.push((space, key.into(), None));
    }
}

/// What a keyspace holds, dead or alive.
#[derive(Debug, Clone, Copy)]
pub struct Fill {
    /// Bytes of its tables.
    pub bytes: u64,
    /// Items of tables and memtable; a deletion is one, and what it deletes another.
    pub items: u64,
    /// Deletions among them that are not carried out yet.
    pub deletions: u64,
}

/// The open database.
pub struct Db {
    database: Database,
    spaces: Vec<Keyspace>,
    persist: PersistMode,
}

impl Db {
    /// Opens the database in `directory`, creating it first when there is none; `first` is written with the creation.
    pub fn open(directory: &Path, durability: Durability, first: Batch) -> Result<Db, HubOpenError> {
        let path = directory.join("db");
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error: DbError| HubOpenError::Database { path, message: error.0 }
        };
        remove_leftovers(directory)?;
        if !path.exists() {
            let aside = directory.join(format!("db.new-{}", std::process::id()));
            {
                let db = Self::open_at(&aside, PersistMode::SyncAll).map_err(failed(&aside))?;
                db.commit(first).map_err(failed(&aside))?;
            }
            std::fs::rename(&aside, &path).map_err(io("rename the new database to", &path))?;
            std::fs::File::open(directory).and_then(|d| d.sync_all()).map_err(io("sync", directory))?;
        }
        let persist = match durability {
            Durability::Sync => PersistMode::SyncData,
            Durability::Buffer => PersistMode::Buffer,
        };
        Self::open_at(&path, persist).map_err(failed(&path))
    }

    fn open_at(path: &Path, persist: PersistMode) -> Result<Db, DbError> {
        let database = Database::builder(path)
            .cache_size(CACHE_BYTES)
            .journal_compression(CompressionType::None)
            .max_journaling_size(JOURNAL_BYTES)
            // The batch asks for what it wants; without this Fjall would flush once more.
            .manual_journal_persist(true)
            // One of them only flushes. While all others compact, it hands every further order to compact back to the queue and takes it again, as
            // fast as it can: with one other that was a tenth of the hub's CPU.
            .worker_threads(4)
            .open()?;
        let spaces = Space::ALL
            .into_iter()
            .map(|(space, name, memtable)| database.keyspace(name, || options(space, memtable)))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Db { database, spaces, persist })
    }

    fn space(&self, space: Space) -> &Keyspace {
        &self.spaces[space as usize]
    }

    /// The newest value of a key.
    pub fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, DbError> {
        Ok(self.space(space).get(key)?.map(Into::into))
    }

    /// Items with `from <= key < to`, ascending; reversible.
    pub fn range(&self, space: Space, from: &[u8], to: &[u8]) -> impl DoubleEndedIterator<Item = Item> + use<> {
        self.space(space).range(from..to).map(pair)
    }

    /// A view that later commits do not change.
    pub fn view(&self) -> View<'_> {
        View { db: self, snapshot: self.database.snapshot() }
    }

    /// Applies a batch, all or nothing; durable as configured when this returns. After an error nothing may be written any more.
    pub fn commit(&self, batch: Batch) -> Result<(), DbError> {
        let mut write = fjall::OwnedWriteBatch::with_capacity(self.database.clone(), batch.items.len()).durability(Some(self.persist));
        for (space, key, value) in batch.items {
            match value {
                Some(value) => write.insert(self.space(space), key, value),
                None => write.remove(self.space(space), key),
            }
        }
        Ok(write.commit()?)
    }

    /// Makes everything durable that was committed without.
    pub fn sync(&self) -> Result<(), DbError> {
        Ok(self.database.persist(PersistMode::SyncAll)?)
    }

    /// Bytes on disk, journals included.
    pub fn disk_bytes(&self) -> u64 {
        self.database.disk_space().unwrap_or(0)
    }

    /// What a keyspace holds. Walks through its memtable: not for every second.
    pub fn fill(&self, space: Space) -> Fill {
        let space = self.space(space);
        let fresh = space.tree.active_memtable().iter().filter(|item| item.is_tombstone()).count() as u64;
        Fill { bytes: space.disk_space(), items: space.approximate_len() as u64, deletions: space.tree.tombstone_count() + fresh }
    }

    /// Has the memtable of a keyspace written to a table, soon.
    pub fn rotate(&self, space: Space) -> Result<(), DbError> {
        self.space(space).rotate_memtable()?;
        Ok(())
    }

    /// Whether all that was rotated is in tables.
    pub fn is_flushed(&self, space: Space) -> bool {
        self.space(space).tree.sealed_memtable_count() == 0
    }

    /// Writes all tables of a keyspace anew, without what was deleted. Takes as long as reading and writing them. Other compactions of the keyspace wait
    /// meanwhile, and Fjall's threads that come to one; memtables are still flushed, so that writing goes on.
    pub fn compact(&self, space: Space) -> Result<(), DbError> {
        Ok(self.space(space).major_compact()?)
    }

    /// Lets Fjall drop journals when they have grown past the limit. May take a while: not for the writer.
    pub fn bound_journal(&self) -> Result<(), DbError> {
        if self.database.journal_disk_space()? > JOURNAL_ROTATE_BYTES {
            for space in &self.spaces {
                space.rotate_memtable()?;
            }
        }
        Ok(())
    }
}

/// A state of the database that stands still.
pub struct View<'a> {
    db: &'a Db,
    snapshot: Snapshot,
}

impl View<'_> {
    /// The value of a key in this view.
    pub fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, DbError> {
        Ok(self.snapshot.get(self.db.space(space), key)?.map(Into::into))
    }

    /// Items with `from <= key < to`, ascending; reversible.
    pub fn range(&self, space: Space, from: &[u8], to: &[u8]) -> impl DoubleEndedIterator<Item = Item> + use<> {
        self.snapshot.range(self.db.space(space), from..to).map(pair)
    }
}

fn pair(guard: fjall::Guard) -> Item {
    let (key, value) = guard.into_inner()?;
    Ok((key.into(), value.into()))
}

fn options(space: Space, memtable: u64) -> KeyspaceCreateOptions {
    let options = KeyspaceCreateOptions::default()
        .max_memtable_size(memtable)
        .manual_journal_persist(true)
        .compaction_strategy(Arc::new(Leveled::default().with_table_target_size(TABLE_BYTES)));
    match space {
        // Batches are compressed by whoever made them; large blocks keep the index small.
        Space::Log | Space::Manifests => {
            options.data_block_compression_policy(CompressionPolicy::disabled()).data_block_size_policy(BlockSizePolicy::all(16 << 10))
        }
        _ => options.data_block_compression_policy(CompressionPolicy::all(CompressionType::Lz4)),
    }
}

/// Databases whose creation was cut short.
fn remove_leftovers(directory: &Path) -> Result<(), HubOpenError> {
    for entry in std::fs::read_dir(directory).map_err(io("read", directory))? {
        let entry = entry.map_err(io("read", directory))?;
        if entry.file_name().to_string_lossy().starts_with("db.new-") {
            std::fs::remove_dir_all(entry.path()).map_err(io("remove", &entry.path()))?;
        }
    }
    Ok(())
}

/// Turns an I/O error into one that says what was done to what.
pub fn io(doing: &str, path: &Path) -> impl FnOnce(std::io::Error) -> HubOpenError + use<> {
    let doing = format!("{doing} {}", path.display());
    move |source| HubOpenError::Io { doing, source }
}

/// Where the pieces of a hub's directory lie.
pub fn side_file(directory: &Path) -> PathBuf {
    directory.join("sequence")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_there_after_reopening_and_views_stand_still() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = Batch::default();
        first.put(Space::Meta, "format", "1");
        let db = Db::open(dir.path(), Durability::Sync, first).unwrap();
        let view = db.view();
        let mut batch = Batch::default();
        batch.put(Space::Jobs, "a", "1");
        batch.put(Space::Jobs, "b", "2");
        db.commit(batch).unwrap();
        assert_eq!(view.get(Space::Jobs, b"a").unwrap(), None);
        drop(view);
        drop(db);
        let db = Db::open(dir.path(), Durability::Sync, Batch::default()).unwrap();
        assert_eq!(db.get(Space::Meta, b"format").unwrap().as_deref(), Some(&b"1"[..]));
        let keys: Vec<Bytes> = db.range(Space::Jobs, b"a", b"c").rev().map(|item| item.unwrap().0).collect();
        assert_eq!(keys, ["b", "a"]);
    }

    #[test]
    fn a_creation_that_was_cut_short_is_begun_again() {
        let dir = tempfile::tempdir().unwrap();
        let half = dir.path().join("db.new-1");
        std::fs::create_dir(&half).unwrap();
        std::fs::write(half.join("version"), b"half").unwrap();
        Db::open(dir.path(), Durability::Buffer, Batch::default()).unwrap();
        assert!(!half.exists() && dir.path().join("db").exists());
    }
}
