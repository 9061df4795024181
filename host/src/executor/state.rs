//! What an instance may do next. Pure: time is an argument, nothing here waits.
//!
//! ```text
//! Queued ───────▶ Pending ──▶ Running ──▶ Ready
//! Restarting ───────┘│           │          │
//!     └──────────────┴───────────┴──────────┴──▶ Ended
//! ```

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::execution::{Exit, StartError};

/// How far an instance is.
#[derive(Debug, Clone)]
pub(super) enum Stage {
    /// It waits for its turn and for room on this node; nothing of it is made.
    Queued,
    /// Its main process has ended, and is started again after a pause.
    Restarting,
    /// It is being made: its sandbox, and what is set up in it.
    Pending,
    /// Its main process runs.
    Running,
    /// Its port accepts.
    Ready,
    /// It serves no more; the last stage.
    Ended(End),
}

/// Why an instance ended.
#[derive(Debug, Clone)]
pub(super) enum End {
    /// It could not be made.
    Failed(Arc<StartError>),
    /// Its main process ended by itself.
    Exited(Exit),
    /// It was deleted: by request, or for want of work.
    Deleted,
    /// It was idle, and another needed its memory.
    Evicted,
}

impl End {
    /// A stable word for metrics and log lines.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Failed(error) => error.kind(),
            Self::Exited(exit) if exit.out_of_memory => "out_of_memory",
            Self::Exited(_) => "exited",
            Self::Deleted => "deleted",
            Self::Evicted => "evicted",
        }
    }
}

impl Stage {
    /// Whether its main process does not run yet, but will.
    pub(super) fn is_to_come(&self) -> bool {
        match self {
            Self::Queued | Self::Restarting | Self::Pending => true,
            Self::Running | Self::Ready | Self::Ended(_) => false,
        }
    }
}

/// A step that the stage does not allow.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct StepError;

/// Why an execution is not let in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The instance has ended.
    Ended,
    /// As many executions as may be are in it or wait for it.
    Full,
}

/// An instance's stage and load.
#[derive(Debug, Clone)]
pub(super) struct State {
    stage: Stage,
    n_executions: usize,
    /// All executions that were ever let in.
    n_admitted: u64,
    /// Others that use it: commands, readers of its transcript.
    n_holds: usize,
    updated: Instant,
    is_retired: bool,
}

impl State {
    pub(super) fn new(stage: Stage, now: Instant) -> Self {
        Self {
            stage,
            n_executions: 0,
            n_admitted: 0,
            n_holds: 0,
            updated: now,
            is_retired: false,
        }
    }

    /// The state of an instance that starts again: as long unused as it was.
    pub(super) fn restarting(&self) -> Self {
        Self {
            stage: Stage::Restarting,
            n_executions: 0,
            n_holds: 0,
            ..*self
        }
    }

    pub(super) fn stage(&self) -> &Stage {
        &self.stage
    }

    pub(super) fn n_executions(&self) -> usize {
        self.n_executions
    }

    pub(super) fn n_admitted(&self) -> u64 {
        self.n_admitted
    }

    pub(super) fn updated(&self) -> Instant {
        self.updated
    }

    /// There is room for it.
    pub(super) fn admitted(&mut self) -> Result<(), StepError> {
        match self.stage {
            Stage::Queued => {
                self.stage = Stage::Pending;
                Ok(())
            }
            Stage::Restarting
            | Stage::Pending
            | Stage::Running
            | Stage::Ready
            | Stage::Ended(_) => Err(StepError),
        }
    }

    /// The pause before a restart is over.
    pub(super) fn begun(&mut self) -> Result<(), StepError> {
        match self.stage {
            Stage::Restarting => {
                self.stage = Stage::Pending;
                Ok(())
            }
            Stage::Queued | Stage::Pending | Stage::Running | Stage::Ready | Stage::Ended(_) => {
                Err(StepError)
            }
        }
    }

