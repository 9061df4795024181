//! One at a time for each key, in the order in which they asked.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// Who works on which key. A key is known while somebody works on it or waits for it.
#[derive(Debug)]
pub(crate) struct Turns<K: Ord> {
    locks: Mutex<BTreeMap<K, Arc<AsyncMutex<()>>>>,
}

/// The right to work on a key, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn<'a, K: Ord> {
    turns: &'a Turns<K>,
    key: K,
    lock: Arc<AsyncMutex<()>>,
    guard: Option<OwnedMutexGuard<()>>,
}

impl<K: Ord> Default for Turns<K> {
    fn default() -> Self {
        Self {
            locks: Mutex::default(),
        }
    }
}

impl<K: Ord + Clone> Turns<K> {
    /// Waits until nobody else works on `key`.
    pub(crate) async fn take(&self, key: &K) -> Turn<'_, K> {
        let lock = self.locks().entry(key.clone()).or_default().clone();
        // Made before the wait, so that giving up the wait is noticed too.
        let mut turn = Turn {
            turns: self,
            key: key.clone(),
            lock: lock.clone(),
            guard: None,
        };
        turn.guard = Some(lock.lock_owned().await);
        turn
    }
}

impl<K: Ord> Turns<K> {
    fn locks(&self) -> MutexGuard<'_, BTreeMap<K, Arc<AsyncMutex<()>>>> {
        self.locks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Ord> Drop for Turn<'_, K> {
    fn drop(&mut self) {
        let mut locks = self.turns.locks();
        self.guard = None;
        // The map's and ours: nobody else works or waits, and none can come while the map is locked.
        if Arc::strong_count(&self.lock) <= 2 {
            locks.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_at_a_time_for_each_key_and_nothing_stays() {
        let turns = Turns::default();
        let first = turns.take(&1).await;
        let _other = turns.take(&2).await;
        let mut second = Box::pin(turns.take(&1));
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(first);
        drop(second.await);
        assert_eq!(turns.locks().len(), 1);
    }

    #[tokio::test]
    async fn who_stops_waiting_leaves_nothing() {
        let turns = Turns::default();
        let first = turns.take(&1).await;
        let mut second = Box::pin(turns.take(&1));
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(first);
        drop(second);
        assert!(turns.locks().is_empty());
    }
}
