//! What the server's sources must never hold: the lines that docs/architecture.md draws.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::path::{Path, PathBuf};

/// Every source of a room: `room.rs` and what is in `room/`. All of them for no name.
fn sources(room: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut places = vec![root.join(room)];
    if !room.is_empty() {
        places.push(root.join(room).with_extension("rs"));
    }
    while let Some(place) = places.pop() {
        if place.is_dir() {
            let entries = fs::read_dir(&place).unwrap();
            places.extend(entries.map(|entry| entry.unwrap().path()));
        } else if place.exists() {
            found.push((place.clone(), fs::read_to_string(&place).unwrap()));
        }
    }
    found
}

/// The code of a source, without its tests and its documentation.
fn code(text: &str) -> String {
    let before_tests = text.split("#[cfg(test)]").next().unwrap_or_default();
    before_tests
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n")
}

fn room_of(path: &Path) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let inside = path.strip_prefix(root).unwrap();
    let first = inside.components().next().unwrap();
    let name = first.as_os_str().to_string_lossy();
    name.trim_end_matches(".rs").to_owned()
}

/// Fails for each source outside `rooms` whose code names one of `words`.
#[track_caller]
fn only(rooms: &[&str], words: &[&str]) {
    let mut named_inside = false;
    for (path, text) in sources("") {
        let room = room_of(&path);
        for word in words.iter().filter(|word| code(&text).contains(**word)) {
            assert!(
                rooms.contains(&room.as_str()),
                "{} names {word}",
                path.display()
            );
            named_inside = true;
        }
    }
    assert!(
        named_inside,
        "nobody names {words:?}: this test looks for the wrong thing"
    );
}

#[test]
fn only_the_pods_room_names_kubernetes() {
    only(&["pods"], &["kube::", "kube_runtime::", "k8s_openapi"]);
}

#[test]
fn only_two_rooms_name_the_aws_sdk() {
    only(
        &["sts", "base_arn"],
        &["aws_sdk_sts", "aws_config", "aws_smithy"],
    );
}

#[test]
fn rooms_that_decide_read_no_clock_and_do_no_io() {
    for room in [
        "annotations",
        "arn",
        "nodes",
        "policy",
        "ledger",
        "snapshot",
    ] {
        let sources = sources(room);
        assert!(!sources.is_empty(), "{room} was found");
        for (path, text) in sources {
            for word in [
                "tokio::",
                "std::net::Tcp",
                "std::fs",
                "monotonic()",
                "Clock",
                ".await",
                "Mutex",
                "fastrand::Rng::new",
            ] {
                assert!(
                    !code(&text).contains(word),
                    "{} names {word}",
                    path.display()
                );
            }
        }
    }
}
