//! What a container or a further process in one may do next. Pure.
//!
//! ```text
//! Created ──start──▶ Running ──pause──▶ Pausing ──paused──▶ Paused
//!    │ │                │ ▲                │                  │
//!    │ │                │ └──────unpaused──┘◀─────resume──────┘ (to Running)
//!    │ └──────exit──────┴─────────exit (from each)──────▶ Stopped
//!    └──────────────────────delete─────────────────────▶ Deleted ◀──delete── Stopped
//! ```

use containerd_shim::api::Status;

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It waits before its program.
    Created,
    /// Its program runs.
    Running,
    /// The kernel was asked to freeze it.
    Pausing,
    /// It is frozen.
    Paused,
    /// It has ended; its exit is kept.
    Stopped,
    /// Nothing is left of it.
    Deleted,
}

/// What is asked of a process, or was seen of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Its program was executed.
    Start,
    /// It is to be frozen.
    Pause,
    /// It is frozen.
    Paused,
    /// Freezing failed.
    Unpaused,
    /// It was thawed.
    Resume,
    /// A signal is sent to it.
    Kill,
    /// Another process is made beside it.
    Exec,
    /// Its limits change.
    Update,
    /// It ended.
    Exit,
    /// What is left of it is removed.
    Delete,
}

/// A step that the state does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot {} a {} process", step.verb(), from.adjective())]
pub struct StepError {
    /// What was asked.
    pub step: Step,
    /// Where the process was.
    pub from: State,
}

impl State {
    /// The state after a step.
    ///
    /// # Errors
    /// The state does not allow it; nothing has changed.
    pub fn after(self, step: Step) -> Result<Self, StepError> {
        let next = match self {
            Self::Created => self.created(step),
            Self::Running => self.running(step),
            Self::Pausing => self.pausing(step),
            Self::Paused => self.paused(step),
            Self::Stopped => match step {
                Step::Delete => Some(Self::Deleted),
                // The kernel froze what has ended meanwhile.
                Step::Paused | Step::Unpaused => Some(self),
                Step::Start
                | Step::Pause
                | Step::Resume
                | Step::Kill
                | Step::Exec
                | Step::Update
                | Step::Exit => None,
            },
            Self::Deleted => None,
        };
        next.ok_or(StepError { step, from: self })
    }

    /// As the Task API has it.
    #[must_use]
    pub fn status(self) -> Status {
        match self {
            Self::Created => Status::CREATED,
            Self::Running => Status::RUNNING,
            Self::Pausing => Status::PAUSING,
            Self::Paused => Status::PAUSED,
            Self::Stopped | Self::Deleted => Status::STOPPED,
        }
    }

    fn created(self, step: Step) -> Option<Self> {
        match step {
            Step::Start => Some(Self::Running),
            Step::Exit => Some(Self::Stopped),
            Step::Delete => Some(Self::Deleted),
            Step::Kill | Step::Exec | Step::Update => Some(self),
            Step::Pause | Step::Paused | Step::Unpaused | Step::Resume => None,
        }
    }

    fn running(self, step: Step) -> Option<Self> {
        match step {
            Step::Pause => Some(Self::Pausing),
            Step::Exit => Some(Self::Stopped),
            Step::Kill | Step::Exec | Step::Update => Some(self),
            Step::Start | Step::Paused | Step::Unpaused | Step::Resume | Step::Delete => None,
        }
    }

    fn pausing(self, step: Step) -> Option<Self> {
        match step {
            Step::Paused => Some(Self::Paused),
            Step::Unpaused => Some(Self::Running),
            Step::Exit => Some(Self::Stopped),
            Step::Kill | Step::Update => Some(self),
            Step::Start | Step::Pause | Step::Resume | Step::Exec | Step::Delete => None,
        }
    }

    fn paused(self, step: Step) -> Option<Self> {
        match step {
            Step::Resume => Some(Self::Running),
            Step::Exit => Some(Self::Stopped),
            Step::Kill | Step::Update => Some(self),
            Step::Start
            | Step::Pause
            | Step::Paused
            | Step::Unpaused
            | Step::Exec
            | Step::Delete => None,
        }
    }

    fn adjective(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Deleted => "deleted",
        }
    }
}

impl Step {
    fn verb(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Pause | Self::Paused => "pause",
            Self::Unpaused | Self::Resume => "resume",
            Self::Kill => "kill",
            Self::Exec => "exec in",
            Self::Update => "update",
            Self::Exit => "end",
            Self::Delete => "delete",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STEPS: [Step; 10] = [
        Step::Start,
        Step::Pause,
        Step::Paused,
        Step::Unpaused,
        Step::Resume,
        Step::Kill,
        Step::Exec,
        Step::Update,
        Step::Exit,
        Step::Delete,
    ];

    #[track_caller]
    fn check(steps: &[Step], expected: Result<State, &str>) {
        let state = steps
            .iter()
            .try_fold(State::Created, |state, step| state.after(*step))
            .map_err(|e| e.to_string());
        assert_eq!(state, expected.map_err(str::to_owned));
    }

    #[test]
    fn lives_from_create_to_delete() {
        check(&[Step::Start, Step::Exit, Step::Delete], Ok(State::Deleted));
        check(
            &[Step::Start, Step::Pause, Step::Paused, Step::Resume],
            Ok(State::Running),
        );
        check(
            &[Step::Start, Step::Pause, Step::Unpaused],
            Ok(State::Running),
        );
        check(&[Step::Delete], Ok(State::Deleted));
        check(&[Step::Exit, Step::Delete], Ok(State::Deleted));
        check(
            &[Step::Start, Step::Pause, Step::Exit, Step::Paused],
            Ok(State::Stopped),
        );
    }

    #[test]
    fn refuses_in_plain_words() {
        check(
            &[Step::Start, Step::Delete],
            Err("cannot delete a running process"),
        );
        check(
            &[Step::Start, Step::Start],
            Err("cannot start a running process"),
        );
        check(
            &[Step::Exit, Step::Start],
            Err("cannot start a stopped process"),
        );
        check(
            &[Step::Start, Step::Pause, Step::Paused, Step::Exec],
            Err("cannot exec in a paused process"),
        );
        check(&[Step::Pause], Err("cannot pause a created process"));
    }

    proptest! {
        /// Whatever comes in whatever order: a program runs once, an exit is seen once, and nothing follows a deletion.
        #[test]
        fn holds_over_any_order(steps in prop::collection::vec(prop::sample::select(&STEPS[..]), 0..40)) {
            let mut state = State::Created;
            let (mut n_starts, mut n_exits, mut frozen) = (0, 0, false);
            for step in steps {
                let Ok(next) = state.after(step) else { continue };
                prop_assert_ne!(state, State::Deleted);
                n_starts += usize::from(step == Step::Start);
                n_exits += usize::from(step == Step::Exit);
                if step == Step::Exec {
                    prop_assert!(!frozen);
                }
                frozen = matches!(next, State::Pausing | State::Paused);
                if step == Step::Delete {
                    prop_assert!(n_exits == 1 || n_starts == 0);
                }
                if next == State::Running {
                    prop_assert_eq!((n_starts, n_exits), (1, 0));
                }
                state = next;
            }
            prop_assert!(n_starts <= 1 && n_exits <= 1);
        }
    }
}
