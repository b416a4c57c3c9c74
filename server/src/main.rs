//! The kiam server. See [`kiam_server`].

use std::process::ExitCode;

/// A long-lived process that churns through small allocations of many threads: mimalloc keeps it
/// small where the system's allocator fragments.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    kiam_server::run(std::env::args_os())
}
