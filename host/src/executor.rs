//! One execution from admission to answer; the instances, how they come and go, what they log.
//!
//! What is executed, and for whom, is `function`'s and `api`'s to know; how a sandbox is made is `adapter`'s.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{sync::broadcast::error::RecvError, time};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub mod admission;
pub mod command;
pub mod execution;
pub mod instance;
pub mod job;
pub mod journal;
pub mod setup;
pub mod transcript;

mod adopt;
mod connection;
mod dispatch;
mod follow;
mod logs;
mod make;
mod pool;
mod restart;
mod source;
mod state;

use crate::{
    adapter::{Adapter, EngineError, Event, Memory},
    config::Config,
    id::{InstanceId, SandboxId},
    storage::objects::Objects,
    telemetry::Metrics,
};
use admission::Admission;
use dispatch::{Failure, Manner, Ticket};
use execution::{Answer, ExecuteError, Execution, Exit, Start, StartError};
use instance::{InstanceInfo, InstanceSpec};
use journal::{Journal, Stream};
use pool::{Claim, Facts, Instance, Made, Pool};
use setup::{Creation, Setup};
use source::Sources;
use state::{End, Stage, State};
use transcript::Transcript;

/// How long after a kill the word of its reason may come, and after an exit the last of the output.
const REASON_PATIENCE: Duration = Duration::from_millis(100);
/// The end of a failed instance's output that its error shows, in bytes.
const SHOWN_OUTPUT: usize = 2048;

/// The instances of this host.
#[derive(Debug)]
pub struct Executor {
    config: Arc<Config>,
    adapter: Arc<dyn Adapter>,
    metrics: Arc<Metrics>,
    journal: Arc<Journal>,
    sources: Sources,
    admission: Arc<Admission>,
    pool: Pool,
    jobs: Mutex<HashMap<SandboxId, Arc<job::Notice>>>,
    /// Those of instances that have ended a moment ago.
    transcripts: Mutex<HashMap<InstanceId, Arc<Transcript>>>,
    /// Executions that were let in.
    executions: TaskTracker,
    /// All that goes on in the background.
    tasks: TaskTracker,
    is_stopping: AtomicBool,
    stopped: CancellationToken,
}

impl Executor {
    /// Takes over the instances that an earlier process left running.
    ///
    /// # Errors
    /// The engine does not answer, or the kernel refuses a folder under `state_dir`.
    pub async fn start(
        config: Arc<Config>,
        adapter: Arc<dyn Adapter>,
        metrics: Arc<Metrics>,
        objects: Objects,
    ) -> Result<Arc<Self>, EngineError> {
        let sources = Sources::new(&config.state_dir, objects);
        let sources = sources.map_err(|source| EngineError::Kernel {
            what: "keep the instances' code",
            source,
        })?;
        let admission = Admission::new(config.admission.clone(), metrics.clone());
        let lacking = admission::lacking(&config.admission);
        if !lacking.is_empty() {
            let folder = config.admission.pressure_dir.display();
            tracing::warn!(?lacking, %folder, "thresholds hold for nothing: this kernel has no such figures");
        }
        let executor = Arc::new(Self {
            config,
            adapter,
            metrics,
            journal: Arc::default(),
            sources,
            admission,
            pool: Pool::default(),
            jobs: Mutex::default(),
            transcripts: Mutex::default(),
            executions: TaskTracker::new(),
            tasks: TaskTracker::new(),
            is_stopping: AtomicBool::new(false),
            stopped: CancellationToken::new(),
        });
        // Before the list of what runs, so that no end is missed in between.
        let events = executor.adapter.events();
        executor.adopt().await?;
        executor.background(Self::follow_events(executor.clone(), events));
        executor.background(Self::maintain(executor.clone()));
        Ok(executor)
    }

