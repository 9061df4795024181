//! The instances of this host, and all that is known of each.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::{
    admission::{self, Admission, Reservation},
    connection::Connections,
    dispatch::Credentials,
    execution::Exit,
    instance::{InstanceInfo, InstanceSpec, Protocol, RestartPolicy},
    logs::LogFiles,
    source::Source,
    state::{End, Refusal, Stage, State},
    transcript::Transcript,
};
use crate::{
    adapter::Sandbox,
    id::{ClassName, FunctionName, InstanceId, SandboxId},
};

/// The label under which [`Facts`] are kept with the container.
const LABEL: &str = "opr/instance";

/// What the host must know of an instance after its own restart; kept with the container as JSON.
///
/// ```json
/// {"id":"hello.0123456789ab","function":"hello","class":"function","image":"docker.io/openruntimes/node:v5-22",
///  "protocol":"v5","hostname":"<32 hex>","key":"<32 hex>","created":{"secs_since_epoch":0,"nanos_since_epoch":0}}
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Facts {
    pub(super) id: InstanceId,
    pub(super) function: Option<FunctionName>,
    pub(super) class: ClassName,
    pub(super) image: String,
    pub(super) protocol: Protocol,
    pub(super) hostname: String,
    pub(super) key: String,
    pub(super) created: SystemTime,
    #[serde(default)]
    pub(super) restart: RestartPolicy,
    #[serde(default)]
    pub(super) keep_alive: Option<Duration>,
    /// Its limit; 0 is none.
    #[serde(default)]
    pub(super) memory_bytes: u64,
}

impl Facts {
    pub(super) fn new(spec: &InstanceSpec) -> Self {
        Self {
            id: spec.id.clone(),
            function: spec.function.clone(),
            class: spec.class.clone(),
            image: spec.image.to_string(),
            protocol: spec.protocol,
            hostname: random_hex(),
            key: random_hex(),
            created: SystemTime::now(),
            restart: spec.restart,
            keep_alive: spec.keep_alive,
            memory_bytes: spec.limits.memory_bytes,
        }
    }

    /// What is reserved for it of the node's memory.
    pub(super) fn reserved_bytes(&self) -> u64 {
        admission::reserved_bytes(self.memory_bytes)
    }

    pub(super) fn labels(&self) -> BTreeMap<String, String> {
        let text = serde_json::to_string(self).expect("facts are plain values");
        BTreeMap::from([(LABEL.to_owned(), text)])
    }

    /// `None` where the container is no instance.
    pub(super) fn from_labels(labels: &BTreeMap<String, String>) -> Option<Self> {
        serde_json::from_str(labels.get(LABEL)?).ok()
    }

    /// The name under which what it writes is found.
    pub(super) fn journal_name(&self) -> &str {
        self.function
            .as_ref()
            .map_or(self.id.as_str(), FunctionName::as_str)
    }
}

/// 16 random bytes as 32 hexadecimal digits.
fn random_hex() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// One instance: a sandbox bound to one function.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) facts: Facts,
    pub(super) sandbox_id: SandboxId,
    pub(super) state: watch::Sender<State>,
    /// One permit an execution at once.
    pub(super) places: Arc<Semaphore>,
    pub(super) connections: Connections,
    pub(super) credentials: Credentials,
    /// There from the stage `Running` on, and while it is set up.
    pub(super) made: OnceLock<Made>,
    /// How long all of the creation took, its setup included.
    pub(super) took: OnceLock<Duration>,
    /// How long its port took to accept.
    pub(super) boot: OnceLock<Duration>,
    pub(super) is_probing: AtomicBool,
    pub(super) notices: Notices,
    /// How many times in a row its main process was started again.
    pub(super) n_restarts: u32,
    /// How the main process before this one ended.
    pub(super) last_exit: Option<Exit>,
    /// There from its admission until nothing of it is left.
    reservation: Mutex<Option<Reservation>>,
    cpu: Mutex<Option<CpuTime>>,
    log_files: OnceLock<Option<Arc<LogFiles>>>,
    /// What its setup writes, or where it has none, its main process.
    pub(super) transcript: Arc<Transcript>,
    /// Cancelled when nothing of it is left.
    pub(super) gone: CancellationToken,
}

/// A sandbox that was made for an instance.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) sandbox: Sandbox,
    /// The archive of its code, which is there as long as this is.
    pub(super) source: Option<Arc<Source>>,
    /// How long it took to fetch and unpack the code.
    pub(super) code: Duration,
    pub(super) started: Instant,
}

impl Made {
    /// A sandbox whose main process runs from now on.
    pub(super) fn new(sandbox: Sandbox, source: Option<Arc<Source>>, code: Duration) -> Self {
        Self {
            sandbox,
            source,
            code,
            started: Instant::now(),
        }
    }
}

/// What the processors have done for an instance.
#[derive(Debug, Clone, Copy)]
struct CpuTime {
    at: Instant,
    used: Duration,
}

/// What the engine told of an instance.
#[derive(Debug, Default)]
pub(super) struct Notices {
    pub(super) exit: OnceLock<u32>,
    is_out_of_memory: AtomicBool,
    out_of_memory: Notify,
}

