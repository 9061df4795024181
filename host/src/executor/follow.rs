//! Readers of what instances write: they may come before the instance, and a little after its end.

use std::{
    collections::HashMap,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time;

use super::{
    Executor,
    pool::Instance,
    transcript::{Reader, Transcript},
};
use crate::id::InstanceId;

/// How long a reader of a transcript may come before its instance.
const EARLY_READER: Duration = Duration::from_secs(5);
/// How long a reader of a transcript may come after the end of its instance.
const LATE_READER: Duration = Duration::from_secs(2);

impl Executor {
    /// Reads what the setup of an instance writes, or where it has none, its main process; from the beginning, as far as
    /// that is kept. Waits a little for an instance that is not there yet.
    pub async fn follow(&self, id: &InstanceId) -> Option<Reader> {
        let mut instance = self.pool.get(id);
        if instance.is_none() {
            // Looked for after the instance: it is kept before that is no longer found.
            let kept = self.kept_transcripts().get(id).cloned();
            if let Some(transcript) = kept {
                return Some(transcript.follow());
            }
            let early = time::timeout(EARLY_READER, self.pool.wait_for(id));
            instance = early.await.ok();
        }
        let instance = instance?;
        let hold = instance.hold(&self.admission);
        Some(instance.transcript.follow().holding(hold))
    }

    /// Ends the transcript of an instance that ends; what it holds stays for readers that come late.
    pub(super) fn keep_transcript(self: &Arc<Self>, instance: &Instance) {
        let transcript = instance.transcript.clone();
        transcript.close();
        if transcript.is_empty() {
            return;
        }
        let id = instance.facts.id.clone();
        self.kept_transcripts()
            .insert(id.clone(), transcript.clone());
        let executor = self.clone();
        self.background(async move {
            time::sleep(LATE_READER).await;
            let mut kept = executor.kept_transcripts();
            // A later instance of this name may have left its own by now.
            if kept
                .get(&id)
                .is_some_and(|found| Arc::ptr_eq(found, &transcript))
            {
                kept.remove(&id);
            }
        });
    }

    fn kept_transcripts(&self) -> MutexGuard<'_, HashMap<InstanceId, Arc<Transcript>>> {
        self.transcripts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
