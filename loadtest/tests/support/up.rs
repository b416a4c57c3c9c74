//! The whole system in a process of its own, as `kiam-loadtest up` leaves it running.

use std::process::{Child, Command, Stdio};
use std::thread::park_timeout;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_millis(50);

/// The whole system; ended when this is dropped.
pub(crate) struct Up {
    process: Child,
    /// What it says of itself.
    pub(crate) what: Value,
    _dir: TempDir,
}

impl Up {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let json = dir.path().join("up.json");
        let mut process = Command::new(env!("CARGO_BIN_EXE_kiam-loadtest"))
            .arg("up")
            .arg("--json")
            .arg(&json)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut left = PATIENCE;
        let what = loop {
            let read = std::fs::read_to_string(&json).ok();
            if let Some(what) = read.and_then(|text| serde_json::from_str(&text).ok()) {
                break what;
            }
            let ended = process.try_wait().unwrap();
            assert_eq!(ended, None, "it ended before it was ready");
            left = left.checked_sub(PAUSE).unwrap();
            park_timeout(PAUSE);
        };
        Self {
            process,
            what,
            _dir: dir,
        }
    }

    pub(crate) fn text(&self, name: &str) -> &str {
        self.what.get(name).unwrap().as_str().unwrap()
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let pid = self.process.id().to_string();
        let _told = Command::new("kill").args(["-TERM", &pid]).status();
        let _ended = self.process.wait();
    }
}