impl Notices {
    pub(super) fn note_out_of_memory(&self) {
        self.is_out_of_memory.store(true, Ordering::SeqCst);
        self.out_of_memory.notify_one();
    }

    /// Whether a process was killed for want of memory; the word of it may come after that of the exit.
    pub(super) async fn was_out_of_memory(&self, patience: Duration) -> bool {
        if !self.is_out_of_memory.load(Ordering::SeqCst) {
            let notice = self.out_of_memory.notified();
            // Its absence is an answer too.
            let _ = tokio::time::timeout(patience, notice).await;
        }
        self.is_out_of_memory.load(Ordering::SeqCst)
    }
}

impl Instance {
    pub(super) fn new(facts: Facts, sandbox_id: SandboxId, concurrency: usize) -> Self {
        Self {
            credentials: Credentials::new(&facts.key),
            facts,
            sandbox_id,
            state: watch::Sender::new(State::new(Stage::Queued, Instant::now())),
            places: Arc::new(Semaphore::new(concurrency)),
            connections: Connections::default(),
            made: OnceLock::new(),
            took: OnceLock::new(),
            boot: OnceLock::new(),
            is_probing: AtomicBool::new(false),
            notices: Notices::default(),
            n_restarts: 0,
            last_exit: None,
            reservation: Mutex::default(),
            cpu: Mutex::default(),
            log_files: OnceLock::new(),
            transcript: Arc::new(Transcript::of_server()),
            gone: CancellationToken::new(),
        }
    }

    /// The same instance, whose main process has ended and is to be started again.
    pub(super) fn again(&self, n_restarts: u32, exit: &Exit, concurrency: usize) -> Self {
        let new = Self::new(self.facts.clone(), self.sandbox_id.clone(), concurrency);
        Self {
            state: watch::Sender::new(self.state.borrow().restarting()),
            n_restarts,
            last_exit: Some(exit.clone()),
            transcript: self.transcript.clone(),
            ..new
        }
    }

    /// Percent of one processor that it has used since the last call, or since its creation; `used` is all of it.
    pub(super) fn cpu_usage(&self, used: Duration) -> Option<f64> {
        let at = Instant::now();
        let mut last = self.cpu.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, passed) = match last.replace(CpuTime { at, used }) {
            Some(last) => (last.used, at - last.at),
            None => (Duration::ZERO, self.facts.created.elapsed().ok()?),
        };
        let share = used.saturating_sub(before).as_secs_f64() / passed.as_secs_f64();
        share
            .is_finite()
            .then(|| (share * 10_000.0).round() / 100.0)
    }

    /// Where its server leaves the logs of executions.
    pub(super) fn log_files(&self) -> Option<Arc<LogFiles>> {
        let dir = self.made.get()?.sandbox.scratch_dir("logs");
        let open = || LogFiles::open(&dir).ok().map(Arc::new);
        self.log_files.get_or_init(open).clone()
    }

    pub(super) fn stage(&self) -> Stage {
        self.state.borrow().stage().clone()
    }

    /// Keeps it from being reaped while something that is no execution uses it.
    pub(super) fn hold(self: &Arc<Self>, admission: &Arc<Admission>) -> Hold {
        self.load(State::hold);
        Hold(self.clone(), admission.clone())
    }

    /// Its memory is reserved from now on.
    pub(super) fn keep(&self, reservation: Reservation) {
        *self.reservation() = Some(reservation);
    }

    /// It ends, and gives its memory back soon.
    pub(super) fn leave(&self) {
        if let Some(reservation) = &mut *self.reservation() {
            reservation.leave();
        }
    }

    /// The memory that is reserved for it; 0 where it has not come so far.
    pub(super) fn reserved_bytes(&self) -> u64 {
        self.reservation().as_ref().map_or(0, Reservation::bytes)
    }

    /// Its sandbox is another's now, or gone.
    pub(super) fn take_reservation(&self) -> Option<Reservation> {
        self.reservation().take()
    }

    fn reservation(&self) -> std::sync::MutexGuard<'_, Option<Reservation>> {
        self.reservation
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether its main process runs and an execution waits for its port.
    pub(super) fn is_awaited(&self) -> bool {
        let state = self.state.borrow();
        matches!(state.stage(), Stage::Running) && state.n_executions() > 0
    }

    /// A change of the stage, told to whoever waits.
    pub(super) fn step<T, E>(&self, step: impl FnOnce(&mut State) -> Result<T, E>) -> Result<T, E> {
        let mut outcome = None;
        self.state.send_if_modified(|state| {
            let result = step(state);
            let is_ok = result.is_ok();
            outcome = Some(result);
            is_ok
        });
        outcome.expect("the closure ran")
    }

    /// A change of the load, of interest to nobody who waits.
    pub(super) fn load<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut outcome = None;
        self.state.send_if_modified(|state| {
            outcome = Some(change(state));
            false
        });
        outcome.expect("the closure ran")
    }

    /// Waits for the end; answers why.
    pub(super) async fn ended(&self) -> End {
        let mut states = self.state.subscribe();
        let is_ended = |state: &State| matches!(state.stage(), Stage::Ended(_));
        let state = states.wait_for(is_ended).await;
        let state = state.expect("the sender is borrowed from the instance");
        match state.stage() {
            Stage::Ended(end) => end.clone(),
            Stage::Queued | Stage::Restarting | Stage::Pending | Stage::Running | Stage::Ready => {
                End::Deleted
            }
        }
    }

    pub(super) fn info(&self) -> InstanceInfo {
        let state = self.state.borrow();
        let facts = &self.facts;
        InstanceInfo {
            id: facts.id.clone(),
            function: facts.function.clone(),
            class: facts.class.clone(),
            image: facts.image.clone(),
            protocol: facts.protocol,
            hostname: facts.hostname.clone(),
            key: facts.key.clone(),
            created: facts.created,
            updated: SystemTime::now() - state.updated().elapsed(),
            start_duration: self.took.get().copied(),
            is_listening: matches!(state.stage(), Stage::Ready),
            n_executions: state.n_executions(),
            n_admitted: state.n_admitted(),
        }
    }
}

