//! The Python module `fetchbox._core`. Its manual is `python/fetchbox/_core.pyi`; each file holds one type of the boundary.

mod broker;
mod carry;
mod client;
mod completion;
mod curl;
mod delivery;
mod engine;
mod error;
mod follower;
mod fork;
mod hooks;
mod hub;
mod idle;
mod library;
mod outcome;
mod shelf;
mod tasks;

use pyo3::prelude::*;

/// A download is some hundred small allocations and a few of the size of its body: with the C library's allocator they cost as much as its TCP does.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    error::register(module)?;
    module.add_function(wrap_pyfunction!(tasks::compile_manifest, module)?)?;
    module.add_function(wrap_pyfunction!(tasks::parse_manifest, module)?)?;
    module.add_function(wrap_pyfunction!(tasks::compile_tasks, module)?)?;
    module.add_function(wrap_pyfunction!(tasks::check_replay, module)?)?;
    module.add_function(wrap_pyfunction!(tasks::key_template_problem, module)?)?;
    module.add_function(wrap_pyfunction!(tasks::object_key, module)?)?;
    module.add_function(wrap_pyfunction!(tasks::failure_codes, module)?)?;
    module.add_function(wrap_pyfunction!(broker::partition_tasks, module)?)?;
    module.add_function(wrap_pyfunction!(engine::fetch_defaults, module)?)?;
    module.add_function(wrap_pyfunction!(engine::refused_address, module)?)?;
    module.add_function(wrap_pyfunction!(outcome::outcome_from_json, module)?)?;
    module.add_class::<tasks::TaskBatch>()?;
    module.add_class::<delivery::Delivery>()?;
    module.add_class::<delivery::Settled>()?;
    module.add_class::<engine::Report>()?;
    module.add_class::<outcome::OutcomeBatch>()?;
    module.add_class::<outcome::Outcome>()?;
    module.add_class::<client::HubClient>()?;
    module.add_class::<follower::Follower>()?;
    module.add_class::<curl::CurlCall>()?;
    module.add_class::<engine::Engine>()?;
    module.add_class::<hub::Hub>()?;
    Ok(())
}
