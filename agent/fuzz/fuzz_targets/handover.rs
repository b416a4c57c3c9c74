//! Whatever is found in the hand-over directory.

#![no_main]

#[path = "../properties.rs"]
#[allow(dead_code)]
mod properties;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| properties::handover(input));