    /// The main process runs.
    pub(super) fn started(&mut self, now: Instant) -> Result<(), StepError> {
        match self.stage {
            Stage::Pending => {
                self.stage = Stage::Running;
                self.updated = now;
                Ok(())
            }
            Stage::Queued | Stage::Restarting | Stage::Running | Stage::Ready | Stage::Ended(_) => {
                Err(StepError)
            }
        }
    }

    /// The port accepts. Succeeds again where it did before.
    pub(super) fn listening(&mut self) -> Result<(), StepError> {
        match self.stage {
            Stage::Running | Stage::Ready => {
                self.stage = Stage::Ready;
                Ok(())
            }
            Stage::Queued | Stage::Restarting | Stage::Pending | Stage::Ended(_) => Err(StepError),
        }
    }

    /// Nothing more is let in. The first reason counts; says whether this was it.
    pub(super) fn end(&mut self, end: End) -> bool {
        match self.stage {
            Stage::Queued | Stage::Restarting | Stage::Pending | Stage::Running | Stage::Ready => {
                self.stage = Stage::Ended(end);
                true
            }
            Stage::Ended(_) => false,
        }
    }

    /// Lets one execution in, where fewer than `room` are in.
    pub(super) fn admit(&mut self, room: usize, now: Instant) -> Result<(), Refusal> {
        match self.stage {
            Stage::Ended(_) => Err(Refusal::Ended),
            Stage::Queued | Stage::Restarting | Stage::Pending | Stage::Running | Stage::Ready => {
                if self.n_executions >= room {
                    return Err(Refusal::Full);
                }
                self.n_executions += 1;
                self.n_admitted += 1;
                self.updated = now;
                Ok(())
            }
        }
    }

    /// One execution that was let in is over.
    pub(super) fn release(&mut self, now: Instant) {
        self.n_executions -= 1;
        self.updated = now;
    }

    /// Something that is no execution uses it from now on.
    pub(super) fn hold(&mut self) {
        self.n_holds += 1;
    }

    /// The end of what began with [`State::hold`].
    pub(super) fn let_go(&mut self) {
        self.n_holds -= 1;
    }

    /// The instance goes as soon as nothing uses it.
    pub(super) fn retire(&mut self) {
        self.is_retired = true;
    }

