//! Where a container's cgroup is: `linux.cgroupsPath` as a path or as systemd's `slice:prefix:name`.

use std::path::{Path, PathBuf};

use super::{CgroupConfig, CgroupError, hierarchy::Hierarchy};

/// The longest name of a file in the kernel (`NAME_MAX`).
const LONGEST_NAME: usize = 255;
/// The longest path, with room for the mount point and the names of files.
const LONGEST_PATH: usize = 3072;
/// The longest name of a unit of systemd (`UNIT_NAME_MAX`).
const LONGEST_UNIT: usize = 255;

/// Where a cgroup is in each hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// Beneath the mount point.
    Absolute(PathBuf),
    /// Beneath this process's own cgroup.
    Relative(PathBuf),
    /// A scope of systemd in a slice; the path is beneath the mount point.
    Scope {
        slice: String,
        unit: String,
        path: PathBuf,
    },
}

impl Place {
    /// Reads a container's settings.
    ///
    /// # Errors
    /// [`CgroupError::Path`] for what is no path, leads upwards, or has the other form.
    ///
    /// Source: OCI runtime spec, "Cgroups Path"; the forms were compared with runc 1.1's.
    pub(super) fn of(config: &CgroupConfig) -> Result<Self, CgroupError> {
        let path = config.path.as_deref().unwrap_or("");
        let refuse = |reason| CgroupError::Path {
            path: path.to_owned(),
            reason,
        };
        if config.systemd {
            return scope_of(path, &config.id).map_err(refuse);
        }
        if path.is_empty() {
            // The namespace keeps equal names of two clients apart.
            let own = format!("{}/{}", config.namespace, config.id);
            return check_path(&own).map(Self::Relative).map_err(refuse);
        }
        match path.strip_prefix('/') {
            Some(path) => check_path(path).map(Self::Absolute),
            None if !path.contains('/') && path.matches(':').count() == 2 => {
                Err("slice:prefix:name needs the systemd cgroup driver")
            }
            None => check_path(path).map(Self::Relative),
        }
        .map_err(refuse)
    }

    /// The folder in one hierarchy.
    pub(super) fn within(&self, hierarchy: &Hierarchy) -> PathBuf {
        match self {
            Self::Absolute(path) | Self::Scope { path, .. } => hierarchy.point.join(path),
            Self::Relative(path) => hierarchy.point.join(&hierarchy.own).join(path),
        }
    }

    /// The folder in version 2's hierarchy where that has the controllers. A cgroup with processes cannot pass
    /// controllers on, so that this process's own is not the parent but its sibling.
    ///
    /// Source: cgroups(7), "no internal processes".
    pub(super) fn within_unified(&self, hierarchy: &Hierarchy) -> PathBuf {
        match self {
            Self::Absolute(_) | Self::Scope { .. } => self.within(hierarchy),
            Self::Relative(path) => {
                let above = hierarchy.own.parent().unwrap_or(Path::new(""));
                hierarchy.point.join(above).join(path)
            }
        }
    }
}

/// Refuses what is no plain path downwards.
fn check_path(path: &str) -> Result<PathBuf, &'static str> {
    if path.len() > LONGEST_PATH {
        return Err("it is too long");
    }
    for name in path.split('/') {
        match name {
            "" => return Err("it has an empty name"),
            "." | ".." => return Err("it has a name of dots"),
            name if name.len() > LONGEST_NAME => return Err("it has a name that is too long"),
            name if name.contains(['\0', '\n']) => return Err("it has a character of no name"),
            // The kernel's own files; a folder with such a name cannot be made, or hides one.
            name if name.starts_with("cgroup.") => return Err("it has a name of the kernel's"),
            _ => {}
        }
    }
    Ok(path.into())
}

/// Reads `slice:prefix:name`; nothing stands for `system.slice` and the container's name.
fn scope_of(path: &str, id: &str) -> Result<Place, &'static str> {
    let parts: Vec<&str> = match path {
        "" => vec!["", "opr", id],
        path => path.split(':').collect(),
    };
    let [slice, prefix, name] = parts[..] else {
        return Err("the systemd cgroup driver needs slice:prefix:name");
    };
    let slice = if slice.is_empty() {
        "system.slice"
    } else {
        slice
    };
    if name.is_empty() {
        return Err("it has no name");
    }
    let unit = match prefix {
        _ if name.ends_with(".slice") => return Err("a container cannot be a slice"),
        "" => format!("{name}.scope"),
        prefix => format!("{prefix}-{name}.scope"),
    };
    if !is_unit(slice) || !is_unit(&unit) {
        return Err("it has a character of no unit, or is too long");
    }
    let path = expand(slice).ok_or("it has no valid slice")?.join(&unit);
    let slice = slice.to_owned();
    Ok(Place::Scope { slice, unit, path })
}

