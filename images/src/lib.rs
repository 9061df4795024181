//! OCI images in containerd: pull, import, build, unpack and mount.
