//! `Hub`: opens the database and serves it from a runtime of its own.

use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use fetchbox_hub::{HubConfig, HubOpenError, Rest, Shelf};
use pyo3::prelude::*;
use tokio::runtime::Runtime;

use crate::completion::lock;
use crate::engine::engine_error;
use crate::error::CoreError;
use crate::fork::Guard;
use crate::shelf::{Remote, StoreOptions};

/// The exit code of a hub whose database failed: what was not acknowledged is posted or reported again to its successor.
const EXIT_FATAL: i32 = 70;
/// How long open connections may take to end.
const SHUTDOWN: Duration = Duration::from_secs(5);

#[pyclass(frozen, module = "fetchbox._core")]
pub struct Hub {
    guard: Guard,
    running: Mutex<Option<Running>>,
}

struct Running {
    hub: Arc<fetchbox_hub::Hub>,
    runtime: Runtime,
    serving: JoinHandle<()>,
    store: Option<Arc<Remote>>,
}

#[pymethods]
impl Hub {
    #[new]
    #[pyo3(signature = (options, storage = None))]
    fn new(py: Python<'_>, options: &[u8], storage: Option<&[u8]>) -> PyResult<Self> {
        let config: HubConfig = serde_json::from_slice(options).map_err(|error| CoreError::new("config", "hub", error.to_string()))?;
        let storage: Option<StoreOptions> =
            storage.map(serde_json::from_slice).transpose().map_err(|error| CoreError::new("config", "storage", error.to_string()))?;
        let running = py.detach(|| start(config, storage))?;
        Ok(Self { guard: Guard::new(), running: Mutex::new(Some(running)) })
    }

    #[pyo3(signature = (options, storage = None))]
    fn reload(&self, py: Python<'_>, options: &[u8], storage: Option<&[u8]>) -> PyResult<()> {
        self.guard.check("Hub")?;
        let config: HubConfig = serde_json::from_slice(options).map_err(|error| CoreError::new("config", "hub", error.to_string()))?;
        let storage: Option<StoreOptions> =
            storage.map(serde_json::from_slice).transpose().map_err(|error| CoreError::new("config", "storage", error.to_string()))?;
        py.detach(|| {
            let mut running = lock(&self.running);
            let Some(running) = running.as_mut() else { return Ok(()) };
            let store = storage.as_ref().map(Remote::open).transpose().map_err(engine_error)?;
            running.hub.reload(&config).map_err(|error| CoreError::new("config", "hub", error))?;
            if let Some(store) = store {
                running.hub.keep_store(Arc::clone(&store) as Arc<dyn Shelf>);
                // The round that is under way fails, and is made again later.
                if let Some(old) = running.store.replace(store) {
                    old.close();
                }
            }
            Ok::<(), CoreError>(())
        })?;
        Ok(())
    }

    fn metrics(&self, py: Python<'_>) -> PyResult<String> {
        self.guard.check("Hub")?;
        let hub = lock(&self.running).as_ref().map(|running| Arc::clone(&running.hub));
        Ok(hub.map_or_else(String::new, |hub| py.detach(|| hub.metrics_text())))
    }

    fn close(&self, py: Python<'_>) {
        let taken = lock(&self.running).take();
        if let Some(Running { hub, runtime, serving, store }) = taken {
            py.detach(|| {
                hub.shutdown();
                if let Some(store) = store {
                    store.close();
                }
                // A panic there has ended the process already.
                let _ = serving.join();
                runtime.shutdown_timeout(SHUTDOWN);
                if let Ok(hub) = Arc::try_unwrap(hub) {
                    hub.close();
                }
            });
        }
    }
}

fn start(config: HubConfig, storage: Option<StoreOptions>) -> Result<Running, CoreError> {
    let store = storage.as_ref().map(Remote::open).transpose().map_err(engine_error)?;
    let rest = Arc::new(OnceLock::<Rest>::new());
    let before_parking = Arc::clone(&rest);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .on_thread_park(move || {
            if let Some(rest) = before_parking.get() {
                rest.take();
            }
        })
        // One reads, answers and writes for all connections; a second would mostly be woken by the first and find nothing left.
        .worker_threads(1)
        .thread_name("fetchbox-hub")
        .enable_all()
        .build()
        .map_err(|error| CoreError::new("internal", "RUNTIME", error.to_string()))?;
    let guard = runtime.enter();
    let hub = Arc::new(fetchbox_hub::Hub::open(config).map_err(open_error)?);
    drop(guard);
    rest.get_or_init(|| hub.rest());
    if let Some(store) = &store {
        hub.keep_store(Arc::clone(store) as Arc<dyn Shelf>);
    }
    let fatal = hub.fatal();
    runtime.spawn(async move { end_process(&fatal.await) });
    let (server, handle) = (Arc::clone(&hub), runtime.handle().clone());
    let serving = std::thread::Builder::new()
        .name("hub-server".to_owned())
        .spawn(move || {
            if let Err(error) = handle.block_on(server.serve()) {
                end_process(&error.to_string());
            }
        })
        .map_err(|error| CoreError::new("internal", "THREAD", error.to_string()))?;
    Ok(Running { hub, runtime, serving, store })
}

/// After a failed commit nothing may be acknowledged any more, so the process ends at once, without running anything else.
fn end_process(reason: &str) -> ! {
    let _ = writeln!(std::io::stderr(), "fetchbox: hub: {reason}");
    // SAFETY: _exit has no preconditions; it skips destructors, which might write.
    unsafe { libc::_exit(EXIT_FATAL) }
}

fn open_error(error: HubOpenError) -> CoreError {
    let code = match error {
        HubOpenError::Config(_) => "hub",
        HubOpenError::Listen(_) => "hub.listen",
        _ => "hub.path",
    };
    CoreError::new("store", code, error.to_string())
}