    /// Whether it may be reaped: not being made, unused, and retired or idle for `threshold`; or waiting for nobody.
    pub(super) fn is_reapable(&self, now: Instant, threshold: Duration) -> bool {
        let is_unused = self.n_executions == 0 && self.n_holds == 0;
        match self.stage {
            Stage::Pending | Stage::Ended(_) => false,
            // Whoever it was for has gone away.
            Stage::Queued => is_unused && (self.is_retired || self.n_admitted > 0),
            Stage::Restarting | Stage::Running | Stage::Ready => {
                let is_idle = now.saturating_duration_since(self.updated) >= threshold;
                is_unused && (self.is_retired || is_idle)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IDLE: Duration = Duration::from_secs(60);

    fn ready(now: Instant) -> State {
        State::new(Stage::Ready, now)
    }

    #[test]
    fn keeps_an_instance_that_is_running_an_execution() {
        let start = Instant::now();
        let mut state = ready(start);
        state.admit(1, start).unwrap();
        assert!(!state.is_reapable(start + 100 * IDLE, IDLE));
        state.release(start + 100 * IDLE);
        assert!(!state.is_reapable(start + 100 * IDLE, IDLE));
        assert!(state.is_reapable(start + 101 * IDLE, IDLE));
    }

    #[test]
    fn keeps_an_instance_that_a_command_runs_in() {
        let start = Instant::now();
        let mut state = ready(start);
        state.hold();
        assert!(!state.is_reapable(start + 100 * IDLE, IDLE));
        state.let_go();
        assert!(state.is_reapable(start + 100 * IDLE, IDLE));
    }

    #[test]
    fn keeps_an_instance_that_is_being_made() {
        let start = Instant::now();
        let state = State::new(Stage::Pending, start);
        assert!(!state.is_reapable(start + 100 * IDLE, IDLE));
    }

    #[test]
    fn an_instance_that_waits_for_room_goes_with_the_last_who_wants_it() {
        let start = Instant::now();
        let queued = || State::new(Stage::Queued, start);
        assert!(!queued().is_reapable(start + 100 * IDLE, IDLE));
        let mut state = queued();
        state.admit(2, start).unwrap();
        state.admit(2, start).unwrap();
        state.release(start);
        assert!(!state.is_reapable(start, Duration::MAX));
        state.release(start);
        assert!(state.is_reapable(start, Duration::MAX));
        // Who makes it holds it.
        state.hold();
        assert!(!state.is_reapable(start, Duration::MAX));
        state.admitted().unwrap();
        assert_eq!(state.admitted(), Err(StepError));
        state.let_go();
        assert!(!state.is_reapable(start, Duration::MAX));
        state.started(start).unwrap();
        assert!(state.is_reapable(start, Duration::ZERO));
    }

    #[test]
    fn a_retired_instance_goes_once_it_is_unused() {
        let start = Instant::now();
        let mut state = ready(start);
        state.admit(2, start).unwrap();
        state.retire();
        assert!(!state.is_reapable(start, IDLE));
        state.release(start);
        assert!(state.is_reapable(start, IDLE));
    }

    #[test]
    fn refuses_what_has_no_room() {
        let start = Instant::now();
        let mut state = ready(start);
        state.admit(1, start).unwrap();
        assert_eq!(state.admit(1, start), Err(Refusal::Full));
        state.end(End::Deleted);
        assert_eq!(state.admit(2, start), Err(Refusal::Ended));
    }

    #[test]
    fn an_instance_that_starts_again_stays_as_long_unused_as_it_was() {
        let start = Instant::now();
        let mut state = ready(start).restarting();
        assert!(!state.is_reapable(start, IDLE));
        assert!(state.is_reapable(start + IDLE, IDLE));
        state.admit(1, start).unwrap();
        assert!(!state.is_reapable(start + IDLE, IDLE));
        assert_eq!(state.started(start), Err(StepError));
        state.begun().unwrap();
        assert_eq!(state.begun(), Err(StepError));
        state.started(start).unwrap();
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Admitted,
        Started,
        Listening,
        Admit,
        Release,
        End,
        Retire,
        Wait,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        use Step::{Admit, Admitted, End, Listening, Release, Retire, Started, Wait};
        let step = prop::sample::select(vec![
            Admitted, Started, Listening, Admit, Admit, Release, Release, End, Retire, Wait,
        ]);
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        #[test]
        fn in_whatever_order_events_come(steps in steps()) {
            let mut now = Instant::now();
            let mut state = State::new(Stage::Queued, now);
            let (mut inside, mut has_ended, mut was_let_in, mut was_made) = (0, false, false, false);
            for step in steps {
                match step {
                    Step::Admitted => was_let_in |= state.admitted().is_ok(),
                    Step::Started => was_made |= state.started(now).is_ok(),
                    Step::Listening => prop_assert_eq!(state.listening().is_ok(), was_made && !has_ended),
                    Step::Admit => inside += usize::from(state.admit(3, now).is_ok()),
                    Step::Release if inside > 0 => {
                        state.release(now);
                        inside -= 1;
                    }
                    Step::Release => {}
                    Step::End => {
                        prop_assert_eq!(state.end(End::Deleted), !has_ended);
                        has_ended = true;
                    }
                    Step::Retire => state.retire(),
                    Step::Wait => now += IDLE,
                }
                prop_assert_eq!(state.n_executions(), inside);
                prop_assert!(inside <= 3);
                prop_assert_eq!(matches!(state.stage(), Stage::Ended(_)), has_ended);
                if state.is_reapable(now, IDLE) {
                    prop_assert!(inside == 0 && was_made == was_let_in && !has_ended);
                }
            }
        }
    }
}
