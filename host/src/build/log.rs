//! What a build writes: its beginning and its end are kept, each chunk is passed on.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use tokio::sync::{broadcast::error::RecvError, mpsc};

use super::BuildEvent;
use crate::adapter::Output;

/// The first bytes show what was run, the last ones why it failed.
const HEAD: usize = 256 * 1024;
const TAIL: usize = 768 * 1024;
/// Bytes of its end that a message shows.
const SHOWN: usize = 1024;

/// A build's output, 1 MiB of it at most and a line for what was left out.
#[derive(Debug, Default)]
pub(super) struct Log {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    n_left_out: u64,
}

impl Log {
    fn push(&mut self, bytes: &[u8]) {
        let (head, rest) = bytes.split_at(bytes.len().min(HEAD - self.head.len()));
        self.head.extend(head);
        self.tail.extend(rest);
        let n_over = self.tail.len().saturating_sub(TAIL);
        self.tail.drain(..n_over);
        self.n_left_out += n_over as u64;
    }

    /// The last lines, for a message.
    pub(super) fn end(&self) -> String {
        let n_head = SHOWN.saturating_sub(self.tail.len()).min(self.head.len());
        let head = &self.head[self.head.len() - n_head..];
        let tail = self.tail.range(self.tail.len().saturating_sub(SHOWN)..);
        let bytes: Vec<_> = head.iter().chain(tail).copied().collect();
        String::from_utf8_lossy(&bytes).trim().replace('\r', "")
    }

    /// Takes what is held.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        let Self {
            mut head,
            tail,
            n_left_out,
        } = std::mem::take(self);
        if n_left_out > 0 {
            head.extend(format!("\r\n[{n_left_out} bytes are left out here]\r\n").into_bytes());
        }
        head.extend(tail);
        head
    }

    /// Reads `output` until its end.
    pub(super) async fn follow(&mut self, output: Arc<Output>, progress: mpsc::Sender<BuildEvent>) {
        let (held, mut feed) = output.follow();
        self.pass(Bytes::from(held), &progress);
        // An output that has ended before is not told of its end again.
        while !(output.is_closed() && feed.is_empty()) {
            match feed.recv().await {
                Ok(chunk) if chunk.is_empty() => break,
                Ok(chunk) => self.pass(chunk, &progress),
                // The build writes faster than this host reads.
                Err(RecvError::Lagged(_)) => {
                    self.pass(
                        Bytes::from_static(b"\r\n[output was lost here]\r\n"),
                        &progress,
                    );
                }
                Err(RecvError::Closed) => break,
            }
        }
    }

    /// Who follows too slowly, or not at all, does not hold up the build.
    fn pass(&mut self, chunk: Bytes, progress: &mpsc::Sender<BuildEvent>) {
        if !chunk.is_empty() {
            self.push(&chunk);
            let _ = progress.try_send(BuildEvent::Output(chunk));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_keeps_its_beginning_and_its_end() {
        let mut log = Log::default();
        log.push(b"first");
        for _ in 0..1000 {
            log.push(&[b'x'; 10_000]);
        }
        log.push(b"last");
        assert!(log.end().ends_with("xlast"));
        assert_eq!(log.end().len(), SHOWN);
        let text = String::from_utf8(log.finish()).unwrap();
        assert!(text.starts_with("first") && text.ends_with("last"));
        assert!(
            text.contains("\r\n[8951433 bytes are left out here]\r\n"),
            "{}",
            &text[HEAD..HEAD + 60]
        );
        assert!(text.len() < HEAD + TAIL + 100);
    }

    #[test]
    fn little_output_is_kept_whole() {
        let mut log = Log::default();
        log.push(b"one\r\n");
        log.push(b"two\r\n");
        assert_eq!(log.end(), "one\ntwo");
        assert_eq!(log.finish(), b"one\r\ntwo\r\n");
        assert_eq!(log.finish(), b"");
    }

    #[tokio::test]
    async fn passes_output_on_and_never_waits_for_who_reads_it() {
        let output = Arc::new(Output::new(1000));
        let (progress, mut events) = mpsc::channel(2);
        output.push(Bytes::from_static(b"held"));
        let feeder = {
            let output = output.clone();
            tokio::spawn(async move {
                for _ in 0..5 {
                    output.push(Bytes::from_static(b"more"));
                    tokio::task::yield_now().await;
                }
                output.close();
            })
        };
        let mut log = Log::default();
        log.follow(output.clone(), progress.clone()).await;
        feeder.await.unwrap();
        assert_eq!(log.finish(), b"heldmoremoremoremoremore");
        assert!(matches!(events.recv().await, Some(BuildEvent::Output(chunk)) if chunk == "held"));
        // An output that is closed already ends at once.
        log.follow(output, progress).await;
        assert_eq!(log.finish().len(), 24);
    }
}
