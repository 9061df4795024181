//! What a command or a server wrote, each part with its time, up to a limit, for any number of readers, as it happens.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::watch;

use super::pool::Hold;

/// Bytes that are kept of what a command writes: of its beginning, the part that crosses the limit being the last.
pub const LIMIT: usize = 1_000_000;
/// Bytes that are kept of what a server writes: the latest.
const SERVER_LIMIT: usize = 256 * 1024;
/// What stands for the rest.
pub const TRUNCATED: &str = "Logs truncated due to size exceeding 1.00MB.";

/// A part of what was written. What was written within one millisecond is one part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// When.
    pub at: SystemTime,
    /// What; bytes that are no UTF-8 are `?`.
    pub content: String,
}

/// What one command or server writes.
#[derive(Debug)]
pub struct Transcript {
    state: Mutex<State>,
    keep: Keep,
    /// Says that there is more, or that nothing follows.
    changed: watch::Sender<()>,
    began: (SystemTime, Instant),
}

/// What is kept of more than a limit of bytes.
#[derive(Debug, Clone, Copy)]
enum Keep {
    First(usize),
    /// Twice as much is held at times, so that each byte is moved once.
    Latest(usize),
}

#[derive(Debug, Default)]
struct State {
    text: String,
    /// Bytes that came before the text and are no longer held.
    n_dropped: usize,
    /// Milliseconds after the beginning, and where the part ends, counted from the first byte ever.
    marks: Vec<(u64, usize)>,
    /// The beginning of a character whose end has not come yet.
    partial: Vec<u8>,
    truncated_ms: Option<u64>,
    is_closed: bool,
}

impl Transcript {
    /// That of a command: its beginning is kept.
    pub fn of_command() -> Self {
        Self::new(Keep::First(LIMIT))
    }

    /// That of a command of which the end is kept.
    pub fn of_old_command() -> Self {
        Self::new(Keep::Latest(LIMIT))
    }

    /// That of a server: the latest is kept.
    pub fn of_server() -> Self {
        Self::new(Keep::Latest(SERVER_LIMIT))
    }

    fn new(keep: Keep) -> Self {
        Self {
            state: Mutex::default(),
            keep,
            changed: watch::Sender::new(()),
            began: (SystemTime::now(), Instant::now()),
        }
    }

    /// When it began, the time of its earliest part.
    pub fn began(&self) -> SystemTime {
        self.began.0
    }

    /// Adds what was just written.
    pub fn push(&self, bytes: &[u8]) {
        let now = self.now_ms();
        self.lock().push(bytes, now, self.keep);
        self.changed.send_replace(());
    }

    /// Says that nothing follows. What is added later is added all the same.
    pub fn close(&self) {
        let now = self.now_ms();
        let mut state = self.lock();
        state.is_closed = true;
        state.finish(now);
        drop(state);
        self.changed.send_replace(());
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.lock().text.is_empty()
    }

    /// All of it that is kept.
    pub fn text(&self) -> String {
        let state = self.lock();
        let start = match self.keep {
            Keep::First(_) => 0,
            Keep::Latest(limit) => start_of_latest(&state.text, limit),
        };
        state.text[start..].to_owned()
    }

    /// All parts, and where some were left out, one that says so.
    pub fn parts(&self) -> Vec<Part> {
        self.after(&mut Place::default())
    }

    /// Reads from the beginning.
    pub fn follow(self: &Arc<Self>) -> Reader {
        Reader {
            changes: self.changed.subscribe(),
            transcript: self.clone(),
            place: Place::default(),
            hold: None,
        }
    }

    /// The parts after a place, which moves to the end.
    fn after(&self, place: &mut Place) -> Vec<Part> {
        let state = self.lock();
        // A reader that is too slow misses what is no longer held.
        place.n_bytes = place.n_bytes.max(state.n_dropped);
        let first = state
            .marks
            .partition_point(|(_, end)| *end <= place.n_bytes);
        let mut parts = Vec::new();
        for (ms, end) in &state.marks[first..] {
            let held = place.n_bytes - state.n_dropped..*end - state.n_dropped;
            parts.push(self.part(*ms, state.text[held].to_owned()));
            place.n_bytes = *end;
        }
        if let Some(ms) = state.truncated_ms.filter(|_| !place.has_end) {
            parts.push(self.part(ms, TRUNCATED.into()));
            place.has_end = true;
        }
        parts
    }

