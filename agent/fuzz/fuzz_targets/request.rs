//! Whatever a pod sends to the metadata door.

#![no_main]

#[path = "../properties.rs"]
#[allow(dead_code)]
mod properties;

use std::cell::LazyCell;

use libfuzzer_sys::fuzz_target;

thread_local! {
    static WORLD: LazyCell<properties::World> = LazyCell::new(properties::World::new);
}

fuzz_target!(|input: &[u8]| WORLD.with(|world| {
    world.request(input);
    world.passthrough(input);
}));
