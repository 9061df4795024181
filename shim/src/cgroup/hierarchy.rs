//! Which cgroup hierarchies this machine has and where this process is in them; read once.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use super::CgroupError;

/// All hierarchies that are mounted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Hierarchies {
    /// Those of version 1, each once.
    pub(super) v1: Vec<Hierarchy>,
    /// The one of version 2.
    pub(super) unified: Option<Hierarchy>,
    /// Device rules cannot be set from inside a user namespace.
    pub(super) is_user_namespace: bool,
}

/// One hierarchy.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// As in `cpu`, `cpuacct` or `name=systemd`; for version 2, those at its top.
    pub(super) controllers: Vec<String>,
    /// Where it is mounted.
    pub(super) point: PathBuf,
    /// Where this process is, beneath that.
    pub(super) own: PathBuf,
}

impl Hierarchy {
    /// Whether this one has a controller.
    pub(super) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }
}

/// Reads the hierarchies once in this process's life.
pub(super) fn get() -> Result<&'static Hierarchies, CgroupError> {
    static HIERARCHIES: OnceLock<Hierarchies> = OnceLock::new();
    if let Some(hierarchies) = HIERARCHIES.get() {
        return Ok(hierarchies);
    }
    let read = |path: &str| {
        fs::read_to_string(path).map_err(|source| CgroupError::Read {
            path: path.into(),
            source,
        })
    };
    let mut found = parse(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?);
    found.is_user_namespace = is_partial(&read("/proc/self/uid_map")?);
    if let Some(unified) = &mut found.unified {
        let path = unified.point.join("cgroup.controllers");
        let text =
            fs::read_to_string(&path).map_err(|source| CgroupError::Read { path, source })?;
        unified.controllers = text.split_whitespace().map(str::to_owned).collect();
    }
    if found.v1.is_empty() && found.unified.is_none() {
        let path = PathBuf::from("/sys/fs/cgroup");
        let source = io::Error::new(io::ErrorKind::NotFound, "no cgroup hierarchy is mounted");
        return Err(CgroupError::Read { path, source });
    }
    Ok(HIERARCHIES.get_or_init(|| found))
}

/// Whether a user namespace does not have all ids. Source: user_namespaces(7).
fn is_partial(uid_map: &str) -> bool {
    let fields: Vec<&str> = uid_map.split_whitespace().collect();
    fields != ["0", "0", "4294967295"]
}

/// One mount of a hierarchy.
struct Mount<'a> {
    root: PathBuf,
    point: PathBuf,
    kind: &'a str,
    options: &'a str,
}

/// A line as in `35 31 0:31 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory`.
///
/// Source: proc_pid_mountinfo(5).
fn parse_mount(line: &str) -> Option<Mount<'_>> {
    let (before, after) = line.split_once(" - ")?;
    let mut before = before.split(' ').skip(3);
    let mut after = after.split(' ');
    Some(Mount {
        root: unescape(before.next()?).into(),
        point: unescape(before.next()?).into(),
        kind: after.next()?,
        options: after.nth(1)?,
    })
}

/// Spaces and the like are written as `\040`.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut result = parts.next().unwrap_or("").to_owned();
    for part in parts {
        match part.get(..3).map(|digits| u8::from_str_radix(digits, 8)) {
            Some(Ok(byte)) => {
                result.push(char::from(byte));
                result.push_str(&part[3..]);
            }
            Some(Err(_)) | None => {
                result.push('\\');
                result.push_str(part);
            }
        }
    }
    result
}

fn parse(mountinfo: &str, own: &str) -> Hierarchies {
    let mounts: Vec<_> = mountinfo.lines().filter_map(parse_mount).collect();
    let mut found = Hierarchies::default();
    let mut seen = BTreeSet::new();
    for line in own.lines() {
        // As in `4:memory:/a` and `0::/b`. Source: cgroups(7).
        let mut fields = line.splitn(3, ':');
        let (Some(number), Some(names), Some(own)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let is_unified = number == "0" && names.is_empty();
        let is_wanted = |mount: &&Mount<'_>| match is_unified {
            true => mount.kind == "cgroup2",
            false => mount.kind == "cgroup" && has_all(mount.options, names),
        };
        // Where one is mounted more than once, the whole tree is the better one.
        let mount =
            (mounts.iter().filter(is_wanted)).min_by_key(|mount| mount.root != Path::new("/"));
        let Some(mount) = mount.filter(|mount| seen.insert(&mount.point)) else {
            continue;
        };
        let own = Path::new(own);
        let hierarchy = Hierarchy {
            controllers: names
                .split(',')
                .filter(|n| !n.is_empty())
                .map(str::to_owned)
                .collect(),
            point: mount.point.clone(),
            own: own
                .strip_prefix(&mount.root)
                .unwrap_or(Path::new(""))
                .to_owned(),
        };
        match is_unified {
            true => found.unified = Some(hierarchy),
            false => found.v1.push(hierarchy),
        }
    }
    found
}

fn has_all(options: &str, names: &str) -> bool {
    names
        .split(',')
        .all(|name| options.split(',').any(|option| option == name))
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use expect_test::{Expect, expect};

    use super::*;

    #[track_caller]
    fn check(mountinfo: &str, own: &str, expected: Expect) {
        let found = parse(mountinfo, own);
        let mut text = String::new();
        for (version, hierarchy) in found
            .v1
            .iter()
            .map(|h| (1, h))
            .chain(found.unified.iter().map(|h| (2, h)))
        {
            let names = hierarchy.controllers.join(",");
            let (point, own) = (hierarchy.point.display(), hierarchy.own.display());
            writeln!(text, "{version} [{names}] {point} + {own:?}").unwrap();
        }
        expected.assert_eq(&text);
    }

    #[test]
    fn reads_a_hybrid_machine() {
        check(
            "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
             32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
             35 31 0:31 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
             40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw",
            "9:name=systemd:/\n4:memory:/a/b\n3:cpuset:/\n2:cpu,cpuacct:/\n0::/c",
            expect![[r#"
                1 [name=systemd] /sys/fs/cgroup/systemd + ""
                1 [memory] /sys/fs/cgroup/memory + "a/b"
                1 [cpu,cpuacct] /sys/fs/cgroup/cpu,cpuacct + ""
                2 [] /sys/fs/cgroup/unified + "c"
            "#]],
        );
    }

    #[test]
    fn reads_a_mount_of_a_part_and_odd_names() {
        check(
            "31 23 0:28 /docker/1 /mnt/my\\040cg ro - cgroup2 none rw,nsdelegate\n\
             32 23 0:28 / /sys/fs/cgroup rw - cgroup2 none rw\n\
             33 23 0:29 /docker/1 /cg/pids rw - cgroup none rw,pids",
            "5:pids:/docker/1/in\n0::/docker/1/x:y",
            expect![[r#"
                1 [pids] /cg/pids + "in"
                2 [] /sys/fs/cgroup + "docker/1/x:y"
            "#]],
        );
    }

    #[test]
    fn knows_a_user_namespace_by_its_ids() {
        assert!(!is_partial("         0          0 4294967295\n"));
        assert!(is_partial("         0     100000      65536\n"));
        assert!(is_partial(""));
    }
}
