//! Generates the wire code with a protobuf compiler written in Rust, so that no `protoc` is needed.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=farshore");
    let files = [
        "farshore/v1/common.proto",
        "farshore/v1/shard.proto",
        "farshore/v1/catalogue.proto",
        "farshore/v1/raft.proto",
        "farshore/v1/admin.proto",
        "farshore/v1/recovery.proto",
    ];
    let descriptors = protox::compile(files, ["."])?;
    tonic_prost_build::configure()
        // Shard bytes and opaque blobs stay `Bytes`: no copy between the socket and the disk.
        .bytes(".farshore.v1")
        .compile_fds(descriptors)?;
    Ok(())
}
