//! Whether a new instance may be made: a part of the node's memory is reserved for it before, and the machine must not
//! be under pressure. Instances that serve are asked nothing.
//!
//! ```text
//! reserve ──▶ fits ──▶ Reservation, held as long as the sandbox is there
//!    └──▶ queue, first come first served ──▶ head: idle instances end for it ──▶ fits
//!              └──────────────┴──▶ refused when its time is over
//! ```
//!
//! Only the head of the queue waits for events: a reservation was given back, an instance became idle, the settings
//! changed. Nobody is told when pressure falls, so under pressure the head looks at it again and again.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio::{sync::Notify, time};

use super::{
    Executor,
    execution::{Fault, StartError},
    pool::Instance,
    state::{End, State},
};
use crate::{
    config::{Admission as Settings, Limits},
    telemetry::Metrics,
};

mod pressure;

pub use pressure::lacking;

/// Pause between two looks at the pressure, while an instance waits for it to fall. The kernel's averages change every
/// 2 s.
const LOOK: Duration = Duration::from_millis(200);

/// Why an instance is not made now.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Shortage {
    /// It would not fit even if it were alone.
    #[error(
        "its {} MiB of memory are more than the {} MiB that all instances of this node may have: \
         let it ask for less, or raise \"memory.budget\" of [admission]",
        mib(*needed), mib(*budget)
    )]
    TooLarge {
        /// Bytes.
        needed: u64,
        /// Bytes.
        budget: u64,
    },
    /// Other instances have the memory, and are in use.
    #[error(
        "its {} MiB of memory do not fit: {} of the {} MiB that all instances of this node may have are reserved by \
         instances in use; come back later, or raise \"memory.budget\" of [admission]",
        mib(*needed), mib(*reserved), mib(*budget)
    )]
    Memory {
        /// Bytes.
        needed: u64,
        /// Bytes.
        reserved: u64,
        /// Bytes.
        budget: u64,
    },
    /// The machine is too busy.
    #[error(
        "{line} {resource} pressure of this machine is {found} %, above the threshold of {limit} %: come back later, \
         or raise \"{resource}.pressure\" of [admission]"
    )]
    Pressure {
        /// `cpu`, `memory` or `io`.
        resource: &'static str,
        /// `some` or `full`.
        line: &'static str,
        /// Percent of the last ten seconds.
        found: f64,
        /// Percent.
        limit: f64,
    },
    /// Others wait before it.
    #[error(
        "{n_waiting} instances wait to be started: come back later, or raise \"queue\" or \"wait_ms\" of [admission]"
    )]
    Queue {
        /// How many.
        n_waiting: usize,
    },
}

impl Shortage {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::TooLarge { .. } => Fault::Caller,
            Self::Memory { .. } | Self::Pressure { .. } | Self::Queue { .. } => Fault::Load,
        }
    }

    /// A stable word for metrics, logs and answers.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "runtime_too_large",
            Self::Memory { .. } => "host_memory_full",
            Self::Pressure { .. } => "host_under_pressure",
            Self::Queue { .. } => "host_queue_full",
        }
    }
}

/// What is reserved and who waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reserved {
    /// Bytes that are reserved.
    pub reserved: u64,
    /// Bytes that may be; none is no limit.
    pub budget: Option<u64>,
    /// Instances that wait.
    pub n_waiting: usize,
}

/// Lets instances in.
#[derive(Debug)]
pub(super) struct Admission {
    settings: ArcSwap<Settings>,
    /// The machine's memory. Bytes.
    machine: u64,
    ledger: Mutex<Ledger>,
    /// Held by the head of the queue. Those behind it are in the order in which they came.
    head: tokio::sync::Mutex<()>,
    n_waiting: AtomicUsize,
    /// Wakes the head.
    changed: Notify,
    metrics: Arc<Metrics>,
}

/// Who has how much of the memory. Bytes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ledger {
    reserved: u64,
    /// What of it comes back soon.
    leaving: u64,
}

impl Ledger {
    /// Whether so much more fits.
    fn check(&self, needed: u64, budget: Option<u64>) -> Result<(), Shortage> {
        let reserved = self.reserved;
        match budget {
            Some(budget) if needed > budget => Err(Shortage::TooLarge { needed, budget }),
            Some(budget) if reserved.saturating_add(needed) > budget => Err(Shortage::Memory {
                needed,
                reserved,
                budget,
            }),
            Some(_) | None => Ok(()),
        }
    }

