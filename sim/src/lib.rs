//! A Kubernetes API server, an STS and a certificate authority that exist only for as long as a test,
//! a demo or a load test needs them.
//!
//! In reading order:
//! - [`cluster`]: the simulated Kubernetes API: what `kube`, `kubectl` and `curl` talk to, and the
//!   in-process face through which a load test creates and moves pods without HTTP.
//! - [`sts`]: the simulated Security Token Service, with a record of what it was asked.
//! - [`faults`]: what goes wrong, at run time, for either of them.
//! - [`certificates`]: a throw-away authority and the certificates it signs.
//! - [`kubeconfig`]: the file that leads a client to a cluster.
//! - [`listen`]: the one TCP (and TLS) door both servers stand behind.
//! - [`clock`]: the only file that reads a clock.
//!
//! # Invariants
//! - Nothing here knows any other crate of this workspace: what is simulated is what AWS and
//!   Kubernetes document, never what our own code happens to expect.
//! - Every queue, history and record has a bound; a watcher that falls behind is told 410, not fed
//!   from a growing buffer.
//! - An event is serialised once and its bytes are shared by every watcher of that representation.
//! - With the same seed and the same calls, identifiers, faults and latencies are the same (signing
//!   keys and certificates are not: they are random on purpose).

pub mod certificates;
pub mod clock;
pub mod cluster;
pub mod faults;
pub mod kubeconfig;
pub mod listen;
pub mod sts;

mod shared;