    /// What instances write.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Makes an instance; answers when its main process runs and it is set up. Goes on where the caller goes away.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn create(
        self: &Arc<Self>,
        creation: Creation,
    ) -> Result<InstanceInfo, Arc<StartError>> {
        let executor = self.clone();
        let work = self
            .tasks
            .spawn(async move { executor.add(creation).await });
        work.await
            .expect("making an instance does not panic, and nobody aborts it")
    }

    /// Runs one request in its instance, making that first where it has to.
    ///
    /// # Errors
    /// See [`ExecuteError`].
    pub async fn execute(self: &Arc<Self>, execution: Execution) -> Result<Answer, ExecuteError> {
        let Execution {
            instance: id,
            spec,
            mut request,
            timeout,
            start_timeout,
            logging,
            protocol,
        } = execution;
        let mut may_repeat = spec.is_some();
        loop {
            let ticket = self.admit(&id, spec.as_deref())?;
            let budget = Budget {
                began: ticket.admitted,
                timeout,
                start_timeout,
            };
            let outcome = match self.ready(&ticket, &budget).await {
                Err(error) => Err(Failure::unsent(error, request, ticket)),
                Ok((permit, seconds)) => {
                    let manner = Manner { protocol, logging };
                    ticket.dispatch(request, permit, seconds, manner).await
                }
            };
            let Failure {
                error,
                unsent,
                ticket,
            } = match outcome {
                Ok(answer) => return Ok(answer),
                Err(failure) => *failure,
            };
            // The main process ended before it saw the request: a new instance may do better, once.
            let is_repeatable = matches!(error, ExecuteError::Exited { .. });
            match unsent {
                Some(unsent) if is_repeatable && may_repeat => {
                    request = *unsent;
                    may_repeat = false;
                }
                Some(_) | None => {
                    ticket.close(error.kind(), None, None);
                    return Err(error);
                }
            }
        }
    }

    /// All instances, those being made included, by name.
    pub fn list(&self) -> Vec<InstanceInfo> {
        let all = self.pool.all().into_iter();
        let mut infos: Vec<_> = all
            .filter(|instance| !matches!(instance.stage(), Stage::Ended(_)))
            .map(|instance| instance.info())
            .collect();
        infos.sort_by(|one, other| one.id.cmp(&other.id));
        infos
    }

    /// One instance.
    pub fn get(&self, id: &InstanceId) -> Option<InstanceInfo> {
        self.pool.get(id).map(|instance| instance.info())
    }

    /// Percent of one processor that an instance has used since the last call.
    pub fn cpu_usage(&self, id: &InstanceId) -> Option<f64> {
        let instance = self.pool.get(id)?;
        let used = self.adapter.cpu_time(&instance.sandbox_id)?;
        instance.cpu_usage(used)
    }

    /// What an instance uses now: processor time and memory.
    pub fn usage(&self, id: &InstanceId) -> (Option<Duration>, Option<Memory>) {
        let Some(instance) = self.pool.get(id) else {
            return (None, None);
        };
        let sandbox = &instance.sandbox_id;
        (self.adapter.cpu_time(sandbox), self.adapter.memory(sandbox))
    }

    /// Deletes an instance, executions in it included; answers when nothing of it is left. Says whether there was one.
    pub async fn delete(self: &Arc<Self>, id: &InstanceId) -> bool {
        let Some(instance) = self.pool.get(id) else {
            return false;
        };
        self.end(&instance, End::Deleted);
        instance.gone.cancelled().await;
        true
    }

    /// Deletes an instance once no execution uses it; a new execution makes a new one.
    pub fn retire(self: &Arc<Self>, id: &InstanceId) {
        if let Some(instance) = self.pool.get(id) {
            instance.load(State::retire);
            self.end_if(&instance, End::Deleted, |state| {
                state.is_reapable(Instant::now(), Duration::MAX)
            });
        }
    }

    /// Takes no more executions that need a new instance, and waits for those that go on. Instances stay.
    pub async fn drain(&self, timeout: Duration) {
        self.is_stopping.store(true, Ordering::SeqCst);
        self.stopped.cancel();
        let work = async {
            for tracker in [&self.executions, &self.tasks] {
                tracker.close();
                tracker.wait().await;
            }
        };
        if time::timeout(timeout, work).await.is_err() {
            let n = self.executions.len();
            tracing::warn!(n, "executions were cut off by the stop");
        }
    }

    /// Deletes all instances and jobs.
    pub async fn delete_all(self: &Arc<Self>) {
        self.is_stopping.store(true, Ordering::SeqCst);
        for instance in self.pool.all() {
            self.end(&instance, End::Deleted);
        }
        for instance in self.pool.all() {
            instance.gone.cancelled().await;
        }
    }
}

/// How long an execution may take, from when.
struct Budget {
    began: Instant,
    timeout: Duration,
    start_timeout: Option<Duration>,
}

impl Budget {
    /// When waiting for the instance ends.
    fn start_deadline(&self) -> time::Instant {
        (self.began + self.start_timeout.unwrap_or(self.timeout)).into()
    }

    /// Whole seconds for the function, one at least, once its main process runs.
    fn seconds(&self, launched: Instant) -> u64 {
        let left = match self.start_timeout {
            Some(_) => self.timeout,
            None => self.timeout.saturating_sub(launched - self.began),
        };
        left.as_secs().max(1)
    }
}

