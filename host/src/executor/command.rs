//! Commands that a client runs in an instance beside its server.

use std::{sync::Arc, time::Duration};

use tokio::time;

use super::{Executor, execution::Exit, state::Stage};
use crate::{
    adapter::{EngineError, ProcessSpec},
    id::InstanceId,
};

/// Bytes that are kept of each of a command's outputs; the rest is dropped.
pub const OUTPUT_LIMIT: usize = 1_000_000;
/// The line that stands for the rest.
pub const TRUNCATED: &str = "\nOutput has been truncated to 1.00MB.";
/// The end of a failed command's output that its error shows, in bytes.
const SHOWN: usize = 2048;

/// What a command wrote.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// To standard output.
    pub stdout: Vec<u8>,
    /// To standard error.
    pub stderr: Vec<u8>,
}

/// Why a command has no output.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// There is no such instance.
    #[error("instance {id} not found")]
    NotFound {
        /// Its name.
        id: InstanceId,
    },
    /// It did not end in time, and was killed.
    #[error("the command in instance {id} did not end within {seconds} s")]
    Timeout {
        /// Its name.
        id: InstanceId,
        /// How long it had.
        seconds: u64,
    },
    /// It ended with a code that is not 0.
    #[error("the command in instance {id} {exit}")]
    Failed {
        /// Its name.
        id: InstanceId,
        /// How.
        exit: Exit,
    },
    /// It could not be run.
    #[error("cannot run a command in instance {id}")]
    Run {
        /// Its name.
        id: InstanceId,
        /// Why.
        source: EngineError,
    },
}

impl Executor {
    /// Runs a line of shell in an instance, also in one that is being built. It is killed after `timeout`, and
    /// where the caller goes away; without a `timeout` it may take as long as the instance lives.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub async fn command(
        self: &Arc<Self>,
        id: &InstanceId,
        line: &str,
        timeout: Option<Duration>,
    ) -> Result<Written, CommandError> {
        let missing = || CommandError::NotFound { id: id.clone() };
        let instance = self.pool.get(id).ok_or_else(missing)?;
        let _hold = instance.hold(&self.admission);
        let mut written = Written::default();
        let work = async {
            let mut states = instance.state.subscribe();
            let is_there = |stage: &Stage| match stage {
                Stage::Ended(_) => true,
                Stage::Queued
                | Stage::Restarting
                | Stage::Pending
                | Stage::Running
                | Stage::Ready => instance.made.get().is_some(),
            };
            let state = states.wait_for(|state| is_there(state.stage())).await;
            let stage = state.expect("the sender is borrowed").stage().clone();
            if matches!(stage, Stage::Ended(_)) {
                return Err(missing());
            }
            let spec = ProcessSpec {
                command: ["bash", "-c", line].map(Into::into).to_vec(),
                terminal: false,
            };
            let process = self.adapter.exec(&instance.sandbox_id, spec).await;
            let process = process.map_err(|source| CommandError::Run {
                id: id.clone(),
                source,
            })?;
            let keep = |number, part: &[u8]| match number {
                0 => keep(&mut written.stdout, part),
                _ => keep(&mut written.stderr, part),
            };
            Ok(process.run(keep).await)
        };
        let seconds = timeout.map_or(0, |timeout| timeout.as_secs());
        let ended = time::timeout(timeout.unwrap_or(Duration::MAX), work).await;
        let code = ended.map_err(|_| CommandError::Timeout {
            id: id.clone(),
            seconds,
        })??;
        if code == 0 {
            return Ok(written);
        }
        let output = [written.stdout, written.stderr].concat();
        let output = String::from_utf8_lossy(&output[output.len().saturating_sub(SHOWN)..]);
        Err(CommandError::Failed {
            id: id.clone(),
            exit: Exit {
                code,
                out_of_memory: false,
                output: output.trim().to_owned(),
            },
        })
    }
}

/// Adds as much as there is room for, and once a line for the rest.
fn keep(kept: &mut Vec<u8>, part: &[u8]) {
    let n_free = OUTPUT_LIMIT.saturating_sub(kept.len());
    kept.extend(&part[..part.len().min(n_free)]);
    if part.len() > n_free && kept.len() == OUTPUT_LIMIT {
        kept.extend(TRUNCATED.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_kept_up_to_a_limit() {
        let mut kept = Vec::new();
        for _ in 0..11 {
            keep(&mut kept, &[b'x'; 100_000]);
        }
        assert_eq!(kept.len(), OUTPUT_LIMIT + TRUNCATED.len());
        assert!(kept.ends_with(TRUNCATED.as_bytes()));
        let mut whole = vec![b'x'; OUTPUT_LIMIT - 1];
        keep(&mut whole, b"x");
        assert_eq!(whole.len(), OUTPUT_LIMIT);
    }
}
