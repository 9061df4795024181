//! The HTTP edge: routes, wire types, and which failure is which status, for each of the APIs.
//!
//! What happens behind a route is `executor`'s; here a request becomes a call, and its end an answer.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::{
    executor::{
        Executor,
        command::{CommandError, Written},
        execution::{Answer, ExecuteError, Execution, StartError},
        instance::InstanceInfo,
        setup::Creation,
        transcript::Reader,
    },
    id::InstanceId,
};

pub mod executor;
pub mod gateway;
pub mod node;
pub mod server;

mod headers;
mod reply;

/// What the APIs ask of the executor; tests answer in its place.
#[async_trait]
pub trait Instances: Send + Sync + 'static {
    /// See [`Executor::create`].
    async fn create(&self, creation: Creation) -> Result<InstanceInfo, Arc<StartError>>;
    /// See [`Executor::execute`].
    async fn execute(&self, execution: Execution) -> Result<Answer, ExecuteError>;
    /// See [`Executor::command`].
    async fn command(
        &self,
        id: &InstanceId,
        line: &str,
        timeout: Option<Duration>,
    ) -> Result<Written, CommandError>;
    /// See [`Executor::follow`].
    async fn follow(&self, id: &InstanceId) -> Option<Reader>;
    /// See [`Executor::list`].
    fn list(&self) -> Vec<InstanceInfo>;
    /// See [`Executor::get`].
    fn get(&self, id: &InstanceId) -> Option<InstanceInfo>;
    /// See [`Executor::delete`].
    async fn delete(&self, id: &InstanceId) -> bool;
}

#[async_trait]
impl Instances for Arc<Executor> {
    async fn create(&self, creation: Creation) -> Result<InstanceInfo, Arc<StartError>> {
        Executor::create(self, creation).await
    }

    async fn execute(&self, execution: Execution) -> Result<Answer, ExecuteError> {
        Executor::execute(self, execution).await
    }

    async fn command(
        &self,
        id: &InstanceId,
        line: &str,
        timeout: Option<Duration>,
    ) -> Result<Written, CommandError> {
        Executor::command(self, id, line, timeout).await
    }

    async fn follow(&self, id: &InstanceId) -> Option<Reader> {
        Executor::follow(self, id).await
    }

    fn list(&self) -> Vec<InstanceInfo> {
        Executor::list(self)
    }

    fn get(&self, id: &InstanceId) -> Option<InstanceInfo> {
        Executor::get(self, id)
    }

    async fn delete(&self, id: &InstanceId) -> bool {
        Executor::delete(self, id).await
    }
}