    /// What is missing once those that leave have left.
    fn missing(&self, needed: u64, budget: u64) -> u64 {
        (self.reserved - self.leaving)
            .saturating_add(needed)
            .saturating_sub(budget)
    }
}

/// A part of the node's memory. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct Reservation {
    admission: Arc<Admission>,
    bytes: u64,
    is_leaving: bool,
}

impl Reservation {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// It is given back soon: nobody else need leave for as much.
    pub(super) fn leave(&mut self) {
        if !self.is_leaving {
            self.is_leaving = true;
            self.admission.ledger().leaving += self.bytes;
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.admission.change(|ledger| {
            ledger.reserved -= self.bytes;
            if self.is_leaving {
                ledger.leaving -= self.bytes;
            }
        });
        self.admission.changed.notify_one();
    }
}

/// A place in the queue. Dropping it leaves the queue.
struct Place<'a>(&'a Admission);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.n_waiting.fetch_sub(1, Ordering::SeqCst);
        self.0.metrics.instances_waiting.dec();
    }
}

impl Admission {
    pub(super) fn new(settings: Settings, metrics: Arc<Metrics>) -> Arc<Self> {
        let about = rustix::system::sysinfo();
        let admission = Self {
            settings: ArcSwap::default(),
            machine: about.totalram as u64 * u64::from(about.mem_unit),
            ledger: Mutex::default(),
            head: tokio::sync::Mutex::default(),
            n_waiting: AtomicUsize::new(0),
            changed: Notify::new(),
            metrics,
        };
        admission.set(settings);
        Arc::new(admission)
    }

    /// Other settings from now on, for those that wait too. Nothing that is there ends for them.
    pub(super) fn set(&self, settings: Settings) {
        self.settings.store(Arc::new(settings));
        let budget = self.budget().unwrap_or(0);
        self.metrics.memory_budget.set(budget.cast_signed());
        self.changed.notify_one();
    }

    pub(super) fn reserved(&self) -> Reserved {
        Reserved {
            reserved: self.ledger().reserved,
            budget: self.budget(),
            n_waiting: self.n_waiting.load(Ordering::SeqCst),
        }
    }

    /// For what is there already, whether it fits or not.
    pub(super) fn take(self: &Arc<Self>, bytes: u64) -> Reservation {
        self.change(|ledger| ledger.reserved += bytes);
        self.reservation(bytes)
    }

    fn reservation(self: &Arc<Self>, bytes: u64) -> Reservation {
        Reservation {
            admission: self.clone(),
            bytes,
            is_leaving: false,
        }
    }

