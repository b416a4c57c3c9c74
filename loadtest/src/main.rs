//! See [`kiam_loadtest`].

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    kiam_loadtest::run(std::env::args_os())
}
