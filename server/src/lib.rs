//! The kiam server: decides, fetches ahead, and tells each node what its pods may have.

pub mod annotations;
pub mod arn;
pub mod base_arn;
pub mod clock;
pub mod go_duration;
pub mod ledger;
pub mod policy;
pub mod sts;
