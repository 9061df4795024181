//! What one process of a container is: program, user, rights and limits.

use std::{ffi::CString, path::Path, str::FromStr};

use caps::Capability;
use nix::libc;
use oci_spec::runtime::{
    Capabilities, IOPriorityClass, Linux, LinuxPersonalityDomain, LinuxSchedulerFlag,
    LinuxSchedulerPolicy, PosixRlimitType, Process, Spec,
};
use serde::{Deserialize, Serialize};

use super::{
    SpecError, c_string,
    seccomp::{SeccompPlan, seccomp},
};
use crate::sys::SchedulerAttributes;

/// One process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ProcessPlan {
    pub(crate) args: Vec<CString>,
    pub(crate) env: Vec<CString>,
    pub(crate) cwd: CString,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) umask: u32,
    pub(crate) capabilities: CapabilityPlan,
    pub(crate) no_new_privs: bool,
    pub(crate) rlimits: Vec<Rlimit>,
    pub(crate) oom_score_adj: Option<i32>,
    /// What the process is confined by once it executes its program: an AppArmor profile or SELinux label.
    pub(crate) confinement: Option<String>,
    pub(crate) seccomp: Option<SeccompPlan>,
    pub(crate) personality: Option<u64>,
    /// Class and priority.
    pub(crate) io_priority: Option<(u16, u16)>,
    pub(crate) scheduler: Option<SchedulerAttributes>,
    /// Rows and columns of the terminal.
    pub(crate) console_size: Option<(u16, u16)>,
}

/// `RLIMIT_*`, soft and hard.
pub(crate) type Rlimit = (u32, u64, u64);

/// Sets of capabilities, a bit for each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CapabilityPlan {
    pub(crate) bounding: u64,
    pub(crate) effective: u64,
    pub(crate) permitted: u64,
    pub(crate) inheritable: u64,
    pub(crate) ambient: u64,
}

/// The plan of a process of the container that `spec` is of: the main one, or one that is run beside it.
/// What the latter leaves open it has from the main one.
pub(crate) fn process(process: &Process, spec: &Spec) -> Result<ProcessPlan, SpecError> {
    let main = spec.process().as_ref().unwrap_or(process);
    let nothing = Linux::default();
    let linux = spec.linux().as_ref().unwrap_or(&nothing);
    refuse_unknown(process, linux)?;
    let args = process.args().iter().flatten();
    let args: Vec<_> = args
        .map(|arg| c_string("process.args", arg))
        .collect::<Result<_, _>>()?;
    if args.first().is_none_or(|program| program.is_empty()) {
        return Err(SpecError::new("process.args", "there is no program in it"));
    }
    let cwd = process.cwd();
    if !cwd.is_absolute() {
        let reason = format!("{} is not absolute", cwd.display());
        return Err(SpecError::new("process.cwd", reason));
    }
    let user = process.user();
    let no_new_privs = process.no_new_privileges().or(main.no_new_privileges());
    Ok(ProcessPlan {
        args,
        env: environment(process)?,
        cwd: c_string("process.cwd", &cwd.to_string_lossy())?,
        uid: user.uid(),
        gid: user.gid(),
        groups: user.additional_gids().clone().unwrap_or_default(),
        umask: user.umask().unwrap_or(0o022),
        capabilities: capabilities(process, main)?,
        no_new_privs: no_new_privs.unwrap_or(false),
        rlimits: rlimits(process, spec)?,
        oom_score_adj: process.oom_score_adj().or(main.oom_score_adj()),
        confinement: confinement(process, main)?,
        seccomp: linux.seccomp().as_ref().map(seccomp).transpose()?,
        personality: personality(linux)?,
        io_priority: io_priority(process)?,
        scheduler: scheduler(process)?,
        console_size: console_size(process),
    })
}

/// What a later version of the specification may have brought, and what no kernel here can do.
fn refuse_unknown(process: &Process, linux: &Linux) -> Result<(), SpecError> {
    let fields = [
        (
            process.exec_cpu_affinity().is_some(),
            "process.execCPUAffinity",
        ),
        (linux.intel_rdt().is_some(), "linux.intelRdt"),
        (linux.memory_policy().is_some(), "linux.memoryPolicy"),
        (
            linux
                .net_devices()
                .as_ref()
                .is_some_and(|devices| !devices.is_empty()),
            "linux.netDevices",
        ),
        (
            linux
                .mount_label()
                .as_ref()
                .is_some_and(|label| !label.is_empty()),
            "linux.mountLabel",
        ),
    ];
    match fields.into_iter().find(|(is_set, _)| *is_set) {
        Some((_, field)) => Err(SpecError::new(field, "is not supported")),
        None => Ok(()),
    }
}

fn environment(process: &Process) -> Result<Vec<CString>, SpecError> {
    let lines = process.env().iter().flatten();
    lines
        .map(|line| match line.split_once('=') {
            Some((name, _)) if !name.is_empty() => c_string("process.env", line),
            _ => Err(SpecError::new(
                "process.env",
                format!("{line:?} is not of the form NAME=value"),
            )),
        })
        .collect()
}

