//! What an installer leaves behind for an agent that may not look at the rules itself.
//!
//! A file without secrets in the hand-over directory: which rules were put in place in this boot,
//! and what a probe through them met. It is believed only for the same rules in the same boot. It
//! cannot know that somebody removed them since; that is the price of an agent without privileges,
//! and why arrivals ([`witness`](super::witness)) count for more.

use std::io;
use std::path::Path;

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use super::probe::Outcome;
use super::rules::Rules;
use crate::handover::directory::Directory;

const FILE: &str = "interception.json";
const BYTES_MAX: u64 = 16 * 1024;

/// One installation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    boot_id: String,
    rules: String,
    probed: Option<Outcome>,
}

impl Record {
    /// Says that `rules` are in place in the boot `boot_id`.
    pub fn new(rules: &Rules, boot_id: &str, probed: Option<Outcome>) -> Self {
        Self {
            boot_id: boot_id.to_owned(),
            rules: name(rules),
            probed,
        }
    }

    /// Whether this is about the same rules in the same boot.
    pub fn vouches_for(&self, rules: &Rules, boot_id: &str) -> bool {
        self.boot_id == boot_id && self.rules == name(rules)
    }

    /// What the installer's probe met, if it could probe.
    pub const fn probed(&self) -> Option<Outcome> {
        self.probed
    }

    /// Leaves it in the hand-over directory, in place of an earlier one.
    pub fn write(&self, directory: &Directory) -> io::Result<()> {
        directory.replace(FILE, &serde_json::to_vec(self)?)
    }

    /// What an installer left; `None` when none did.
    pub fn read(directory: &Directory) -> io::Result<Option<Self>> {
        let Some(bytes) = directory.read(FILE, BYTES_MAX)? else {
            return Ok(None);
        };
        Ok(Some(serde_json::from_slice(&bytes)?))
    }

    /// After the rules were removed nobody vouches for them.
    pub fn remove(directory: &Path) -> io::Result<()> {
        match std::fs::remove_file(directory.join(FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// A digest of everything the rules depend on.
fn name(rules: &Rules) -> String {
    let digest = digest(&SHA256, format!("{rules:?}").as_bytes());
    let hex: Vec<String> = digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    hex.concat()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;

    fn rules(port: u16) -> Rules {
        Rules::try_new(
            &["10.0.0.1".parse().unwrap()],
            NonZeroU16::new(port).unwrap(),
            "cali+".parse().unwrap(),
        )
        .unwrap()
    }

    #[test]
    fn it_vouches_for_the_same_rules_in_the_same_boot_only() {
        let record = Record::new(&rules(80), "boot-a", Some(Outcome::Refused));
        let json = serde_json::to_string(&record).unwrap();
        let record: Record = serde_json::from_str(&json).unwrap();
        assert!(record.vouches_for(&rules(80), "boot-a"));
        assert!(!record.vouches_for(&rules(81), "boot-a"));
        assert!(!record.vouches_for(&rules(80), "boot-b"));
    }
}
