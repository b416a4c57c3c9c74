//! What can be wrong with a command line, in sentences that say what to change.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use super::kingpin::Unreadable;
use crate::intercept::rules::InvalidRules;

/// A command line that makes no sense, and what to change.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each variant is explained by its message")]
pub enum Invalid {
    #[error(transparent)]
    Words(#[from] clap::Error),
    #[error(transparent)]
    ArgumentsFile(#[from] Unreadable),
    #[error("{0} also needs {1}")]
    AlsoNeeds(&'static str, &'static str),
    #[error("{0} contradicts {1}: leave one of them out")]
    Contradiction(&'static str, &'static str),
    #[error("{0} must not be smaller than {1}: raise the first or lower the second")]
    Smaller(&'static str, &'static str),
    #[error("{0} must be greater than zero")]
    Zero(&'static str),
    #[error("{0} must not be empty")]
    Empty(&'static str),
    #[error("{0} must be at least {1:?}")]
    TooShort(&'static str, Duration),
    #[error("{0} must be at most {1:?}")]
    TooLong(&'static str, Duration),
    #[error(
        "servers could not tell which agent this is: give --token-file, or --cert and --key, or both"
    )]
    Nobody,
    #[error("cannot read {flag} {}: {source}", path.display())]
    File {
        flag: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{flag} {} is a directory, not a file", path.display())]
    Directory { flag: &'static str, path: PathBuf },
    #[error(
        "--node-name is no name of a Kubernetes node: set NODE_NAME from the field spec.nodeName"
    )]
    NodeName,
    #[error(
        "interception needs the node's address: give --host, or set HOST_IP from the field status.hostIP"
    )]
    HostMissing,
    #[error(transparent)]
    Rules(#[from] InvalidRules),
    #[error("--workers {workers} is more than the {cores} cores this process may use: lower it")]
    Workers {
        workers: NonZeroUsize,
        cores: NonZeroUsize,
    },
    #[error("{0} takes lower-case letters, digits and dashes, for example eu-west-1")]
    Place(&'static str),
    #[error("--allow-route-regexp is no regular expression: {0}")]
    Regexp(#[source] Box<regex::Error>),
    #[error("{0} and {1} both listen on {2}: change one of them")]
    SameAddress(&'static str, &'static str, SocketAddr),
}