impl Executor {
    fn admit(
        self: &Arc<Self>,
        id: &InstanceId,
        spec: Option<&InstanceSpec>,
    ) -> Result<Ticket, ExecuteError> {
        let settings = &self.config.executor;
        let room = settings.concurrency + settings.queue;
        let is_stopping = self.is_stopping.load(Ordering::SeqCst);
        let add = || {
            spec.filter(|_| !is_stopping)
                .map(|spec| self.new_instance(spec))
        };
        let (instance, start) = match self.pool.claim(id, room, add) {
            Claim::Found(instance) => {
                let is_ready = matches!(instance.stage(), Stage::Ready);
                (instance, if is_ready { Start::Warm } else { Start::Cold })
            }
            Claim::Added(instance) => {
                let spec = spec.expect("an instance was made of it").clone();
                self.begin(&instance, spec, None);
                (instance, Start::Cold)
            }
            Claim::Absent if spec.is_some() => {
                return Err(ExecuteError::Start(Arc::new(StartError::Stopping)));
            }
            Claim::Absent => return Err(ExecuteError::NotFound { id: id.clone() }),
            Claim::Full => {
                let (id, queue) = (id.clone(), settings.queue);
                return Err(ExecuteError::QueueFull { id, queue });
            }
        };
        self.metrics.executions_in_flight.inc();
        Ok(Ticket {
            executor: self.clone(),
            instance,
            _token: self.executions.token(),
            admitted: Instant::now(),
            start,
            execution: format!("{:016x}", rand::random::<u64>()),
        })
    }

    /// Waits until the instance is ready and has a place free; answers how long the function has.
    async fn ready(
        self: &Arc<Self>,
        ticket: &Ticket,
        budget: &Budget,
    ) -> Result<(tokio::sync::OwnedSemaphorePermit, u64), ExecuteError> {
        let instance = &ticket.instance;
        let deadline = budget.start_deadline();
        let late = || {
            let id = instance.facts.id.clone();
            let stage = instance.stage();
            if matches!(stage, Stage::Queued)
                && let Some(source) = self.admission.shortage(instance.facts.reserved_bytes())
            {
                return ExecuteError::Start(Arc::new(StartError::NotAdmitted { id, source }));
            }
            let is_running = !stage.is_to_come();
            match &instance.last_exit {
                Some(exit) if !is_running => {
                    let exit = exit.clone();
                    ExecuteError::Start(Arc::new(StartError::Exited { id, exit }))
                }
                Some(_) | None => ExecuteError::StartTimeout { id, is_running },
            }
        };
        if budget.timeout.is_zero() {
            return Err(late());
        }
        if matches!(instance.stage(), Stage::Ready)
            && let Ok(place) = instance.places.clone().try_acquire_owned()
        {
            return Ok((place, budget.seconds(Instant::now())));
        }
        let waiting = async {
            self.reach(instance, |stage| !stage.is_to_come()).await?;
            let seconds = budget.seconds(Instant::now());
            if instance.is_awaited() {
                self.probe(instance);
            }
            self.reach(instance, |stage| matches!(stage, Stage::Ready))
                .await?;
            let place = instance.places.clone().acquire_owned().await;
            Ok((place.expect("the semaphore is never closed"), seconds))
        };
        time::timeout_at(deadline, waiting)
            .await
            .unwrap_or_else(|_| Err(late()))
    }

    /// Waits for a stage; its end is an error.
    async fn reach(
        &self,
        instance: &Instance,
        is_reached: impl Fn(&Stage) -> bool,
    ) -> Result<(), ExecuteError> {
        let mut states = instance.state.subscribe();
        let is_over = |stage: &Stage| matches!(stage, Stage::Ended(_)) || is_reached(stage);
        let state = states.wait_for(|state| is_over(state.stage())).await;
        let stage = state.expect("the sender is borrowed").stage().clone();
        match stage {
            Stage::Ended(end) => Err(instance.end_error(end)),
            Stage::Queued | Stage::Restarting | Stage::Pending | Stage::Running | Stage::Ready => {
                Ok(())
            }
        }
    }

    fn new_instance(&self, spec: &InstanceSpec) -> Instance {
        let sandbox_id = sandbox_id(&spec.id);
        Instance::new(
            Facts::new(spec),
            sandbox_id,
            self.config.executor.concurrency,
        )
    }

    fn begin(
        self: &Arc<Self>,
        instance: &Arc<Instance>,
        spec: InstanceSpec,
        setup: Option<Arc<dyn Setup>>,
    ) {
        self.metrics.instances.inc();
        self.tasks
            .spawn(self.clone().make(instance.clone(), spec, setup));
    }

    /// Ends an instance: nothing more is let in, and what it has is removed in the background.
    fn end(self: &Arc<Self>, instance: &Arc<Instance>, end: End) {
        self.end_if(instance, end, |_| true);
    }

