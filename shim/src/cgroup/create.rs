//! Makes a cgroup's folders and sets its limits.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
};

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources};
use rustix::{
    fs::{self, Mode},
    io::Errno,
};

use super::{
    Begun, Branch, Cgroup, CgroupConfig, CgroupError, Hierarchy, Version,
    device::{self, Policy},
    folder, hierarchy,
    limits::{self, Otherwise, Setting},
    place::Place,
    systemd,
};

/// The folders that were made; those that are still here when it is dropped are removed.
#[derive(Debug, Default)]
pub(super) struct Made(Vec<PathBuf>);

impl Made {
    /// Nothing is removed any more.
    pub(super) fn keep(&mut self) {
        self.0.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            // One in which somebody else has made something by now is theirs.
            let _ = fs::rmdir(path);
        }
    }
}

/// What is still to be done for a cgroup once a process can be born into it.
#[derive(Debug)]
pub(super) struct Rest {
    settings: Vec<Setting>,
    policy: Policy,
    may_leave_out: bool,
}

pub(super) fn begin(config: &CgroupConfig) -> Result<Begun, CgroupError> {
    let place = Place::of(config)?;
    let hierarchies = hierarchy::get()?;
    let resources = config.resources.clone().unwrap_or_default();
    let policy = check_devices(&resources)?;
    let mut cgroup = Cgroup::at(hierarchies, &place);
    // Before anything is made: most of what is wrong shows here.
    let settings = limits::plan(&resources, &cgroup)?;
    // As in runc: in a user namespace, and without a path that somebody chose, a hierarchy that this process may
    // not use is left out. Limits that need it are refused when they are set.
    let may_leave_out =
        hierarchies.is_user_namespace && config.path.as_deref().unwrap_or("").is_empty();
    cgroup.scope = systemd::Scope::start(&place, &cgroup)?;
    let mut made = Made::default();
    if let (Some(path), Some(hierarchy)) = (cgroup.unified.clone(), &hierarchies.unified) {
        match make_unified(&cgroup, &path, hierarchy, &settings, &mut made) {
            Err(error) if may_leave_out && is_denied(&error) => cgroup.unified = None,
            result => result.inspect_err(|_| cgroup.stop_scope())?,
        }
    }
    let rest = Rest {
        settings,
        policy,
        may_leave_out,
    };
    Ok(Begun {
        cgroup,
        made,
        rest,
        is_complete: false,
    })
}

impl Rest {
    pub(super) fn make(&self, cgroup: &mut Cgroup, made: &mut Made) -> Result<(), CgroupError> {
        self.make_v1(cgroup, made)?;
        set_all(cgroup, &self.settings)?;
        set_devices(cgroup, &self.policy)
    }

    fn make_v1(&self, cgroup: &mut Cgroup, made: &mut Made) -> Result<(), CgroupError> {
        let is_scope = cgroup.scope.is_some();
        let mut kept = Vec::with_capacity(cgroup.v1.len());
        for branch in std::mem::take(&mut cgroup.v1) {
            match make_v1(&branch, is_scope, made) {
                Ok(()) => kept.push(branch),
                Err(error) if self.may_leave_out && is_denied(&error) => {}
                Err(error) => return Err(error),
            }
        }
        cgroup.v1 = kept;
        Ok(())
    }
}

fn is_denied(error: &CgroupError) -> bool {
    match error {
        CgroupError::Create { source, .. } => matches!(
            Errno::from_io_error(source),
            Some(Errno::ACCESS | Errno::PERM | Errno::ROFS)
        ),
        _ => false,
    }
}

/// Makes a folder, and those above it where they are missing. `each` is told those above that were made.
///
/// Answers whether the folder itself is new.
fn make(
    path: &Path,
    made: &mut Made,
    each: &dyn Fn(&Path) -> Result<(), CgroupError>,
) -> Result<bool, CgroupError> {
    let mode = Mode::from_raw_mode(0o755);
    // Another container's clean-up may take a folder above away in between.
    for _ in 0..8 {
        match fs::mkdir(path, mode) {
            Ok(()) => {
                made.0.push(path.to_owned());
                return Ok(true);
            }
            Err(Errno::EXIST) => return Ok(false),
            Err(Errno::NOENT) => {
                let above = path.parent().ok_or_else(|| refused(path, Errno::NOENT))?;
                if make(above, made, each)? {
                    each(above)?;
                }
            }
            Err(errno) => return Err(refused(path, errno)),
        }
    }
    Err(refused(path, Errno::NOENT))
}

fn refused(path: &Path, errno: Errno) -> CgroupError {
    CgroupError::Create {
        path: path.to_owned(),
        source: errno.into(),
    }
}