/// Source: systemd.unit(5).
fn is_unit(name: &str) -> bool {
    name.len() <= LONGEST_UNIT
        && (name.bytes()).all(|byte| byte.is_ascii_alphanumeric() || b"-_.@\\".contains(&byte))
}

/// The folders of a slice: `a-b.slice` is `a.slice/a-b.slice`. Source: systemd.slice(5).
fn expand(slice: &str) -> Option<PathBuf> {
    let name = slice.strip_suffix(".slice")?;
    if name == "-" {
        return Some(PathBuf::new());
    }
    let mut path = PathBuf::new();
    for (at, part) in name.split('-').scan(0, |at, part| {
        *at += part.len() + 1;
        Some((*at - 1, part))
    }) {
        if part.is_empty() {
            return None;
        }
        path.push(format!("{}.slice", &name[..at]));
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(path: &str, systemd: bool, expected: &str) {
        let config = CgroupConfig {
            path: Some(path.to_owned()),
            id: "id".to_owned(),
            namespace: "ns".to_owned(),
            systemd,
            resources: None,
        };
        let text = match Place::of(&config) {
            Ok(Place::Absolute(path)) => format!("/{}", path.display()),
            Ok(Place::Relative(path)) => format!("own/{}", path.display()),
            Ok(Place::Scope { slice, path, .. }) => format!("{slice}: {}", path.display()),
            Err(CgroupError::Path { reason, .. }) => format!("refused: {reason}"),
            Err(error) => panic!("{error}"),
        };
        assert_eq!(text, expected);
    }

    #[test]
    fn paths_go_downwards_only() {
        check("/opr/function/x", false, "/opr/function/x");
        check("a/b", false, "own/a/b");
        check("", false, "own/ns/id");
        check("/a:b", false, "/a:b");
        check("/a/b:c:d", false, "/a/b:c:d");
        check("/", false, "refused: it has an empty name");
        check("/a//b", false, "refused: it has an empty name");
        check("/a/", false, "refused: it has an empty name");
        check("/a/../b", false, "refused: it has a name of dots");
        check("..", false, "refused: it has a name of dots");
        check("/a/./b", false, "refused: it has a name of dots");
        check("/a\0b", false, "refused: it has a character of no name");
        check("/a\nb", false, "refused: it has a character of no name");
        check(
            "/cgroup.procs",
            false,
            "refused: it has a name of the kernel's",
        );
        check(
            &format!("/{}", "x".repeat(255)),
            false,
            &format!("/{}", "x".repeat(255)),
        );
        check(
            &"x".repeat(256),
            false,
            "refused: it has a name that is too long",
        );
        check(&"/x".repeat(2000), false, "refused: it is too long");
        check(
            "a:b:c",
            false,
            "refused: slice:prefix:name needs the systemd cgroup driver",
        );
    }

    #[test]
    fn scopes_are_in_their_slices() {
        let slice = "kubepods-besteffort-pod1.slice";
        check(
            &format!("{slice}:cri-containerd:abc"),
            true,
            &format!(
                "{slice}: kubepods.slice/kubepods-besteffort.slice/{slice}/cri-containerd-abc.scope"
            ),
        );
        check("", true, "system.slice: system.slice/opr-id.scope");
        check("::x", true, "system.slice: system.slice/x.scope");
        check("-.slice::x", true, "-.slice: x.scope");
        check("user.slice:p:", true, "refused: it has no name");
        check(
            "/a/b",
            true,
            "refused: the systemd cgroup driver needs slice:prefix:name",
        );
        check(
            "a/b.slice:p:n",
            true,
            "refused: it has a character of no unit, or is too long",
        );
        check("a--b.slice:p:n", true, "refused: it has no valid slice");
        check("a:p:n", true, "refused: it has no valid slice");
        check(
            "a.slice:p:../n",
            true,
            "refused: it has a character of no unit, or is too long",
        );
        check(
            "a.slice:p:n.slice",
            true,
            "refused: a container cannot be a slice",
        );
    }
}
