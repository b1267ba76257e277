//! The store as the hub needs it for housekeeping: look at objects, remove some, end uploads that nobody goes on with. Downloads never come here.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::path::{Component, Path, PathBuf};

use fetchbox_model::key::{ObjectKey, file_url};
use sha2::{Digest, Sha256};
use url::Url;

/// Where a local store's unnamed files get a name for a moment, see the engine's local store.
const STAGING: &str = ".fetchbox-staging";
const READ_BYTES: usize = 1 << 20;

/// A store. Calls block; errors are for people.
pub trait Shelf: Send + Sync {
    /// The URL of an object by bucket ("" for the configured one) and key; `None` where it cannot be told, as in a bucket that is not configured.
    fn url(&self, _bucket: &str, _key: &ObjectKey) -> Option<String> {
        None
    }

    /// The size of the object behind each URL, `None` for one that is not there.
    fn sizes(&self, urls: &[String]) -> Result<Vec<Option<u64>>, String>;

    /// SHA-256 of the object behind a URL, `None` for one that is not there.
    fn sha256(&self, url: &str) -> Result<Option<[u8; 32]>, String>;

    /// Removes objects by bucket ("" for the configured one) and key; those that were there.
    fn remove(&self, objects: &[(String, String)]) -> Result<Vec<(String, String)>, String>;

    /// Removes what only a crash leaves behind: temporary files that nobody holds, and unfinished uploads of which `is_over` says, by key and time of
    /// their beginning in ms, that nobody goes on with them. How many files and uploads.
    fn tidy(&self, is_over: &dyn Fn(&str, u64) -> bool) -> Result<(u64, u64), String>;
}

/// A directory.
#[derive(Debug)]
pub struct Directory {
    root: PathBuf,
    /// Buckets are directories below the root.
    buckets: Vec<String>,
}

impl Directory {
    /// The store below a root.
    pub fn new(root: PathBuf, buckets: Vec<String>) -> Self {
        Self { root, buckets }
    }

    fn path(&self, url: &str) -> Option<PathBuf> {
        let path = Url::parse(url).ok()?.to_file_path().ok()?;
        let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        let real = std::fs::canonicalize(&self.root).ok();
        (plain && (path.starts_with(&self.root) || real.is_some_and(|root| path.starts_with(root)))).then_some(path)
    }
}

impl Shelf for Directory {
    fn url(&self, bucket: &str, key: &ObjectKey) -> Option<String> {
        let known = bucket.is_empty() || self.buckets.iter().any(|name| name == bucket);
        known.then(|| file_url(&self.root.join(bucket), key))
    }

    fn sizes(&self, urls: &[String]) -> Result<Vec<Option<u64>>, String> {
        let size = |url: &String| match self.path(url).map(|path| (std::fs::symlink_metadata(&path), path)) {
            None => Ok(None),
            Some((Ok(meta), _)) => Ok(meta.is_file().then_some(meta.len())),
            Some((Err(error), path)) => absent(error, &path),
        };
        urls.iter().map(size).collect()
    }

    fn sha256(&self, url: &str) -> Result<Option<[u8; 32]>, String> {
        let Some(path) = self.path(url) else { return Ok(None) };
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) => return absent(error, &path),
        };
        let (mut hash, mut buffer) = (Sha256::new(), vec![0; READ_BYTES]);
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(Some(hash.finalize().into())),
                Ok(read) => hash.update(&buffer[..read]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return absent(error, &path),
            }
        }
    }

    fn remove(&self, objects: &[(String, String)]) -> Result<Vec<(String, String)>, String> {
        let mut removed = Vec::new();
        for (bucket, key) in objects {
            // Keys hold no dot segments and no leading slash; a bucket is one of the configuration.
            let root = self.root.join(bucket);
            let path = root.join(key);
            match std::fs::remove_file(&path) {
                Ok(()) => {
                    removed.push((bucket.clone(), key.clone()));
                    // Fails while the directory holds anything, as it should.
                    let _ = path.parent().filter(|parent| *parent != root).map(std::fs::remove_dir);
                }
                Err(error) => {
                    absent::<()>(error, &path)?;
                }
            }
        }
        Ok(removed)
    }

    fn tidy(&self, _is_over: &dyn Fn(&str, u64) -> bool) -> Result<(u64, u64), String> {
        let mut files = 0;
        for bucket in std::iter::once("").chain(self.buckets.iter().map(String::as_str)) {
            files += sweep(&self.root.join(bucket).join(STAGING));
        }
        Ok((files, 0))
    }
}