fn make_v1(branch: &Branch, is_scope: bool, made: &mut Made) -> Result<(), CgroupError> {
    let is_cpuset = branch.hierarchy.has("cpuset");
    let is_new = make(&branch.path, made, &|above| match is_cpuset {
        // Children are then born with their parent's CPUs, which is faster than to write them.
        true => fill_cpuset(above, &branch.hierarchy.point)
            .and_then(|()| write(above, "cgroup.clone_children", "1")),
        false => Ok(()),
    })?;
    if !is_new && !is_scope {
        check_unused(&branch.path, branch.hierarchy.has("freezer"))?;
    }
    match is_cpuset {
        true => fill_cpuset(&branch.path, &branch.hierarchy.point),
        false => Ok(()),
    }
}

/// A cpuset without CPUs or memory takes no process: it gets its parent's. The parent may be one that somebody else
/// has just made and not filled yet.
fn fill_cpuset(path: &Path, point: &Path) -> Result<(), CgroupError> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if path == point || !folder::read(path, file)?.trim().is_empty() {
            continue;
        }
        let Some(above) = path.parent() else {
            continue;
        };
        fill_cpuset(above, point)?;
        write(path, file, folder::read(above, file)?.trim())?;
    }
    Ok(())
}

fn write(path: &Path, file: &str, value: &str) -> Result<(), CgroupError> {
    folder::write(path, file, value).map_err(|source| CgroupError::Write {
        field: "linux.cgroupsPath".to_owned(),
        file: path.join(file),
        source,
    })
}

/// A cgroup that was there before is fine as long as nobody uses it.
fn check_unused(path: &Path, has_freezer: bool) -> Result<(), CgroupError> {
    let busy = |reason| CgroupError::Busy {
        path: path.to_owned(),
        reason,
    };
    let mut pids = BTreeSet::new();
    folder::pids(path, &mut pids)?;
    if !pids.is_empty() {
        return Err(busy(format!("it has {} processes", pids.len())));
    }
    let is_frozen = match folder::read_if_any(path, "cgroup.freeze")? {
        Some(text) => text.trim() == "1",
        None if has_freezer => folder::read(path, "freezer.state")?.trim() != "THAWED",
        None => false,
    };
    match is_frozen {
        true => Err(busy("it is frozen".to_owned())),
        false => Ok(()),
    }
}

fn make_unified(
    cgroup: &Cgroup,
    path: &Path,
    hierarchy: &Hierarchy,
    settings: &[Setting],
    made: &mut Made,
) -> Result<(), CgroupError> {
    let is_new = make(path, made, &|_| Ok(()))?;
    if !is_new && cgroup.scope.is_none() {
        check_unused(path, false)?;
    }
    let needed = needed(cgroup, settings);
    // Beside version 1 only a limit that needs a controller of version 2 pays for it.
    let wanted = match cgroup.v1.is_empty() {
        true => hierarchy.controllers.iter().map(String::as_str).collect(),
        false => needed.clone(),
    };
    let failure = match wanted.is_empty() {
        true => None,
        false => enable(path, &hierarchy.point, &wanted)?,
    };
    // A cgroup below one with threads, or below one with processes and controllers, takes no process.
    let kind = folder::read(path, "cgroup.type")?;
    if kind.trim() != "domain" {
        let source = io::Error::other(format!("it is {}, not domain", kind.trim()));
        return Err(CgroupError::Create {
            path: path.to_owned(),
            source,
        });
    }
    if needed.is_empty() {
        return Ok(());
    }
    let has = folder::read(path, "cgroup.controllers")?;
    let has: BTreeSet<&str> = has.split_whitespace().collect();
    match needed.difference(&has).next() {
        None => Ok(()),
        Some(controller) => Err(failure.unwrap_or_else(|| CgroupError::Missing {
            field: "linux.resources".to_owned(),
            what: format!("the controller {controller} in {}", path.display()),
        })),
    }
}

/// The controllers of version 2 that the limits need.
fn needed(cgroup: &Cgroup, settings: &[Setting]) -> BTreeSet<&'static str> {
    V2_NAMES
        .into_iter()
        .filter(|(v1, _)| settings.iter().any(|setting| setting.controller == *v1))
        .filter(|(v1, _)| cgroup.version(v1) == Some(Version::V2))
        .map(|(_, v2)| v2)
        .collect()
}

/// Controllers by version 1's name and by version 2's.
const V2_NAMES: [(&str, &str); 8] = [
    ("cpu", "cpu"),
    ("cpuset", "cpuset"),
    ("memory", "memory"),
    ("blkio", "io"),
    ("pids", "pids"),
    ("hugetlb", "hugetlb"),
    ("rdma", "rdma"),
    ("misc", "misc"),
];

