//! The HTTP edge: routes, wire types, and which failure is which status, for each of the APIs.
//!
//! What happens behind a route is `executor`'s; here a request becomes a call, and its end an answer.

use std::sync::Arc;

use async_trait::async_trait;

use crate::{
    executor::{
        Executor,
        execution::{Answer, ExecuteError, Execution, StartError},
        instance::{InstanceInfo, InstanceSpec},
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
    async fn create(&self, spec: InstanceSpec) -> Result<InstanceInfo, Arc<StartError>>;
    /// See [`Executor::execute`].
    async fn execute(&self, execution: Execution) -> Result<Answer, ExecuteError>;
    /// See [`Executor::list`].
    fn list(&self) -> Vec<InstanceInfo>;
    /// See [`Executor::get`].
    fn get(&self, id: &InstanceId) -> Option<InstanceInfo>;
    /// See [`Executor::delete`].
    async fn delete(&self, id: &InstanceId) -> bool;
}

#[async_trait]
impl Instances for Arc<Executor> {
    async fn create(&self, spec: InstanceSpec) -> Result<InstanceInfo, Arc<StartError>> {
        Executor::create(self, spec).await
    }

    async fn execute(&self, execution: Execution) -> Result<Answer, ExecuteError> {
        Executor::execute(self, execution).await
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
