//! An [`Adapter`] without containers, for tests: a sandbox is a future of this process with a folder of its own.

use std::{
    collections::{BTreeMap, HashMap},
    fmt, fs, io,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tempfile::TempDir;
use tokio::{
    io::{AsyncWriteExt, DuplexStream},
    net::{TcpListener, TcpStream},
    sync::{broadcast, oneshot},
    task::AbortHandle,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Adapter, CreateError, CreatePhases, EngineError, Event, Output, Process, ProcessSpec, Sandbox,
    SandboxSpec, Source,
};
use crate::{config::Limits, id::SandboxId};

/// What runs in a sandbox. Its answer is the exit code.
pub type Program = Box<dyn Fn(Machine) -> BoxFuture<'static, u32> + Send + Sync>;

/// Bytes of output that are kept.
const OUTPUT: usize = 64 * 1024;

/// Sandboxes as futures of this process.
pub struct Memory {
    program: Program,
    sandboxes: Mutex<HashMap<SandboxId, Held>>,
    events: broadcast::Sender<Event>,
    n_created: AtomicUsize,
}

struct Held {
    sandbox: Sandbox,
    machine: Machine,
    program: AbortHandle,
    processes: CancellationToken,
    _gone: DropGuard,
    scratch: TempDir,
}

/// What a program sees of its sandbox.
#[derive(Debug, Clone)]
pub struct Machine {
    /// What it was made of.
    pub spec: SandboxSpec,
    /// The folder that it may write to.
    pub scratch: PathBuf,
    /// What it prints goes here.
    pub output: Arc<Output>,
    address: Arc<OnceLock<SocketAddr>>,
    events: broadcast::Sender<Event>,
}

impl Machine {
    /// From now on, every port of the sandbox is this one.
    pub async fn listen(&self) -> TcpListener {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a loopback port is free");
        let address = listener.local_addr().expect("it is bound");
        self.address.set(address).expect("a program listens once");
        listener
    }

    /// Says that the kernel has killed a process for want of memory.
    pub fn run_out_of_memory(&self) {
        let id = self.spec.id.clone();
        // Nobody listening is not an error.
        let _ = self.events.send(Event::OutOfMemory { id });
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<_> = self.lock().keys().cloned().collect();
        f.debug_struct("Memory").field("sandboxes", &ids).finish()
    }
}

impl Memory {
    /// Each sandbox, and each process beside a main one, runs `program`: it sees its own command.
    pub fn new(program: Program) -> Arc<Self> {
        Arc::new(Self {
            program,
            sandboxes: Mutex::default(),
            events: broadcast::Sender::new(1024),
            n_created: AtomicUsize::new(0),
        })
    }

    /// Sandboxes made so far.
    pub fn n_created(&self) -> usize {
        self.n_created.load(Ordering::SeqCst)
    }

    /// Sandboxes that are there.
    pub fn n_sandboxes(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<SandboxId, Held>> {
        self.sandboxes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the program of a sandbox of this folder.
    fn hold(&self, spec: SandboxSpec, scratch: TempDir) -> Held {
        let sandbox = Sandbox {
            id: spec.id.clone(),
            labels: spec.labels.clone(),
            scratch: scratch.path().to_owned(),
            output: Arc::new(Output::new(OUTPUT)),
            phases: CreatePhases::default(),
        };
        let machine = Machine {
            spec,
            scratch: sandbox.scratch.clone(),
            output: sandbox.output.clone(),
            address: Arc::default(),
            events: self.events.clone(),
        };
        let processes = CancellationToken::new();
        Held {
            sandbox,
            machine: machine.clone(),
            program: self.start(machine),
            _gone: processes.clone().drop_guard(),
            processes,
            scratch,
        }
    }

    fn start(&self, machine: Machine) -> AbortHandle {
        let id = machine.spec.id.clone();
        let (events, output) = (self.events.clone(), machine.output.clone());
        let program = (self.program)(machine);
        let work = tokio::spawn(async move {
            let code = program.await;
            output.close();
            // Nobody listening is not an error.
            let _ = events.send(Event::Exited { id, code });
        });
        work.abort_handle()
    }
}

#[async_trait]
impl Adapter for Memory {
    async fn create(&self, spec: SandboxSpec) -> Result<Sandbox, CreateError> {
        let id = spec.id.clone();
        let prepare = |source| CreateError::Prepare {
            id: id.clone(),
            step: "its folder",
            source,
        };
        let scratch = TempDir::new().map_err(prepare)?;
        for mount in &spec.mounts {
            if let Source::Scratch(name) = &mount.source {
                fs::create_dir(scratch.path().join(name)).map_err(prepare)?;
            }
        }
        let mut sandboxes = self.lock();
        if sandboxes.contains_key(&id) {
            return Err(CreateError::Exists { id });
        }
        self.n_created.fetch_add(1, Ordering::SeqCst);
        let held = self.hold(spec, scratch);
        let sandbox = held.sandbox.clone();
        sandboxes.insert(id, held);
        Ok(sandbox)
    }

    async fn restart(&self, id: &SandboxId) -> Result<Sandbox, CreateError> {
        let mut sandboxes = self.lock();
        let Some(Held {
            machine, scratch, ..
        }) = sandboxes.remove(id)
        else {
            return Err(CreateError::Absent { id: id.clone() });
        };
        let held = self.hold(machine.spec, scratch);
        let sandbox = held.sandbox.clone();
        sandboxes.insert(id.clone(), held);
        Ok(sandbox)
    }

    fn cpu_time(&self, _id: &SandboxId) -> Option<Duration> {
        None
    }

    fn memory(&self, _id: &SandboxId) -> Option<super::Memory> {
        None
    }

    async fn dial(&self, id: &SandboxId, _port: u16) -> io::Result<TcpStream> {
        let address = {
            let sandboxes = self.lock();
            let held = sandboxes.get(id);
            held.ok_or(io::ErrorKind::NotFound)?
                .machine
                .address
                .get()
                .copied()
        };
        TcpStream::connect(address.ok_or(io::ErrorKind::ConnectionRefused)?).await
    }

    async fn exec(&self, id: &SandboxId, spec: ProcessSpec) -> Result<Process, EngineError> {
        let output = Arc::new(Output::new(OUTPUT));
        let (machine, gone) = {
            let sandboxes = self.lock();
            let held = sandboxes.get(id).ok_or_else(|| absent(id))?;
            let mut machine = held.machine.clone();
            machine.spec.command = Some(spec.command);
            machine.spec.terminal = spec.terminal;
            machine.output = output.clone();
            (machine, held.processes.clone())
        };
        let (reader, writer) = tokio::io::duplex(OUTPUT);
        tokio::spawn(forward(output.follow().1, writer));
        let (told, exit) = oneshot::channel();
        let leash = CancellationToken::new();
        let guard = leash.clone().drop_guard();
        let program = (self.program)(machine);
        tokio::spawn(async move {
            tokio::select! {
                // Whoever is no longer there does not need to know.
                code = program => drop(told.send(code)),
                () = leash.cancelled() => {}
                () = gone.cancelled() => {}
            }
            output.close();
        });
        Ok(Process::new(vec![Box::new(reader)], exit, guard))
    }

    async fn update(&self, _id: &SandboxId, _limits: Limits) -> Result<(), EngineError> {
        Ok(())
    }

    async fn label(
        &self,
        id: &SandboxId,
        labels: BTreeMap<String, String>,
    ) -> Result<(), EngineError> {
        let mut sandboxes = self.lock();
        let held = sandboxes.get_mut(id).ok_or_else(|| absent(id))?;
        held.machine.spec.labels.extend(labels.clone());
        held.sandbox.labels.extend(labels);
        Ok(())
    }

    async fn delete(&self, id: &SandboxId) -> Result<(), EngineError> {
        let held = self.lock().remove(id);
        if let Some(Held { program, .. }) = held {
            program.abort();
        }
        Ok(())
    }

    async fn adopt(&self) -> Result<Vec<Sandbox>, EngineError> {
        Ok(self
            .lock()
            .values()
            .map(|held| held.sandbox.clone())
            .collect())
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }
}

fn absent(id: &SandboxId) -> EngineError {
    EngineError::Refused {
        what: "find the sandbox",
        message: format!("{id} does not run"),
    }
}

/// Writes what a process prints to whoever reads it, until either ends.
async fn forward(mut feed: broadcast::Receiver<Bytes>, mut writer: DuplexStream) {
    while let Ok(chunk) = feed.recv().await {
        if chunk.is_empty() || writer.write_all(&chunk).await.is_err() {
            return;
        }
    }
}