/// Passes controllers down to a cgroup, from the top on. What is in place is not written again, so that the way to
/// a second container costs one read. Answers the last refusal: above a delegated tree nothing can be written, and
/// nothing needs to be.
fn enable(
    path: &Path,
    point: &Path,
    wanted: &BTreeSet<&str>,
) -> Result<Option<CgroupError>, CgroupError> {
    let is_in_place = |text: &str| {
        let has: BTreeSet<&str> = text.split_whitespace().collect();
        wanted.is_subset(&has)
    };
    let mut failure = None;
    if is_in_place(&folder::read(path, "cgroup.controllers")?) {
        return Ok(failure);
    }
    let mut levels: Vec<_> = path
        .ancestors()
        .skip(1)
        .take_while(|above| above.starts_with(point))
        .collect();
    levels.reverse();
    for level in levels {
        let available = folder::read(level, "cgroup.controllers")?;
        let enabled = folder::read(level, "cgroup.subtree_control")?;
        let enabled: BTreeSet<&str> = enabled.split_whitespace().collect();
        // One by one: one that is refused does not keep the others from it.
        for controller in available.split_whitespace() {
            if !wanted.contains(controller) || enabled.contains(controller) {
                continue;
            }
            let file = "cgroup.subtree_control";
            failure = write(level, file, &format!("+{controller}"))
                .err()
                .or(failure);
        }
    }
    Ok(failure)
}

/// The meaning of a spec's device rules.
pub(super) fn check_devices(resources: &LinuxResources) -> Result<Policy, CgroupError> {
    let rules = resources.devices().as_deref().unwrap_or_default();
    Ok(Policy::of_rules(rules)?)
}

/// Plans and sets limits.
pub(super) fn limit(cgroup: &Cgroup, resources: &LinuxResources) -> Result<(), CgroupError> {
    set_all(cgroup, &limits::plan(resources, cgroup)?)
}

fn set_all(cgroup: &Cgroup, settings: &[Setting]) -> Result<(), CgroupError> {
    let mut later = Vec::new();
    for setting in settings {
        match set(cgroup, setting) {
            Err(CgroupError::Write { source, .. })
                if setting.otherwise == Otherwise::Later
                    && Errno::from_io_error(&source) == Some(Errno::INVAL) =>
            {
                later.push(setting);
            }
            result => result?,
        }
    }
    later
        .into_iter()
        .try_for_each(|setting| set(cgroup, setting))
}

fn set(cgroup: &Cgroup, setting: &Setting) -> Result<(), CgroupError> {
    let Some(path) = cgroup.folder(&setting.controller) else {
        return Err(CgroupError::Missing {
            field: setting.field.to_string(),
            what: format!("the controller {}", setting.controller),
        });
    };
    for (file, value) in &setting.choices {
        match folder::write(path, file, value) {
            Ok(()) if setting.otherwise == Otherwise::Verify => {
                return verify(path, file, value, &setting.field);
            }
            Ok(()) => return Ok(()),
            Err(error) if folder::is_gone(&error) => {}
            Err(source) => {
                return Err(CgroupError::Write {
                    field: setting.field.to_string(),
                    file: path.join(&**file),
                    source,
                });
            }
        }
    }
    if setting.otherwise == Otherwise::Skip {
        return Ok(());
    }
    let file = setting.choices.first().map_or("", |(file, _)| file);
    Err(CgroupError::Missing {
        field: setting.field.to_string(),
        what: format!("the file {file} in {}", path.display()),
    })
}

/// Whether a file says what was written, rounded to pages.
fn verify(path: &Path, file: &str, value: &str, field: &str) -> Result<(), CgroupError> {
    const LARGEST_PAGE: u64 = 1 << 16;
    let number = |text: &str| text.trim().parse().unwrap_or(u64::MAX);
    if number(&folder::read(path, file)?).abs_diff(number(value)) <= LARGEST_PAGE {
        return Ok(());
    }
    Err(CgroupError::Missing {
        field: field.to_owned(),
        what: format!("a kernel that takes {file}"),
    })
}

/// Sets device rules anew.
pub(super) fn rule_devices(
    cgroup: &Cgroup,
    rules: &[LinuxDeviceCgroup],
) -> Result<(), CgroupError> {
    set_devices(cgroup, &Policy::of_rules(rules)?)
}

fn set_devices(cgroup: &Cgroup, policy: &Policy) -> Result<(), CgroupError> {
    // Inside a user namespace the kernel takes no device rules, and no device file can be made there: as in runc
    // they are left out.
    if hierarchy::get()?.is_user_namespace {
        return Ok(());
    }
    let branch = cgroup
        .v1
        .iter()
        .find(|branch| branch.hierarchy.has("devices"));
    match (branch, &cgroup.unified) {
        (Some(branch), _) => device::apply_v1(&branch.path, policy),
        (None, Some(unified)) => device::apply_v2(unified, policy),
        (None, None) => Err(CgroupError::Missing {
            field: "linux.resources.devices".to_owned(),
            what: "the controller devices".to_owned(),
        }),
    }
}

impl limits::Place for Cgroup {
    fn version(&self, controller: &str) -> Option<Version> {
        Self::version(self, controller)
    }

    fn read(&self, controller: &str, file: &str) -> Option<String> {
        folder::read_if_any(self.folder(controller)?, file)
            .ok()
            .flatten()
    }
}