/// Removes staged files that no worker holds locked. Like the engine's own sweep, for a store whose workers do not come back.
fn sweep(staging: &Path) -> u64 {
    let mut removed = 0;
    for entry in std::fs::read_dir(staging).into_iter().flatten().flatten() {
        let Ok(file) = File::open(entry.path()) else { continue };
        // SAFETY: flock takes a descriptor, which `file` keeps open, and a flag.
        let free = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0;
        // Gone already is as good.
        removed += u64::from(free && std::fs::remove_file(entry.path()).is_ok());
    }
    // Fails while a worker stages files, as it should.
    let _ = std::fs::remove_dir(staging);
    removed
}

fn absent<T>(error: std::io::Error, path: &Path) -> Result<Option<T>, String> {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => Ok(None),
        _ => Err(format!("cannot use {}: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_found_by_their_urls_and_nothing_outside_the_root_is() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("a store%");
        let key = ObjectKey::resource("default", "j", "häß/lich");
        std::fs::create_dir_all(root.join("resources/default/j")).unwrap();
        std::fs::write(root.join(key.as_str()), b"abc").unwrap();
        std::fs::write(dir.path().join("outside"), b"abc").unwrap();
        let shelf = Directory::new(root.clone(), vec![]);
        let url = file_url(&root, &key);
        let outside = format!("file://{}", dir.path().join("outside").display());
        assert_eq!(shelf.sizes(&[url.clone(), outside, "s3://b/x".into(), format!("{url}x")]).unwrap(), [Some(3), None, None, None]);
        assert_eq!(shelf.sha256(&url).unwrap(), Some(Sha256::digest(b"abc").into()));
    }

    #[test]
    fn what_is_removed_takes_its_empty_directory_along() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Directory::new(dir.path().into(), vec![]);
        let object = |key: &str| (String::new(), format!("resources/default/j/{key}"));
        std::fs::create_dir_all(dir.path().join("resources/default/j")).unwrap();
        for key in ["a", "b"] {
            std::fs::write(dir.path().join(object(key).1), b"x").unwrap();
        }
        assert_eq!(shelf.remove(&[object("a"), object("none")]).unwrap(), [object("a")]);
        assert!(dir.path().join("resources/default/j").exists());
        assert_eq!(shelf.remove(&[object("b")]).unwrap(), [object("b")]);
        assert!(!dir.path().join("resources/default/j").exists());
    }

    #[test]
    fn staged_files_go_unless_somebody_holds_them() {
        let dir = tempfile::tempdir().unwrap();
        let staging = dir.path().join(STAGING);
        std::fs::create_dir(&staging).unwrap();
        std::fs::write(staging.join("left"), b"x").unwrap();
        let held = File::create(staging.join("held")).unwrap();
        // SAFETY: flock takes a descriptor, which `held` keeps open, and a flag.
        assert_eq!(unsafe { libc::flock(held.as_raw_fd(), libc::LOCK_EX) }, 0);
        let shelf = Directory::new(dir.path().into(), vec![]);
        assert_eq!(shelf.tidy(&|_, _| true).unwrap(), (1, 0));
        drop(held);
        assert_eq!(shelf.tidy(&|_, _| true).unwrap(), (1, 0));
        assert!(!staging.exists());
    }
}
