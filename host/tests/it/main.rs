//! Tests of the host as a library, without root and without containerd.

mod architecture;
mod settings;