    /// The same where `may_end` holds of it at that moment. Says whether this was its end.
    fn end_if(
        self: &Arc<Self>,
        instance: &Arc<Instance>,
        end: End,
        may_end: impl FnOnce(&State) -> bool,
    ) -> bool {
        let reason = end.reason();
        let mut was_to_come = false;
        let ended = instance.step(|state| {
            was_to_come = state.stage().is_to_come();
            if !may_end(state) || !state.end(end) {
                return Err(());
            }
            // Before it is no longer found, so that a reader finds either.
            self.keep_transcript(instance);
            Ok(())
        });
        if ended.is_err() {
            return false;
        }
        instance.leave();
        self.metrics.instance_ended(reason);
        tracing::info!(instance = %instance.facts.id, sandbox = %instance.sandbox_id, reason, "instance ended");
        instance.connections.clear();
        // One that is being made is buried by whoever makes it.
        if !was_to_come {
            let (executor, instance) = (self.clone(), instance.clone());
            self.tasks
                .spawn(async move { executor.bury(instance).await });
        }
        true
    }

    /// The main process of an instance has ended by itself.
    async fn exited(self: &Arc<Self>, instance: &Arc<Instance>, code: u32) {
        let made = instance.made.get();
        let killed = 128 + 9;
        let out_of_memory =
            code == killed && instance.notices.was_out_of_memory(REASON_PATIENCE).await;
        let output = match made {
            Some(made) => last_output(made).await,
            None => String::new(),
        };
        let mut exit = Exit {
            code,
            out_of_memory,
            output: String::new(),
        };
        // The output stands before it in the journal.
        let message = format!("instance {exit}");
        exit.output = output;
        self.journal.write(
            instance.facts.journal_name(),
            Stream::Host,
            message.as_bytes(),
        );
        let was_ready = matches!(instance.stage(), Stage::Ready);
        if self.restart(instance, &exit) {
            return;
        }
        let end = if was_ready {
            End::Exited(exit)
        } else {
            let id = instance.facts.id.clone();
            End::Failed(Arc::new(StartError::Exited { id, exit }))
        };
        self.end(instance, end);
    }

    fn background(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stopped = self.stopped.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = work => {}
                () = stopped.cancelled() => {}
            }
        });
    }

    async fn follow_events(
        executor: Arc<Self>,
        mut events: tokio::sync::broadcast::Receiver<Event>,
    ) {
        loop {
            match events.recv().await {
                Ok(event) => executor.note(event),
                Err(RecvError::Lagged(n)) => tracing::error!(n, "events of the engine were lost"),
                Err(RecvError::Closed) => return,
            }
        }
    }

    fn note(self: &Arc<Self>, event: Event) {
        let (Event::Exited { id, .. } | Event::OutOfMemory { id }) = &event;
        if let Some(notice) = self.job_notice(id) {
            notice.note(&event);
        }
        let Some(instance) = self.pool.of_sandbox(id) else {
            return;
        };
        match event {
            Event::OutOfMemory { .. } => instance.notices.note_out_of_memory(),
            Event::Exited { code, .. } => {
                if instance.notices.exit.set(code).is_ok() && instance.made.get().is_some() {
                    let executor = self.clone();
                    self.tasks
                        .spawn(async move { executor.exited(&instance, code).await });
                }
            }
        }
    }

    /// Reaps what is idle, from time to time.
    async fn maintain(executor: Arc<Self>) {
        let settings = &executor.config.executor;
        let interval = Duration::from_secs(settings.maintenance_interval_s.max(1));
        let threshold = Duration::from_secs(settings.inactive_threshold_s);
        loop {
            time::sleep(interval).await;
            let now = Instant::now();
            for instance in executor.pool.all() {
                let threshold = instance.facts.keep_alive.unwrap_or(threshold);
                executor.end_if(&instance, End::Deleted, |state| {
                    state.is_reapable(now, threshold)
                });
            }
            executor.sources.sweep(now).await;
        }
    }
}

/// A name for a sandbox of this instance, different for each.
fn sandbox_id(id: &InstanceId) -> SandboxId {
    let name = format!("{id}-{:08x}", rand::random::<u32>());
    SandboxId::try_new(name).expect("64 characters and 9 more are fewer than 76")
}

/// The end of what a main process wrote, once all of it was read.
async fn last_output(made: &Made) -> String {
    let output = &made.sandbox.output;
    let (_, mut feed) = output.follow();
    let rest = async { while !output.is_closed() && feed.recv().await.is_ok() {} };
    // A child of the main process may keep the output open.
    let _ = time::timeout(REASON_PATIENCE, rest).await;
    let held = output.tail();
    let text = String::from_utf8_lossy(&held[held.len().saturating_sub(SHOWN_OUTPUT)..]);
    text.trim().to_owned()
}
