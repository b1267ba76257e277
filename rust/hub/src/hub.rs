//! The hub as a whole: open, serve, end.

use std::convert::Infallible;
use std::fs::File;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::clock::{Clock, SystemClock};
use crate::config::HubConfig;
use crate::core::Core;
use crate::error::{HubError, HubOpenError};
use crate::listen::Door;
use crate::open::{Opened, open};
use crate::pace::Rest;
use crate::shelf::{Directory, Shelf};
use crate::writer::Writer;
use crate::{background, server};

/// How long closing waits for reads under way.
const LAST_READS: Duration = Duration::from_secs(2);

/// The hub: one per database. Its parts end in the order in which they stand here.
pub struct Hub {
    stop: watch::Sender<bool>,
    door: Option<Arc<Door>>,
    _threads: Threads,
    core: Arc<Core>,
    _gone: Gone,
    _lock: File,
}

/// The writer and the background threads.
struct Threads {
    core: Arc<Core>,
    writer: Option<JoinHandle<()>>,
    background: Vec<JoinHandle<()>>,
}

/// Waits for the database to be closed: reads under way still hold it open, and whoever opens it next should not meet them.
struct Gone(Mutex<Receiver<Infallible>>);

impl Drop for Gone {
    fn drop(&mut self) {
        // Either way there is nothing more to wait for.
        let _ = self.0.lock().recv_timeout(LAST_READS);
    }
}

impl Hub {
    /// Opens (or creates) the database and starts its threads. Blocks: seconds when much has to be replayed.
    pub fn open(config: HubConfig) -> Result<Hub, HubOpenError> {
        Self::open_with(config, Arc::new(SystemClock::default()))
    }

    /// The same with a clock of the caller's.
    pub fn open_with(config: HubConfig, clock: Arc<dyn Clock>) -> Result<Hub, HubOpenError> {
        let Opened { core, start, commands, gone, lock } = open(config, clock)?;
        let door = Door::open(&core.config)?.map(Arc::new);
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            let doing = format!("start the thread {name}");
            let on_failure = |source| HubOpenError::Io { doing, source };
            std::thread::Builder::new().name(name.to_owned()).spawn(work).map_err(on_failure)
        };
        let writer = Writer::new(Arc::clone(&core), start);
        let dying = Arc::clone(&core);
        let writer = spawn(
            "hub-writer",
            Box::new(move || {
                let _guard = DieOnPanic(dying);
                writer.run(commands);
            }),
        )?;
        let stop = watch::Sender::new(false);
        let mut threads = Threads { core: Arc::clone(&core), writer: Some(writer), background: Vec::new() };
        for (name, work) in background::tasks() {
            let core = Arc::clone(&core);
            threads.background.push(spawn(name, Box::new(move || work(&core)))?);
        }
        Ok(Hub { stop, door, _threads: threads, core, _gone: Gone(Mutex::new(gone)), _lock: lock })
    }

    #[cfg(test)]
    pub(crate) fn core(&self) -> &Core {
        &self.core
    }

    /// Gives the hub the store that its jobs' objects lie in; a local one it has found itself.
    pub fn keep_store(&self, shelf: Arc<dyn Shelf>) {
        self.core.keep.set_shelf(shelf);
    }

    /// Takes its token and what job types say of the store from another configuration; connections that are up stay. All else stays as it
    /// was. What is wrong with it, in words: then nothing changes.
    pub fn reload(&self, config: &HubConfig) -> Result<(), String> {
        self.core.keep.set_places(&config.keeping)?;
        if let Some(root) = &self.core.config.store_root {
            self.core.keep.set_shelf(Arc::new(Directory::new(root.clone(), config.keeping.buckets.clone())));
        }
        self.core.token.write().clone_from(&config.token);
        Ok(())
    }

    /// Serves clients until [`Hub::shutdown`]; an error when it cannot listen or when the database failed.
    pub async fn serve(&self) -> Result<(), HubError> {
        server::serve(Arc::clone(&self.core), self.door.clone(), self.stop.subscribe()).await
    }

    /// What the thread that runs [`Hub::serve`]'s connections takes whenever it has nothing to do.
    pub fn rest(&self) -> Rest {
        self.core.rest.clone()
    }

    /// Where it listens for other hosts.
    pub fn address(&self) -> Option<SocketAddr> {
        self.door.as_ref().map(|door| door.address)
    }

    /// Makes [`Hub::serve`] end.
    pub fn shutdown(&self) {
        self.stop.send_replace(true);
    }

    /// Stops everything and waits for the writer to have written what it was given.
    pub fn close(self) {
        drop(self);
    }

    /// Resolves with the reason when a commit failed: nothing is acknowledged any more and the process must end.
    pub fn fatal(&self) -> impl Future<Output = String> + Send + use<> {
        let mut fatal = self.core.fatal.subscribe();
        let core = Arc::clone(&self.core);
        async move {
            match fatal.wait_for(Option::is_some).await {
                Ok(reason) => reason.clone().unwrap_or_default(),
                // The sender lives in the core, which this future holds.
                Err(_) => core.fatal.borrow().clone().unwrap_or_default(),
            }
        }
    }

    /// The hub's metrics as Prometheus text.
    pub fn metrics_text(&self) -> String {
        let mut text = self.core.metrics.text();
        text.push_str(&self.core.keep.metrics());
        text.push_str(&crate::streams::metrics(&self.core));
        text.push_str(&format!(
            "# TYPE fetchbox_hub_outbox_bytes gauge\nfetchbox_hub_outbox_bytes {}\n# TYPE fetchbox_hub_full gauge\nfetchbox_hub_full {}\n",
            self.core.outbox_bytes.load(Ordering::Relaxed),
            u8::from(self.core.full.load(Ordering::Relaxed))
        ));
        text
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.core.upkeep.close();
        self.core.manifests.close();
        self.core.keep.signal.close();
        self.core.reclaim.signal.close();
        for thread in self.background.drain(..) {
            // A panic there has been reported already.
            let _ = thread.join();
        }
        self.core.close();
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

/// A panicking writer acknowledges nothing any more; the process must know.
struct DieOnPanic(Arc<Core>);

impl Drop for DieOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.die("the writer panicked".to_owned());
        }
    }
}
