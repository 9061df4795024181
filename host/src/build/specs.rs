//! What instances are made of, remembered for each function: every execution asks.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    BuildError, Inner,
    artifact::{ARCHIVE, ArtifactError},
    blocking,
};
use crate::{
    executor::instance::InstanceSpec,
    function::{Function, metadata},
    id::FunctionName,
};

type Known = HashMap<FunctionName, (Arc<Function>, Arc<InstanceSpec>)>;

/// One spec for each function, of the version of it that was asked for last.
#[derive(Debug, Default)]
pub(super) struct Specs {
    known: Mutex<Known>,
}

impl Specs {
    /// See [`super::Builds::instance`].
    pub(super) async fn get(
        &self,
        inner: &Inner,
        function: &Arc<Function>,
    ) -> Result<Arc<InstanceSpec>, BuildError> {
        // The store hands out one allocation for one version of a function.
        if let Some((known, spec)) = self.lock().get(&function.name)
            && Arc::ptr_eq(known, function)
        {
            return Ok(spec.clone());
        }
        let runtime = inner.parts.catalog.find(&function.runtime)?;
        let artifact = function
            .artifact
            .as_ref()
            .ok_or(ArtifactError::Missing { file: ARCHIVE })?;
        let path = inner.parts.storage.path(artifact);
        let code = inner.parts.code.ensure(artifact, &path).await?;
        let read = {
            let code = code.clone();
            blocking(move || metadata::read(&code))
        };
        let noted = read.await.map_err(|source| ArtifactError::Read {
            file: ARCHIVE,
            source,
        })?;
        let spec = Arc::new(function.instance(&runtime, code, &noted));
        let known = (function.clone(), spec.clone());
        self.lock().insert(function.name.clone(), known);
        Ok(spec)
    }

    pub(super) fn forget(&self, name: &FunctionName) {
        self.lock().remove(name);
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
