//! An object that is in the store already takes the place of a new one: under the task's own key, without its bytes going anywhere.
//!
//! In a directory the file gets a second name, in an object store it is copied there by the store. Whatever is in the way (it is gone, it is another
//! by now, the store cannot do that) is no failure: the body is downloaded and stored then as if nobody had remembered it.

use fetchbox_model::key::{ObjectKey, root_url};
use fetchbox_model::reuse::Remembered;

use super::Store;
use super::local::Draft;

/// An object that has taken its place, or is about to.
#[derive(Default)]
pub struct Adopted {
    /// The store's ETag of it; a directory's is our own.
    pub etag: String,
    /// In a directory, unless it has had the right name before: the file, which is still to be given it.
    pub draft: Option<Draft>,
}

impl Store {
    /// The key of an object of this store by its URL.
    fn key_of(&self, url: &str) -> Option<ObjectKey> {
        match self {
            Self::Local(files, _) => ObjectKey::of_url(&root_url(files.root()), url),
            Self::Remote(_, base) => ObjectKey::of_url(base, url),
        }
    }

    /// The remembered object under `key`, if it is still what it was.
    pub async fn adopt(&self, known: &Remembered, key: &ObjectKey) -> Option<Adopted> {
        let source = self.key_of(&known.storage_url)?;
        match self {
            Self::Local(files, _) => files.adopt(&source, known, key),
            Self::Remote(remote, _) => {
                let etag = remote.adopt(&source, known, key).await?;
                Some(Adopted { etag, draft: None })
            }
        }
    }
}