    /// Waits until so much memory is free and no threshold is passed. `make_room` is told what is missing, and may end
    /// what is idle. Dropping this leaves the queue.
    pub(super) async fn reserve(
        self: &Arc<Self>,
        bytes: u64,
        make_room: impl Fn(u64),
    ) -> Result<Reservation, Shortage> {
        let settings = self.settings.load_full();
        // Where nobody waits, nobody is passed.
        if self.n_waiting.load(Ordering::SeqCst) == 0
            && let Ok(reservation) = self.try_reserve(bytes)
        {
            return Ok(reservation);
        }
        if let Some(shortage @ Shortage::TooLarge { .. }) = self.shortage(bytes) {
            return Err(shortage);
        }
        let n_waiting = self.n_waiting.fetch_add(1, Ordering::SeqCst);
        self.metrics.instances_waiting.inc();
        let _place = Place(self);
        if n_waiting >= settings.queue {
            return Err(Shortage::Queue { n_waiting });
        }
        let turn = async {
            let _head = self.head.lock().await;
            loop {
                let shortage = match self.try_reserve(bytes) {
                    Ok(reservation) => return Ok(reservation),
                    Err(shortage) => shortage,
                };
                match shortage {
                    Shortage::TooLarge { .. } | Shortage::Queue { .. } => return Err(shortage),
                    Shortage::Memory { budget, .. } => {
                        let missing = self.ledger().missing(bytes, budget);
                        if missing > 0 {
                            make_room(missing);
                        }
                        self.changed.notified().await;
                    }
                    Shortage::Pressure { .. } => {
                        // Told of other settings at once.
                        let _ = time::timeout(LOOK, self.changed.notified()).await;
                    }
                }
            }
        };
        match time::timeout(Duration::from_millis(settings.wait_ms), turn).await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.shortage(bytes).unwrap_or(Shortage::Queue {
                n_waiting: self.n_waiting.load(Ordering::SeqCst),
            })),
        }
    }

    /// Why an instance of so much memory that waits is not made now.
    pub(super) fn shortage(&self, bytes: u64) -> Option<Shortage> {
        let checked = self.ledger().check(bytes, self.budget());
        match checked {
            Err(shortage @ Shortage::TooLarge { .. }) => Some(shortage),
            checked => pressure::passed(&self.settings.load()).or(checked.err()),
        }
    }

    fn try_reserve(self: &Arc<Self>, bytes: u64) -> Result<Reservation, Shortage> {
        let budget = self.budget();
        if let Some(shortage) = pressure::passed(&self.settings.load()) {
            return Err(shortage);
        }
        self.change(|ledger| {
            ledger.check(bytes, budget)?;
            ledger.reserved += bytes;
            Ok(())
        })?;
        Ok(self.reservation(bytes))
    }

    /// Something became idle, which may end for those that wait.
    pub(super) fn nudge(&self) {
        // Whoever looked before this instance was idle has counted itself before.
        if self.n_waiting.load(Ordering::SeqCst) > 0 {
            self.changed.notify_one();
        }
    }

    fn budget(&self) -> Option<u64> {
        let budget = self.settings.load().memory_budget;
        budget.map(|budget| budget.bytes(self.machine))
    }

    fn change<T>(&self, change: impl FnOnce(&mut Ledger) -> T) -> T {
        let mut ledger = self.ledger();
        let outcome = change(&mut ledger);
        let reserved = ledger.reserved.cast_signed();
        self.metrics.memory_reserved.set(reserved);
        outcome
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Executor {
    /// Other settings of admission from now on. Answers the thresholds that this machine has no figures for.
    pub fn set_admission(&self, settings: Settings) -> Vec<String> {
        let lacking = lacking(&settings);
        self.admission.set(settings);
        lacking
    }

    /// The memory that is reserved for instances.
    pub fn reserved(&self) -> Reserved {
        self.admission.reserved()
    }

    /// Waits for room for an instance, which it has from then on.
    pub(super) async fn let_in(self: &Arc<Self>, instance: &Instance) -> Result<(), StartError> {
        let id = || instance.facts.id.clone();
        let bytes = instance.facts.reserved_bytes();
        let reserved = self.admission.reserve(bytes, |missing| self.evict(missing));
        let reservation = reserved.await.map_err(|source| {
            tracing::warn!(instance = %id(), reason = source.kind(), %source, "instance was not admitted");
            StartError::NotAdmitted { id: id(), source }
        })?;
        instance.keep(reservation);
        let admitted = instance.step(State::admitted);
        admitted.map_err(|_| StartError::Deleted { id: id() })
    }

    /// Ends idle instances that have so much memory together, those first that were idle for longest; none where all of
    /// them have less. One that a client wants kept for a time is not idle before that is over.
    fn evict(self: &Arc<Self>, missing: u64) {
        let now = Instant::now();
        let is_idle = |instance: &Instance, state: &State| {
            let keep_alive = instance.facts.keep_alive.unwrap_or(Duration::ZERO);
            state.is_reapable(now, keep_alive)
        };
        let mut idle: Vec<_> = self.pool.all();
        idle.retain(|instance| {
            instance.reserved_bytes() > 0 && is_idle(instance, &instance.state.borrow())
        });
        let all: u64 = idle.iter().map(|instance| instance.reserved_bytes()).sum();
        if all < missing {
            return;
        }
        idle.sort_by_key(|instance| instance.state.borrow().updated());
        let mut freed = 0;
        for instance in idle {
            if freed >= missing {
                return;
            }
            let bytes = instance.reserved_bytes();
            if self.end_if(&instance, End::Evicted, |state| is_idle(&instance, state)) {
                freed += bytes;
            }
        }
    }
}

/// What is reserved for an instance with this limit. One without a limit counts as one with the default limit.
pub(super) fn reserved_bytes(limit: u64) -> u64 {
    match limit {
        0 => Limits::default().memory_bytes,
        limit => limit,
    }
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

#[cfg(test)]
mod tests;
