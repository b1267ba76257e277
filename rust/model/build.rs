//! Generates the message types from `proto/jobs.proto`; needs no protoc.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    // As it is now, not as it was when this was compiled: a target directory may be shared by clones.
    #[allow(clippy::disallowed_methods)]
    let crate_root = std::env::var_os("CARGO_MANIFEST_DIR").ok_or("cargo sets CARGO_MANIFEST_DIR")?;
    let root = std::path::Path::new(&crate_root).join("../../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let files = protox::compile(["jobs.proto"], [&root])?;
    prost_build::Config::new()
        .bytes([".fetchbox.jobs.ResourceOutcome.sha256", ".fetchbox.jobs.ResourceOutcome.reuse_key", ".fetchbox.jobs.TaskAttributes.extra"])
        .btree_map(["."])
        .compile_fds(files)?;
    Ok(())
}
