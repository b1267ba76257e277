//! Generates the message types from `proto/jobs.proto`; needs no protoc.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let files = protox::compile(["jobs.proto"], [&root])?;
    prost_build::Config::new()
        .bytes([".fetchbox.jobs.ResourceOutcome.sha256", ".fetchbox.jobs.TaskAttributes.extra"])
        .btree_map(["."])
        .compile_fds(files)?;
    Ok(())
}
