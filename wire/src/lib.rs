//! The protocol between the kiam server and its agents, and the little else that both sides share.
//!
//! The rules of the stream are written in `proto/kiam/wire/v1/follow.proto`. In reading order:
//!
//! - [`limits`]: how large anything on the wire may be.
//! - [`malformed`]: what is wrong with a message, naming the field and never its value.
//! - [`identity`]: revisions, pod uids and credential ids.
//! - [`time`]: whole seconds of wall time, as AWS writes them.
//! - [`pod`], [`credentials`], [`keys`]: what an update carries.
//! - [`update`]: what the server says, [`report`]: what the agent says; each parsed once, here.
//! - [`document`]: credentials as the JSON that SDKs expect.
//! - [`go_duration`]: the durations of both programs' flags. [`process`]: what both are as processes.
//! - [`proto`]: the generated messages and the gRPC stubs; named only where a stream is opened.
//!
//! # Invariants
//! - Past a successful parse no field can be out of its limits: nothing downstream checks again.
//! - A secret cannot be printed: no type that holds one has a `Debug` that shows it.
//! - A malformed pod or credential costs that pod or credential, never the update around it.

pub mod credentials;
pub mod document;
pub mod go_duration;
pub mod identity;
pub mod keys;
pub mod limits;
pub mod malformed;
pub mod pod;
pub mod process;
pub mod proto;
pub mod report;
pub mod time;
pub mod update;

pub use credentials::Credentials;
pub use identity::{CredentialId, PodUid, Revision};
pub use malformed::Malformed;
pub use pod::{Pod, PodState, Refusal, Refused};
pub use report::AgentMessage;
pub use time::UnixSeconds;
pub use update::{Delta, Full, Update};
