//! Taking over the instances that an earlier process left running.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Executor,
    pool::{Facts, Instance, Made},
    state::State,
};
use crate::adapter::{EngineError, Sandbox};

impl Executor {
    /// All that runs; what is no instance is removed.
    pub(super) async fn adopt(self: &Arc<Self>) -> Result<(), EngineError> {
        for sandbox in self.adapter.adopt().await? {
            let facts = Facts::from_labels(&sandbox.labels)
                .filter(|facts| self.pool.get(&facts.id).is_none());
            let Some(facts) = facts else {
                tracing::info!(sandbox = %sandbox.id, "unfinished work of an earlier process was removed");
                self.adapter.delete(&sandbox.id).await?;
                continue;
            };
            self.take_over(facts, sandbox);
        }
        Ok(())
    }

    fn take_over(&self, facts: Facts, sandbox: Sandbox) {
        let concurrency = self.config.executor.concurrency;
        let instance = Instance::new(facts, sandbox.id.clone(), concurrency);
        let output = sandbox.output.clone();
        let source = self.sources.of_labels(&sandbox.labels);
        let made = Made::new(sandbox, source, Duration::ZERO);
        instance.made.set(made).expect("set once");
        instance.took.set(Duration::ZERO).expect("set once");
        instance.keep(self.admission.take(instance.facts.reserved_bytes()));
        let admitted = instance.step(State::admitted);
        let started = admitted.and_then(|()| instance.step(|state| state.started(Instant::now())));
        started.expect("a new instance is queued");
        let instance = self.pool.add(instance).expect("its name was free");
        tracing::info!(instance = %instance.facts.id, sandbox = %instance.sandbox_id, "instance was adopted");
        self.metrics.instances.inc();
        self.follow_output(&instance, output, true);
    }
}
