//! Starting a main process again that has ended, in its own sandbox, after a pause.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Executor,
    execution::{Exit, StartError},
    pool::{Instance, Made},
    source::Source,
    state::{End, State},
};

/// The pause before the first restart; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A main process that ran for so long has recovered: its next restart counts as the first.
const STEADY: Duration = Duration::from_secs(10);

impl Executor {
    /// Puts an instance that starts again in the place of one whose main process has ended, where it is to.
    /// Says whether that was done; executions in the old one learn of the exit.
    pub(super) fn restart(self: &Arc<Self>, instance: &Arc<Instance>, exit: &Exit) -> bool {
        let Some(made) = instance.made.get() else {
            return false;
        };
        // One that is being set up fails instead.
        if !instance.facts.restart.restarts(exit.code) || instance.took.get().is_none() {
            return false;
        }
        let is_steady = made.started.elapsed() >= STEADY;
        let n_restarts = if is_steady { 0 } else { instance.n_restarts };
        let concurrency = self.config.executor.concurrency;
        let again = Arc::new(instance.again(n_restarts + 1, exit, concurrency));
        let end = End::Exited(exit.clone());
        if !self.pool.replace(instance, &again, end) {
            return false;
        }
        if let Some(reservation) = instance.take_reservation() {
            again.keep(reservation);
        }
        self.admission.nudge();
        instance.connections.clear();
        instance.gone.cancel();
        self.metrics.instance_ended("restarted");
        let pause = pause(n_restarts);
        tracing::info!(instance = %again.facts.id, sandbox = %again.sandbox_id, ?pause, "instance starts again");
        let executor = self.clone();
        let source = made.source.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = again.ended() => {}
                // The next process finds nothing that runs, and removes it.
                () = executor.stopped.cancelled() => {
                    executor.end(&again, End::Deleted);
                    return executor.forget(&again);
                }
            }
            if again.step(State::begun).is_err() {
                executor.bury(again).await;
                return;
            }
            let began = Instant::now();
            let made = executor.start_again(&again, source).await;
            executor.settle(again, made, None, began).await;
        });
        true
    }

    async fn start_again(
        &self,
        instance: &Instance,
        source: Option<Arc<Source>>,
    ) -> Result<Made, StartError> {
        let id = instance.facts.id.clone();
        tokio::select! {
            sandbox = self.adapter.restart(&instance.sandbox_id) => {
                let sandbox = sandbox.map_err(|source| StartError::Sandbox { id, source })?;
                Ok(Made::new(sandbox, source, Duration::ZERO))
            }
            _ = instance.ended() => Err(StartError::Deleted { id }),
        }
    }
}

/// How long the restart waits that follows `n` in a row.
fn pause(n: u32) -> Duration {
    FIRST_PAUSE
        .saturating_mul(2_u32.saturating_pow(n))
        .min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::instance::RestartPolicy;

    #[test]
    fn pauses_double_up_to_a_minute() {
        let pauses = [0, 1, 2, 9, 10, 40].map(|n| pause(n).as_millis());
        assert_eq!(pauses, [100, 200, 400, 51_200, 60_000, 60_000]);
    }

    #[test]
    fn the_policy_decides_by_the_exit_code() {
        let restarts = |name: &str| {
            let policy: RestartPolicy = name.parse().unwrap();
            [0, 1].map(|code| policy.restarts(code))
        };
        assert_eq!(restarts("no"), [false, false]);
        assert_eq!(restarts("always"), [true, true]);
        assert_eq!(restarts("unless-stopped"), [true, true]);
        assert_eq!(restarts("on-failure"), [false, true]);
    }
}