fn capabilities(process: &Process, main: &Process) -> Result<CapabilityPlan, SpecError> {
    let own = process
        .capabilities()
        .as_ref()
        .or(main.capabilities().as_ref());
    let Some(own) = own else {
        return Ok(CapabilityPlan::default());
    };
    let plan = CapabilityPlan {
        bounding: bits(own.bounding().as_ref())?,
        effective: bits(own.effective().as_ref())?,
        permitted: bits(own.permitted().as_ref())?,
        inheritable: bits(own.inheritable().as_ref())?,
        ambient: bits(own.ambient().as_ref())?,
    };
    Ok(plan)
}

fn bits(set: Option<&Capabilities>) -> Result<u64, SpecError> {
    let mut bits = 0;
    for capability in set.into_iter().flatten() {
        let name = capability.to_string();
        let known = Capability::from_str(&format!("CAP_{name}"))
            .map_err(|_| SpecError::new("process.capabilities", format!("{name} is unknown")))?;
        bits |= known.bitmask();
    }
    Ok(bits)
}

/// Those of a process, or where it has none those of the main one.
pub(crate) fn rlimits(process: &Process, spec: &Spec) -> Result<Vec<Rlimit>, SpecError> {
    let main = spec.process().as_ref().unwrap_or(process);
    let own = process
        .rlimits()
        .as_ref()
        .filter(|limits| !limits.is_empty());
    let mut plan: Vec<Rlimit> = Vec::new();
    for limit in own.or(main.rlimits().as_ref()).into_iter().flatten() {
        let wrong =
            |reason| SpecError::new("process.rlimits", format!("{}: {reason}", limit.typ()));
        let resource = resource(limit.typ());
        if limit.soft() > limit.hard() {
            return Err(wrong("the soft limit is above the hard one"));
        }
        if plan.iter().any(|(known, ..)| *known == resource) {
            return Err(wrong("is there twice"));
        }
        plan.push((resource, limit.soft(), limit.hard()));
    }
    Ok(plan)
}

fn resource(kind: PosixRlimitType) -> u32 {
    match kind {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}

fn confinement(process: &Process, main: &Process) -> Result<Option<String>, SpecError> {
    let given = |field: fn(&Process) -> &Option<String>| {
        let value = field(process).as_ref().or(field(main).as_ref());
        value.filter(|value| !value.is_empty())
    };
    if given(Process::selinux_label).is_some() && !Path::new("/sys/fs/selinux/enforce").exists() {
        let reason = "SELinux is not enabled on this machine";
        return Err(SpecError::new("process.selinuxLabel", reason));
    }
    if let Some(label) = given(Process::selinux_label) {
        return Ok(Some(label.clone()));
    }
    let Some(profile) = given(Process::apparmor_profile) else {
        return Ok(None);
    };
    let enabled = std::fs::read("/sys/module/apparmor/parameters/enabled");
    if !enabled.is_ok_and(|text| text.starts_with(b"Y")) {
        let reason = "AppArmor is not enabled on this machine";
        return Err(SpecError::new("process.apparmorProfile", reason));
    }
    Ok(Some(format!("exec {profile}")))
}

fn personality(linux: &Linux) -> Result<Option<u64>, SpecError> {
    const PER_LINUX32: u64 = 0x8;
    let Some(personality) = linux.personality() else {
        return Ok(None);
    };
    if personality
        .flags()
        .as_ref()
        .is_some_and(|flags| !flags.is_empty())
    {
        return Err(SpecError::new(
            "linux.personality.flags",
            "are not supported",
        ));
    }
    Ok(Some(match personality.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => PER_LINUX32,
    }))
}

fn io_priority(process: &Process) -> Result<Option<(u16, u16)>, SpecError> {
    let Some(own) = process.io_priority() else {
        return Ok(None);
    };
    let class = match own.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    match u16::try_from(own.priority()) {
        Ok(priority @ 0..8) => Ok(Some((class, priority))),
        _ => Err(SpecError::new(
            "process.ioPriority.priority",
            "is not 0 to 7",
        )),
    }
}

fn scheduler(process: &Process) -> Result<Option<SchedulerAttributes>, SpecError> {
    let Some(own) = process.scheduler() else {
        return Ok(None);
    };
    let policy = match own.policy() {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    };
    let flag = |flag: &LinuxSchedulerFlag| match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    };
    let priority = u32::try_from(own.priority().unwrap_or(0))
        .map_err(|_| SpecError::new("process.scheduler.priority", "is below 0"))?;
    let size = u32::try_from(size_of::<SchedulerAttributes>()).expect("a small struct");
    Ok(Some(SchedulerAttributes {
        size,
        policy,
        flags: own.flags().iter().flatten().map(flag).sum(),
        nice: own.nice().unwrap_or(0),
        priority,
        runtime: own.runtime().unwrap_or(0),
        deadline: own.deadline().unwrap_or(0),
        period: own.period().unwrap_or(0),
    }))
}

fn console_size(process: &Process) -> Option<(u16, u16)> {
    let size = process.console_size()?;
    let short = |number: u64| u16::try_from(number).unwrap_or(u16::MAX);
    Some((short(size.height()), short(size.width())))
}