/// Keeps an instance from being reaped.
#[derive(Debug)]
pub(super) struct Hold(Arc<Instance>, Arc<Admission>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.load(State::let_go);
        self.1.nudge();
    }
}

/// The instances by name; of one name, the one that has not ended.
#[derive(Debug, Default)]
pub(super) struct Pool {
    instances: Mutex<HashMap<InstanceId, Arc<Instance>>>,
    added: Notify,
}

/// What came of asking for an instance.
#[derive(Debug)]
pub(super) enum Claim {
    /// There is one, and it let the execution in.
    Found(Arc<Instance>),
    /// One was added that has still to be made, with the execution let in.
    Added(Arc<Instance>),
    /// There is none.
    Absent,
    /// There is one, with no room.
    Full,
}

impl Pool {
    /// Lets an execution into the instance of this name, which is added where there is none.
    pub(super) fn claim(
        &self,
        id: &InstanceId,
        room: usize,
        add: impl FnOnce() -> Option<Instance>,
    ) -> Claim {
        let mut instances = self.lock();
        if let Some(instance) = instances.get(id) {
            match instance.load(|state| state.admit(room, Instant::now())) {
                Ok(()) => return Claim::Found(instance.clone()),
                Err(Refusal::Full) => return Claim::Full,
                Err(Refusal::Ended) => {}
            }
        }
        let Some(instance) = add().map(Arc::new) else {
            return Claim::Absent;
        };
        instance
            .load(|state| state.admit(room, Instant::now()))
            .expect("a new instance has room");
        instances.insert(id.clone(), instance.clone());
        self.added.notify_waiters();
        Claim::Added(instance)
    }

    /// Adds an instance, unless one of its name serves.
    pub(super) fn add(&self, instance: Instance) -> Result<Arc<Instance>, Arc<Instance>> {
        let mut instances = self.lock();
        if let Some(found) = instances.get(&instance.facts.id)
            && !matches!(found.stage(), Stage::Ended(_))
        {
            return Err(found.clone());
        }
        let instance = Arc::new(instance);
        instances.insert(instance.facts.id.clone(), instance.clone());
        self.added.notify_waiters();
        Ok(instance)
    }

    /// Waits until there is an instance of this name.
    pub(super) async fn wait_for(&self, id: &InstanceId) -> Arc<Instance> {
        loop {
            // Before the look, so that none is missed in between.
            let added = self.added.notified();
            tokio::pin!(added);
            added.as_mut().enable();
            if let Some(instance) = self.get(id) {
                return instance;
            }
            added.await;
        }
    }

    pub(super) fn get(&self, id: &InstanceId) -> Option<Arc<Instance>> {
        let instance = self.lock().get(id).cloned()?;
        (!matches!(instance.stage(), Stage::Ended(_))).then_some(instance)
    }

    /// Puts `again` in the place of an instance, which ends. Says whether that was still there.
    pub(super) fn replace(&self, old: &Arc<Instance>, again: &Arc<Instance>, end: End) -> bool {
        let mut instances = self.lock();
        let id = &old.facts.id;
        let is_there = instances
            .get(id)
            .is_some_and(|found| Arc::ptr_eq(found, old));
        if !is_there
            || old
                .step(|state| state.end(end).then_some(()).ok_or(()))
                .is_err()
        {
            return false;
        }
        instances.insert(id.clone(), again.clone());
        true
    }

    /// Forgets this instance, and no later one of its name.
    pub(super) fn remove(&self, instance: &Arc<Instance>) {
        let mut instances = self.lock();
        let id = &instance.facts.id;
        if instances
            .get(id)
            .is_some_and(|found| Arc::ptr_eq(found, instance))
        {
            instances.remove(id);
        }
    }

    pub(super) fn all(&self) -> Vec<Arc<Instance>> {
        self.lock().values().cloned().collect()
    }

    pub(super) fn of_sandbox(&self, id: &SandboxId) -> Option<Arc<Instance>> {
        let instances = self.lock();
        instances
            .values()
            .find(|instance| instance.sandbox_id == *id)
            .cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<InstanceId, Arc<Instance>>> {
        self.instances
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
