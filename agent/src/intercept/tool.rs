//! Runs one of the kernel's rule tools: bounded in time and output, its input on standard input.
//!
//! The tools' own words go into the error: they name the missing module or privilege better than we
//! could.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// The slowest honest run waits for the xtables lock (`--wait 5`).
const RUN_TIME_MAX: Duration = Duration::from_secs(10);
/// Of what a tool said, as much goes into an error.
const COMPLAINT_BYTES_MAX: usize = 600;

/// Why a tool did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// Not in this image or not in `PATH`.
    #[error("{tool} is not installed; the image has it, a hand-made one must add it")]
    Missing {
        /// Its name.
        tool: &'static str,
    },
    /// `CAP_NET_ADMIN` is missing, or the user namespace does not own the network.
    #[error("{tool} may not do this here, it needs NET_ADMIN: {complaint}")]
    NotPermitted {
        /// Its name.
        tool: &'static str,
        /// What it said.
        complaint: String,
    },
    /// It ran and refused.
    #[error("{tool} failed ({code}): {complaint}")]
    Failed {
        /// Its name.
        tool: &'static str,
        /// Its exit code, or -1 when a signal ended it.
        code: i32,
        /// What it said.
        complaint: String,
    },
    /// It neither finished nor failed.
    #[error("{tool} did not finish within 10 s; another tool may hold the xtables lock")]
    TooSlow {
        /// Its name.
        tool: &'static str,
    },
    /// The kernel would not start it.
    #[error("{tool} could not be run")]
    Io {
        /// Its name.
        tool: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Runs `tool` and returns what it printed.
pub(super) async fn run(
    tool: &'static str,
    arguments: &[&str],
    input: Option<String>,
) -> Result<String, ToolError> {
    let running = async {
        let mut child = Command::new(tool)
            .args(arguments)
            .stdin(if input.is_some() {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdin = child.stdin.take().zip(input);
        // Written while the output is read: a tool that answers before it has read everything
        // would otherwise wait for us while we wait for it.
        let feed = async {
            if let Some((mut stdin, input)) = stdin {
                stdin.write_all(input.as_bytes()).await?;
            }
            Ok::<(), io::Error>(())
        };
        let (fed, output) = tokio::join!(feed, child.wait_with_output());
        let output = output?;
        // A tool that gave up early closes the pipe: its exit code tells more than the broken pipe.
        if output.status.success() {
            fed?;
        }
        Ok::<_, io::Error>(output)
    };
    let output = match tokio::time::timeout(RUN_TIME_MAX, running).await {
        Err(_elapsed) => return Err(ToolError::TooSlow { tool }),
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
            return Err(ToolError::Missing { tool });
        }
        Ok(Err(source)) => return Err(ToolError::Io { tool, source }),
        Ok(Ok(output)) => output,
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let complaint = complaint(&output.stderr);
    if complaint.contains("Operation not permitted") || complaint.contains("Permission denied") {
        return Err(ToolError::NotPermitted { tool, complaint });
    }
    Err(ToolError::Failed {
        tool,
        code: output.status.code().unwrap_or(-1),
        complaint,
    })
}

fn complaint(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .chars()
        .take(COMPLAINT_BYTES_MAX)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn input_goes_in_and_output_comes_out() {
        let text = "a line\n".repeat(20_000);
        assert_eq!(run("cat", &[], Some(text.clone())).await.unwrap(), text);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn failures_say_what_the_tool_said() {
        let error = run("ls", &["/nonexistent-for-this-test"], None)
            .await
            .unwrap_err();
        assert!(
            matches!(error, ToolError::Failed { code: 2, .. }),
            "{error}"
        );
        let error = run("kiam-no-such-tool", &[], None).await.unwrap_err();
        assert!(matches!(error, ToolError::Missing { .. }), "{error}");
        // It never reads its input: the broken pipe must not hide its exit code.
        let error = run("false", &[], Some("x".repeat(1 << 20)))
            .await
            .unwrap_err();
        assert!(
            matches!(error, ToolError::Failed { code: 1, .. }),
            "{error}"
        );
    }
}
