//! What the data plane's sources must never hold.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::path::{Path, PathBuf};

fn sources(under: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("src")
            .join(under),
    ];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    found
}

/// The code of a source, without its tests.
fn code(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap_or_default()
}

#[test]
fn the_data_plane_names_no_other_runtime_and_no_lock() {
    let sources = sources("data");
    assert!(sources.len() > 15, "the data plane was found");
    for (path, text) in &sources {
        for word in [
            "tokio", "tonic::", "Mutex", "RwLock", "Condvar", "OnceLock", "dashmap",
        ] {
            assert!(!text.contains(word), "{} names {word}", path.display());
        }
    }
}

/// Files that a request goes through outside `data/`.
const ON_THE_WAY: [&str; 6] = [
    "snapshot.rs",
    "tally.rs",
    "response.rs",
    "doorbell.rs",
    "readiness.rs",
    "clock.rs",
];

#[test]
fn nothing_that_a_request_goes_through_names_a_lock() {
    let mut rooms = sources("snapshot");
    rooms.extend(sources("tally"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for file in ON_THE_WAY {
        let path = root.join(file);
        let text = fs::read_to_string(&path).unwrap();
        rooms.push((path, text));
    }
    assert!(rooms.len() > ON_THE_WAY.len(), "the rooms were found");
    for (path, text) in &rooms {
        for word in [
            "Mutex", "RwLock", "Condvar", "OnceLock", "LazyLock", "dashmap",
        ] {
            assert!(
                !code(text).contains(word),
                "{} names {word}",
                path.display()
            );
        }
    }
}

#[test]
fn only_the_seam_names_the_runtime() {
    for (path, text) in sources("data") {
        if !path.ends_with("seam.rs") && !path.ends_with("seam/ring.rs") {
            assert!(!text.contains("monoio"), "{}", path.display());
        }
    }
}

#[test]
fn only_the_snapshot_names_its_primitive() {
    for (path, text) in sources(".") {
        if !path.ends_with("src/snapshot.rs") && !path.ends_with("src/./snapshot.rs") {
            assert!(!text.contains("arc_swap"), "{}", path.display());
        }
    }
}

#[test]
fn every_room_says_what_it_is_for_and_none_is_too_large() {
    for room in ["data", "snapshot", "tally"] {
        for (path, text) in sources(room) {
            assert!(
                text.starts_with("//! "),
                "{} opens with its purpose",
                path.display()
            );
            let lines = code(&text).lines().count();
            assert!(lines <= 500, "{} has {lines} lines", path.display());
        }
    }
}
