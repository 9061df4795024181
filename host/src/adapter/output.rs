//! What a sandbox writes: the latest part of it in memory, and each chunk to whoever follows.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use tokio::sync::broadcast;

/// The latest output of one sandbox, bounded, and a feed of what follows.
#[derive(Debug)]
pub struct Output {
    state: Mutex<State>,
    feed: broadcast::Sender<Bytes>,
    limit: usize,
}

#[derive(Debug, Default)]
struct State {
    chunks: VecDeque<Bytes>,
    held: usize,
    dropped: u64,
    is_closed: bool,
}

/// How many chunks a slow follower may be behind before it loses some.
const FEED_CHUNKS: usize = 256;

impl Output {
    /// Keeps the latest `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            state: Mutex::default(),
            feed: broadcast::channel(FEED_CHUNKS).0,
            limit,
        }
    }

    /// Adds what was just read.
    pub fn push(&self, chunk: Bytes) {
        let mut state = self.lock();
        state.held += chunk.len();
        state.chunks.push_back(chunk.clone());
        while state.held > self.limit && state.chunks.len() > 1 {
            let oldest = state.chunks.pop_front().map_or(0, |chunk| chunk.len());
            state.held -= oldest;
            state.dropped += oldest as u64;
        }
        // Nobody following is not an error.
        let _ = self.feed.send(chunk);
    }

    /// Says that nothing follows.
    pub fn close(&self) {
        self.lock().is_closed = true;
        // An empty chunk wakes the followers, who then see the end.
        let _ = self.feed.send(Bytes::new());
    }

    /// What is held, oldest first, and a feed of what follows it without a gap.
    /// An empty chunk in the feed is the end.
    pub fn follow(&self) -> (Vec<u8>, broadcast::Receiver<Bytes>) {
        let state = self.lock();
        (concat(&state.chunks), self.feed.subscribe())
    }

    /// What is held, oldest first.
    pub fn tail(&self) -> Vec<u8> {
        concat(&self.lock().chunks)
    }

    /// Bytes that are no longer held.
    pub fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    /// Whether the sandbox's output has ended.
    pub fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    /// Returns when the sandbox's output has ended.
    pub(super) async fn ended(&self) {
        let mut feed = {
            let state = self.lock();
            if state.is_closed {
                return;
            }
            self.feed.subscribe()
        };
        loop {
            match feed.recv().await {
                Ok(chunk) if chunk.is_empty() => return,
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn concat(chunks: &VecDeque<Bytes>) -> Vec<u8> {
    chunks.iter().flatten().copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_latest_bytes_and_counts_the_rest() {
        let output = Output::new(6);
        for chunk in ["abc", "def", "ghi"] {
            output.push(Bytes::from_static(chunk.as_bytes()));
        }
        assert_eq!(output.tail(), b"defghi");
        assert_eq!(output.dropped(), 3);
    }

    #[tokio::test]
    async fn a_follower_sees_what_was_and_what_comes_without_a_gap() {
        let output = Output::new(64);
        output.push(Bytes::from_static(b"before"));
        let (held, mut feed) = output.follow();
        output.push(Bytes::from_static(b"after"));
        output.close();
        assert_eq!(held, b"before");
        assert_eq!(feed.recv().await.unwrap(), "after");
        assert_eq!(feed.recv().await.unwrap(), "");
        assert!(output.is_closed());
    }
}
