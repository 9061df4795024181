//! Which artifacts and code are of no more use.
//!
//! One goes when no function refers to it at two looks in a row: a request that read the previous function
//! just before a deployment still finds its code. While an instance of an earlier build runs, nothing goes,
//! since it may yet load a file.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{RwLock, RwLockReadGuard};

use super::{BuildError, Inner, blocking};
use crate::{code::Nameless, id::Digest};

/// What was of no use at the last look.
#[derive(Debug, Default)]
pub(super) struct Cleaning {
    unused: Mutex<BTreeSet<Digest>>,
    /// Read by builds whose artifact no function refers to yet.
    held: RwLock<()>,
}

impl Cleaning {
    /// Keeps everything until the answer is dropped.
    pub(super) async fn hold(&self) -> RwLockReadGuard<'_, ()> {
        self.held.read().await
    }

    /// What may go now, of all that there is.
    fn decide(&self, present: &BTreeSet<Digest>, used: &BTreeSet<Digest>) -> BTreeSet<Digest> {
        let mut unused = self.unused.lock().unwrap_or_else(PoisonError::into_inner);
        let now: BTreeSet<_> = present.difference(used).cloned().collect();
        let before = std::mem::replace(&mut *unused, now);
        unused.intersection(&before).cloned().collect()
    }
}

/// See [`super::Builds::clean`].
pub(super) async fn clean(inner: &Arc<Inner>) -> Result<(), BuildError> {
    // A build in progress will be followed by another look.
    let Ok(_alone) = inner.cleaning.held.try_write() else {
        return Ok(());
    };
    if has_earlier_instance(inner) {
        return Ok(());
    }
    let work = {
        let inner = inner.clone();
        move || -> Result<(), BuildError> {
            let parts = &inner.parts;
            let functions = parts.store.list();
            let used = functions
                .iter()
                .filter_map(|f| f.artifact.clone())
                .collect();
            let present = &parts.storage.digests()? | &parts.code.digests()?;
            let gone = inner.cleaning.decide(&present, &used);
            let kept = &present - &gone;
            // The one goes on where the other fails.
            let n_code = parts.code.unname_unused(&kept).and_then(Nameless::remove);
            let n_artifacts = parts.storage.remove_unused(&kept)?;
            let n_code = n_code?;
            if !gone.is_empty() {
                tracing::info!(n_artifacts, n_code, "removed what no function uses");
            }
            Ok(())
        }
    };
    blocking(work).await
}

/// Whether an instance runs that its function would not get today.
fn has_earlier_instance(inner: &Inner) -> bool {
    inner.parts.executor.list().iter().any(|instance| {
        let Some(name) = &instance.function else {
            return false;
        };
        let function = inner.parts.store.get(name);
        let current = function.and_then(|function| inner.instance_id(&function));
        current.as_ref() != Some(&instance.id)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digests(of: &[u8]) -> BTreeSet<Digest> {
        of.iter().map(|n| Digest::from_sha256([*n; 32])).collect()
    }

    #[test]
    fn what_was_of_no_use_twice_goes() {
        let cleaning = Cleaning::default();
        let present = digests(&[1, 2, 3]);
        let check = |used: &[u8], gone: &[u8]| {
            assert_eq!(cleaning.decide(&present, &digests(used)), digests(gone));
        };
        check(&[1, 2], &[]);
        check(&[1], &[3]);
        check(&[1, 2], &[3]);
        check(&[1], &[3]);
        check(&[1], &[2, 3]);
    }
}
