//! A user's own node, beside that of the machine: where its folders and settings are.

use std::path::PathBuf;

use crate::{config::env, rootless};

/// Where the node of a user without root is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) file: PathBuf,
    run_dir: PathBuf,
    state_dir: PathBuf,
}

impl Node {
    /// That of this process's user, where it is not root.
    pub(super) fn of_process() -> Option<Self> {
        let of_environment = || Self::of(&|name| std::env::var(name).ok());
        rootless::is_needed().then(of_environment)?
    }

    /// The node of the user whose environment this is, where one has been started: its service makes the run folder.
    ///
    /// Source: XDG Base Directory Specification 0.8.
    fn of(var: &dyn Fn(&str) -> Option<String>) -> Option<Self> {
        let path = |name| {
            var(name)
                .filter(|path| path.starts_with('/'))
                .map(PathBuf::from)
        };
        let home = path("HOME")?;
        let run_dir = path("XDG_RUNTIME_DIR")?.join("opr");
        let config = path("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config"));
        let state = path("XDG_STATE_HOME").unwrap_or_else(|| home.join(".local/state"));
        run_dir.is_dir().then(|| Self {
            file: config.join("opr/opr.toml"),
            run_dir,
            state_dir: state.join("opr"),
        })
    }

    /// What this implies for the node's variables.
    pub(super) fn var(&self, name: &str) -> Option<String> {
        let path = match name {
            env::RUN_DIR => &self.run_dir,
            env::STATE_DIR => &self.state_dir,
            _ => return None,
        };
        Some(path.to_string_lossy().into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_a_node_once_its_run_folder_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().to_string_lossy().into_owned();
        let var = |name: &str| match name {
            "HOME" => Some("/home/alice".to_owned()),
            "XDG_RUNTIME_DIR" => Some(run.clone()),
            _ => None,
        };
        assert_eq!(Node::of(&var), None);
        std::fs::create_dir(dir.path().join("opr")).unwrap();
        let node = Node::of(&var).unwrap();
        assert_eq!(node.file, PathBuf::from("/home/alice/.config/opr/opr.toml"));
        assert_eq!(node.var(env::RUN_DIR), Some(format!("{run}/opr")));
        assert_eq!(
            node.var(env::STATE_DIR).as_deref(),
            Some("/home/alice/.local/state/opr")
        );
        assert_eq!(node.var(env::LOG), None);
        assert_eq!(Node::of(&|_| None), None);
    }
}
