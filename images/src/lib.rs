//! OCI images in containerd: pull, import, build, unpack and mount.

pub mod reference;

pub use reference::Reference;
