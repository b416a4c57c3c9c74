//! Command lines as kiam's parser took them, rewritten for ours.
//!
//! `--no-flag` turns a boolean off, `@file` stands for the arguments in that file, one a line, and
//! kiam's image was started with the sub-command `agent`. Charts in the field use all three, so
//! they are rewritten here, before clap sees them.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;
use std::{fs, io};

use clap::Command;

/// A file named by `@file` that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the arguments in @{path}: {source}")]
pub struct Unreadable {
    path: String,
    source: io::Error,
}

/// The same command line in clap's words. `command` says which flags are booleans.
pub(super) fn normalise(
    args: impl IntoIterator<Item = OsString>,
    command: &mut Command,
) -> Result<Vec<OsString>, Unreadable> {
    let booleans = booleans(command);
    let mut normal = Vec::new();
    for (position, arg) in args.into_iter().enumerate() {
        if position == 1 && arg == "agent" {
            continue;
        }
        match arg.to_str().and_then(|arg| arg.strip_prefix('@')) {
            Some(path) if position > 0 => {
                let lines = read(Path::new(path))?;
                normal.extend(lines.into_iter().map(|line| positive(line, &booleans)));
            }
            _ => normal.push(positive(arg, &booleans)),
        }
    }
    Ok(normal)
}

fn read(path: &Path) -> Result<Vec<OsString>, Unreadable> {
    let text = fs::read_to_string(path).map_err(|source| Unreadable {
        path: path.display().to_string(),
        source,
    })?;
    let lines = text.lines().map(str::trim);
    Ok(lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(OsString::from)
        .collect())
}

/// `--no-flag` as `--flag=false`, anything else as it is.
fn positive(arg: OsString, booleans: &BTreeSet<String>) -> OsString {
    match arg.to_str().and_then(|arg| arg.strip_prefix("--no-")) {
        Some(flag) if booleans.contains(flag) => format!("--{flag}=false").into(),
        _ => arg,
    }
}

/// The flags that stand alone or take `=true` and `=false`: the only ones with an optional value.
fn booleans(command: &mut Command) -> BTreeSet<String> {
    command.build();
    command
        .get_arguments()
        .chain(command.get_subcommands().flat_map(Command::get_arguments))
        .filter(|arg| {
            arg.get_num_args()
                .is_some_and(|values| values.min_values() == 0 && values.max_values() == 1)
        })
        .filter_map(|arg| arg.get_long().map(str::to_owned))
        .collect()
}
