//! Compiles the protocol with protox, so that building needs no protoc.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let sources = ["kiam/wire/v1/follow.proto", "kiam/legacy.proto"];
    for source in sources {
        println!("cargo::rerun-if-changed=proto/{source}");
    }
    let descriptors = protox::compile(sources, ["proto"])?;
    // Secrets have a hand-written Debug on the typed side; the generated messages must not print
    // them either, so those that hold any get none at all.
    tonic_prost_build::configure()
        .skip_debug([
            "kiam.wire.v1.Credentials",
            "kiam.wire.v1.Full",
            "kiam.wire.v1.Delta",
            "kiam.wire.v1.ServerMessage",
            "kiam.wire.v1.ServerMessage.message",
            "kiam.LegacyCredentials",
        ])
        .compile_fds(descriptors)?;
    Ok(())
}
