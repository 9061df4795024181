//! Further processes in a container: named first, made when they are started.

use std::sync::{Arc, Mutex};

use containerd_shim::protos::events::task::{TaskExecAdded, TaskExecStarted};
use oci_spec::runtime as oci;

use super::{
    Container, Step, TaskError, blocking,
    container::ProcessState,
    create::{birthplace, entry, no_streams, read_spec},
    process::Process,
};
use crate::{
    launch::ExecRequest,
    stdio::{Owner, StdioConfig, Streams},
};

/// A further process.
#[derive(Debug)]
pub struct Exec {
    pub(super) process: Arc<Process>,
    /// What is to be run; gone once it is made.
    spec: Mutex<Option<Box<oci::Process>>>,
}

impl Container {
    /// Names a further process; its start makes it.
    ///
    /// # Errors
    /// The name is taken, or the container does not run.
    pub fn add_exec(
        &self,
        exec_id: &str,
        spec: oci::Process,
        stdio: StdioConfig,
    ) -> Result<(), TaskError> {
        self.main.check(Step::Exec)?;
        let exec = Exec {
            process: Arc::new(Process::new(exec_id, stdio)),
            spec: Mutex::new(Some(Box::new(spec))),
        };
        let mut execs = self.lock_execs();
        if exec_id.is_empty() || execs.contains_key(exec_id) {
            return Err(TaskError::Exists(format!("process {exec_id:?}")));
        }
        execs.insert(exec_id.to_owned(), Arc::new(exec));
        drop(execs);
        self.publish(TaskExecAdded {
            container_id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            ..TaskExecAdded::default()
        });
        Ok(())
    }

    pub(super) async fn start_exec(self: &Arc<Self>, exec: &Exec) -> Result<u32, TaskError> {
        let process = &exec.process;
        let _order = process.order.lock().await;
        process.check(Step::Start)?;
        self.main.check(Step::Exec)?;
        if let Err(e) = self.make_exec(exec).await {
            process.fail();
            return Err(e);
        }
        process.open().await?;
        self.publish(TaskExecStarted {
            container_id: self.id.clone(),
            exec_id: process.id.clone(),
            pid: process.pid(),
            ..TaskExecStarted::default()
        });
        Ok(process.pid())
    }

    pub(super) async fn delete_exec(&self, exec_id: &str) -> Result<ProcessState, TaskError> {
        let exec = self.exec(exec_id)?;
        let order = exec.process.order.lock().await;
        exec.process.check(Step::Delete)?;
        exec.process.shut();
        drop(order);
        exec.process.drain().await;
        let last = self.describe(&exec.process);
        if exec.process.exit().is_none() {
            exec.process.fail();
        }
        self.lock_execs().remove(exec_id);
        Ok(last)
    }

    async fn make_exec(self: &Arc<Self>, exec: &Exec) -> Result<(), TaskError> {
        let spec = exec.spec.lock().unwrap_or_else(|e| e.into_inner()).take();
        let spec = spec.ok_or(TaskError::NotStarted)?;
        let init = self.main.pidfd().ok_or(TaskError::Finished)?;
        let launch = self.node.reaper.launch();
        let owner = Owner {
            id: &self.id,
            namespace: &self.node.namespace,
            ids: self.io_ids,
        };
        let (stdio, streams) = Streams::open(&exec.process.stdio, owner, &launch).await?;
        let request = ExecRequest {
            id: self.id.clone(),
            bundle: self.bundle.clone(),
            spec: read_spec(&self.bundle)?,
            process: *spec,
            init: init.try_clone().map_err(no_streams)?,
            stdio,
            birthplace: birthplace(&self.cgroup)?,
            cgroup: entry(&self.cgroup)?,
        };
        let launcher = self.node.launcher.clone();
        let created = blocking(move || launcher.exec(request)).await??;
        let child = launch.made(created.pid);
        let pidfd = exec.process.made(created, streams).map_err(no_streams)?;
        let (container, process) = (self.clone(), exec.process.clone());
        tokio::spawn(async move {
            let exit = container.exit_of(child, pidfd).await;
            container.ended(&process, exit).await;
        });
        Ok(())
    }
}