    fn part(&self, ms: u64, content: String) -> Part {
        let at = self.began.0 + Duration::from_millis(ms);
        Part { at, content }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.1.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn push(&mut self, bytes: &[u8], now: u64, keep: Keep) {
        if let Keep::First(limit) = keep
            && self.text.len() >= limit
        {
            if !bytes.is_empty() {
                self.truncated_ms.get_or_insert(now);
            }
            return;
        }
        let whole = [self.partial.as_slice(), bytes].concat();
        self.partial.clear();
        let n_partial = unfinished(&whole);
        let (whole, partial) = whole.split_at(whole.len() - n_partial);
        self.partial.extend(partial);
        for chunk in whole.utf8_chunks() {
            self.text.push_str(chunk.valid());
            if !chunk.invalid().is_empty() {
                self.text.push('?');
            }
        }
        self.mark(now);
        if let Keep::Latest(limit) = keep
            && self.text.len() > 2 * limit
        {
            let start = start_of_latest(&self.text, limit);
            self.text.drain(..start);
            self.n_dropped += start;
            self.marks.retain(|(_, end)| *end > self.n_dropped);
        }
    }

    fn finish(&mut self, now: u64) {
        if !std::mem::take(&mut self.partial).is_empty() {
            self.text.push('?');
            self.mark(now);
        }
    }

    /// What has come since the last mark is of now.
    fn mark(&mut self, now: u64) {
        let end = self.n_dropped + self.text.len();
        match self.marks.last_mut() {
            Some((_, last)) if *last == end => {}
            // A clock that stood still.
            Some((ms, last)) if *ms >= now => *last = end,
            Some(_) => self.marks.push((now, end)),
            None if self.text.is_empty() => {}
            None => self.marks.push((now, end)),
        }
    }
}

/// Where the last `limit` bytes begin, or a little later, where a character does.
fn start_of_latest(text: &str, limit: usize) -> usize {
    let wanted = text.len().saturating_sub(limit);
    let start = (wanted..=text.len()).find(|at| text.is_char_boundary(*at));
    start.unwrap_or(text.len())
}

/// How many bytes at the end begin a character that is not whole.
fn unfinished(bytes: &[u8]) -> usize {
    match bytes.utf8_chunks().last() {
        Some(chunk) => match std::str::from_utf8(chunk.invalid()) {
            Err(error) if error.error_len().is_none() => chunk.invalid().len(),
            _ => 0,
        },
        None => 0,
    }
}

/// How far a reader is.
#[derive(Debug, Default)]
struct Place {
    n_bytes: usize,
    has_end: bool,
}

/// One reader of a transcript. Its instance is not reaped while it reads.
#[derive(Debug)]
pub struct Reader {
    transcript: Arc<Transcript>,
    changes: watch::Receiver<()>,
    place: Place,
    hold: Option<Hold>,
}

impl Reader {
    pub(super) fn holding(mut self, hold: Hold) -> Self {
        self.hold = Some(hold);
        self
    }

