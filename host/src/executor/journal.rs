//! The latest lines that functions wrote, in memory, and a feed of what follows.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

/// Lines kept for one function, and their bytes.
const MAX_LINES: usize = 1000;
const MAX_BYTES: usize = 1024 * 1024;
/// A longer line is cut.
const MAX_LINE: usize = 16 * 1024;
/// Functions that are remembered; the one unheard of for longest goes first.
const MAX_FUNCTIONS: usize = 1024;
/// How many lines a slow follower may be behind before it loses some.
const FEED: usize = 1024;

/// Where a line comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// The function's log.
    Log,
    /// The function's error log.
    Error,
    /// Standard output or error of its server.
    Output,
    /// What the host has to say of it.
    Host,
}

/// One line that a function wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// When the host read it.
    pub time: SystemTime,
    /// Where it comes from.
    pub stream: Stream,
    /// Without its line end. Invalid UTF-8 is replaced, a long line cut.
    pub text: String,
}

/// The latest lines of each function.
#[derive(Debug, Default)]
pub struct Journal(Mutex<HashMap<String, Page>>);

#[derive(Debug)]
struct Page {
    lines: VecDeque<Arc<Line>>,
    bytes: usize,
    feed: broadcast::Sender<Arc<Line>>,
    written: SystemTime,
}

impl Journal {
    /// Adds each line of `text`.
    pub fn write(&self, name: &str, stream: Stream, text: &[u8]) {
        if text.is_empty() {
            return;
        }
        let time = SystemTime::now();
        let mut pages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let page = open(&mut pages, name, time);
        for line in text
            .strip_suffix(b"\n")
            .unwrap_or(text)
            .split(|&byte| byte == b'\n')
        {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let text = String::from_utf8_lossy(&line[..line.len().min(MAX_LINE)]).into_owned();
            page.push(Arc::new(Line { time, stream, text }));
        }
    }

    /// The latest `n` lines, oldest first, and a feed of what follows them without a gap.
    pub fn follow(&self, name: &str, n: usize) -> (Vec<Arc<Line>>, broadcast::Receiver<Arc<Line>>) {
        let mut pages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let page = open(&mut pages, name, SystemTime::now());
        let skipped = page.lines.len().saturating_sub(n);
        let lines = page.lines.iter().skip(skipped).cloned().collect();
        (lines, page.feed.subscribe())
    }

    /// Forgets a function.
    pub fn remove(&self, name: &str) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(name);
    }
}

fn open<'a>(pages: &'a mut HashMap<String, Page>, name: &str, now: SystemTime) -> &'a mut Page {
    if !pages.contains_key(name) && pages.len() >= MAX_FUNCTIONS {
        let oldest = pages.iter().min_by_key(|(_, page)| page.written);
        if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
            pages.remove(&oldest);
        }
    }
    let page = pages.entry(name.to_owned()).or_insert_with(|| Page {
        lines: VecDeque::new(),
        bytes: 0,
        feed: broadcast::channel(FEED).0,
        written: now,
    });
    page.written = now;
    page
}

impl Page {
    fn push(&mut self, line: Arc<Line>) {
        self.bytes += line.text.len();
        self.lines.push_back(line.clone());
        while self.lines.len() > MAX_LINES || self.bytes > MAX_BYTES {
            let oldest = self.lines.pop_front();
            self.bytes -= oldest.map_or(0, |line| line.text.len());
        }
        // Nobody following is not an error.
        let _ = self.feed.send(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(lines: &[Arc<Line>]) -> Vec<&str> {
        lines.iter().map(|line| line.text.as_str()).collect()
    }

    #[test]
    fn splits_lines_and_keeps_the_latest() {
        let journal = Journal::default();
        journal.write("hello", Stream::Log, b"one\r\ntwo\n");
        journal.write("hello", Stream::Error, b"\xffthree");
        let (lines, _) = journal.follow("hello", 2);
        assert_eq!(texts(&lines), ["two", "\u{fffd}three"]);
        let (lines, _) = journal.follow("other", 2);
        assert!(lines.is_empty());
    }

    #[test]
    fn is_bounded_in_lines_bytes_and_functions() {
        let journal = Journal::default();
        journal.write("many", Stream::Log, "\n".repeat(5000).as_bytes());
        assert_eq!(journal.follow("many", usize::MAX).0.len(), MAX_LINES);
        journal.write("long", Stream::Log, &vec![b'a'; 10 * MAX_BYTES]);
        assert_eq!(journal.follow("long", 1).0[0].text.len(), MAX_LINE);
        for n in 0..2 * MAX_FUNCTIONS {
            journal.write(&n.to_string(), Stream::Log, b"x");
        }
        assert_eq!(journal.0.lock().unwrap().len(), MAX_FUNCTIONS);
    }

    #[tokio::test]
    async fn a_follower_sees_what_comes() {
        let journal = Journal::default();
        let (_, mut feed) = journal.follow("hello", 1);
        journal.write("hello", Stream::Log, b"later");
        assert_eq!(feed.recv().await.unwrap().text, "later");
    }
}
