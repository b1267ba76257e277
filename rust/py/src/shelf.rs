//! The engine's housekeeping of a remote store, as the hub asks for it: from plain threads, and given up when the hub closes.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use fetchbox_engine::{EngineError, Housekeeper, Place, StorageConfig};
use fetchbox_hub::Shelf;
use fetchbox_model::key::ObjectKey;
use serde::Deserialize;
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// How long the requests of one question may take together; every single one has limits of its own.
const LIMIT: Duration = Duration::from_secs(300);

/// Which store.
#[derive(Deserialize)]
pub struct StoreOptions {
    storage: StorageConfig,
    #[serde(default)]
    buckets: Vec<String>,
}

/// A remote store, with a runtime of its own.
pub struct Remote {
    runtime: Runtime,
    keeper: Housekeeper,
    closing: watch::Sender<bool>,
}

impl Remote {
    /// Opens the store; nothing is asked of it yet.
    pub fn open(options: &StoreOptions) -> Result<Arc<Self>, EngineError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("fetchbox-store")
            .enable_all()
            .build()
            .map_err(|source| EngineError::System { what: "the store's runtime", source })?;
        let keeper = {
            let _entered = runtime.enter();
            Housekeeper::open(&options.storage, &options.buckets)?
        };
        Ok(Arc::new(Self { runtime, keeper, closing: watch::Sender::new(false) }))
    }

    /// Ends what is under way: whoever waits for it gets an error.
    pub fn close(&self) {
        self.closing.send_replace(true);
    }

    fn wait<T>(&self, work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
        let mut closing = self.closing.subscribe();
        self.runtime.block_on(async {
            tokio::select! {
                result = tokio::time::timeout(LIMIT, work) => {
                    result.unwrap_or_else(|_| Err(format!("the store took longer than {} s", LIMIT.as_secs())))
                }
                _ = closing.wait_for(|closing| *closing) => Err("the hub is closing".to_owned()),
            }
        })
    }
}

impl Shelf for Remote {
    fn url(&self, bucket: &str, key: &ObjectKey) -> Option<String> {
        self.keeper.url(bucket, key)
    }

    fn sizes(&self, urls: &[String]) -> Result<Vec<Option<u64>>, String> {
        self.wait(self.keeper.sizes(urls))
    }

    fn sha256(&self, url: &str) -> Result<Option<[u8; 32]>, String> {
        self.wait(self.keeper.sha256(url))
    }

    fn remove(&self, objects: &[Place]) -> Result<Vec<Place>, String> {
        self.wait(self.keeper.remove(objects))
    }

    fn tidy(&self, is_over: &dyn Fn(&str, u64) -> bool) -> Result<(u64, u64), String> {
        let uploads = self.wait(self.keeper.uploads())?;
        let mut aborted = 0;
        for upload in uploads.iter().filter(|upload| is_over(&upload.key, upload.begun_ms)) {
            self.wait(self.keeper.abort(upload))?;
            aborted += 1;
        }
        Ok((0, aborted))
    }
}