    /// What has been written since the last call, once there is something; `None` where nothing follows.
    pub async fn next(&mut self) -> Option<Vec<Part>> {
        loop {
            self.changes.mark_unchanged();
            let is_closed = self.transcript.lock().is_closed;
            let parts = self.transcript.after(&mut self.place);
            if !parts.is_empty() {
                return Some(parts);
            }
            if is_closed {
                return None;
            }
            let changed = self.changes.changed().await;
            changed.expect("the sender is in the transcript, which is borrowed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(parts: &[Part]) -> Vec<&str> {
        parts.iter().map(|part| part.content.as_str()).collect()
    }

    fn state(pushes: &[(&[u8], u64)]) -> State {
        let mut state = State::default();
        for (bytes, now) in pushes {
            state.push(bytes, *now, Keep::First(LIMIT));
        }
        state
    }

    #[test]
    fn what_comes_within_one_millisecond_is_one_part() {
        let state = state(&[(b"a", 1), (b"b", 1), (b"", 2), (b"c", 3), (b"d", 2)]);
        assert_eq!(state.text, "abcd");
        assert_eq!(state.marks, [(1, 2), (3, 4)]);
    }

    #[test]
    fn a_character_that_comes_in_two_pieces_is_whole() {
        #[track_caller]
        fn check(pushes: &[&[u8]], expected: &str) {
            let pushes: Vec<_> = pushes.iter().map(|bytes| (*bytes, 0)).collect();
            let mut state = state(&pushes);
            state.finish(0);
            assert_eq!(state.text, expected);
        }
        check(&[b"a\xf0\x9f", b"\x91\x8b!"], "a👋!");
        check(&[b"a\xf0", b"\x9f", b"\x91", b"\x8b"], "a👋");
        check(&[b"\xf0\x9f", b"z"], "?z");
        check(&[b"\xff\xfe", b"z"], "??z");
        check(&[b"a\xf0\x9f"], "a?");
    }

    #[test]
    fn the_part_that_crosses_the_limit_is_the_last_one() {
        let transcript = Transcript::of_command();
        transcript.push(&[b'1'; LIMIT - 1]);
        transcript.push(b"crosses");
        transcript.push(b"left out");
        transcript.push(b"this too");
        let parts = transcript.parts();
        let all: String = contents(&parts).concat();
        assert!(
            all.ends_with(&format!("1crosses{TRUNCATED}")),
            "{}",
            &all[LIMIT - 10..]
        );
        assert_eq!(all.len(), LIMIT + 6 + TRUNCATED.len());
        assert_eq!(transcript.text().len(), LIMIT + 6);
    }

    #[test]
    fn of_a_servers_output_the_latest_is_kept() {
        let keep = Keep::Latest(10);
        let transcript = Transcript::new(keep);
        let mut place = Place::default();
        transcript.push("first ä".as_bytes());
        assert_eq!(contents(&transcript.after(&mut place)), ["first ä"]);
        for n in 0..100_u32 {
            transcript.push(format!("ä{n:03}").as_bytes());
        }
        let text = transcript.text();
        assert_eq!(text, "ä098ä099");
        let held = contents(&transcript.parts()).concat();
        assert!(held.len() <= 20 && held.ends_with(&text), "{held}");
        // Who is too slow goes on with what is held.
        assert_eq!(contents(&transcript.after(&mut place)).concat(), held);
        assert_eq!(transcript.after(&mut place), []);
        transcript.push(b"!");
        assert_eq!(contents(&transcript.after(&mut place)), ["!"]);
    }

    #[tokio::test]
    async fn every_reader_gets_all_parts_whenever_it_comes() {
        let transcript = Arc::new(Transcript::of_command());
        let read = |mut reader: Reader| async move {
            let mut all = Vec::new();
            while let Some(parts) = reader.next().await {
                all.extend(parts);
            }
            all
        };
        let early = tokio::spawn(read(transcript.follow()));
        for text in ["one\r\n", "two\r\n", "three\r\n"] {
            transcript.push(text.as_bytes());
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        let middle = tokio::spawn(read(transcript.follow()));
        transcript.push(b"four\r\n");
        transcript.close();
        let late = read(transcript.follow()).await;
        let (early, middle) = (early.await.unwrap(), middle.await.unwrap());
        assert_eq!(contents(&late).concat(), "one\r\ntwo\r\nthree\r\nfour\r\n");
        assert_eq!(late, transcript.parts());
        assert_eq!((early.len(), &middle), (late.len(), &late));
        assert_eq!(early, late);
        assert!(late.windows(2).all(|two| two[0].at < two[1].at));
    }

    #[tokio::test]
    async fn one_that_ends_without_a_word_ends_its_readers() {
        let transcript = Arc::new(Transcript::of_command());
        let mut reader = transcript.follow();
        transcript.close();
        assert_eq!(reader.next().await, None);
    }
}
