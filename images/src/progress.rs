//! What long work tells of itself while it lasts.

/// Receives the progress of a pull, an import or a build. `()` is silent.
pub trait Progress: Send + Sync {
    /// The layer (or other blob) `digest` is now in `state`.
    fn layer(&self, digest: &str, state: LayerState);

    /// A builder's tool printed a line.
    fn line(&self, text: &str) {
        let _ = text;
    }
}

/// How far a layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerState {
    /// Known from the manifest; nothing done yet.
    Waiting,
    /// Bytes are coming in.
    Downloading {
        /// Bytes that are in the content store.
        done: u64,
        /// The blob's size in bytes.
        total: u64,
    },
    /// The content is complete and is being unpacked.
    Unpacking,
    /// Content and snapshot are there.
    Done,
}

impl Progress for () {
    fn layer(&self, _digest: &str, _state: LayerState) {}
}
