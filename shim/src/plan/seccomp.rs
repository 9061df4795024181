//! Compiles a seccomp profile to the program that the kernel runs at each system call.
//!
//! A program for each architecture: a binary search over the numbers of calls, so that none costs more than
//! ten steps, and at its leaves the action, or comparisons of the call's arguments.
//!
//! Source: OCI runtime spec 1.2, config-linux, "seccomp"; seccomp(2); linux/bpf_common.h, linux/audit.h.

use std::collections::BTreeMap;

use nix::libc;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};
use serde::{Deserialize, Serialize};

use super::SpecError;

const FIELD: &str = "linux.seccomp";
/// The kernel's own bound, `BPF_MAXINSNS`.
const MAX_INSTRUCTIONS: usize = 4096;
const KILL_PROCESS: u32 = 0x8000_0000;
const ERRNO: u32 = 0x0005_0000;
/// The bit that the x32 ABI sets in the numbers of its calls.
const X32: u32 = 0x4000_0000;

/// A filter, ready to be installed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SeccompPlan {
    /// `SECCOMP_FILTER_FLAG_*`.
    pub(crate) flags: u64,
    /// Code, jumps where true and false, operand.
    pub(crate) program: Vec<(u16, u8, u8, u32)>,
}

/// Compiles a profile.
pub(crate) fn seccomp(profile: &LinuxSeccomp) -> Result<SeccompPlan, SpecError> {
    if profile.listener_path().is_some() {
        let reason = "system calls cannot be handed to a listener";
        return Err(SpecError::new("linux.seccomp.listenerPath", reason));
    }
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut program = vec![load(4)];
    for tables in architectures(profile) {
        let mut block = vec![load(0)];
        block.extend(tree(&segments(profile, default, &tables)?));
        let size = u32::try_from(block.len()).map_err(|_| too_large())?;
        program.push(jump(libc::BPF_JEQ, tables.audit, 1, 0));
        program.push((code(libc::BPF_JMP | libc::BPF_JA), 0, 0, size));
        program.append(&mut block);
    }
    program.push(answer(KILL_PROCESS));
    if program.len() > MAX_INSTRUCTIONS {
        return Err(too_large());
    }
    Ok(SeccompPlan {
        flags: flags(profile)?,
        program,
    })
}

impl SeccompPlan {
    /// As the kernel takes it.
    pub(crate) fn filter(&self) -> Vec<libc::sock_filter> {
        let instruction = |&(code, jt, jf, k): &_| libc::sock_filter { code, jt, jf, k };
        self.program.iter().map(instruction).collect()
    }
}

type Instruction = (u16, u8, u8, u32);

fn too_large() -> SpecError {
    SpecError::new(FIELD, "the profile is too large for the kernel")
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, SpecError> {
    if action == LinuxSeccompAction::ScmpActNotify {
        return Err(SpecError::new(FIELD, "SCMP_ACT_NOTIFY is not supported"));
    }
    if errno.is_some_and(|errno| errno > 4095) {
        return Err(SpecError::new(FIELD, "errnoRet is above 4095"));
    }
    Ok(action.as_u32(errno))
}

fn flags(profile: &LinuxSeccomp) -> Result<u64, SpecError> {
    let mut flags = 0;
    for flag in profile.flags().iter().flatten() {
        flags |= match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => libc::SECCOMP_FILTER_FLAG_TSYNC,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => {
                libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW
            }
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                let reason = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV goes with a listener";
                return Err(SpecError::new("linux.seccomp.flags", reason));
            }
        };
    }
    Ok(flags)
}

/// How one architecture numbers its calls.
struct Tables {
    /// `AUDIT_ARCH_*`.
    audit: u32,
    number: fn(&str) -> Option<u32>,
    /// x86-64: whether calls of the x32 ABI are judged too; else they end the process.
    x32: Option<bool>,
}

/// Those of the profile that this machine can run, its own first.
fn architectures(profile: &LinuxSeccomp) -> Vec<Tables> {
    let listed: Vec<_> = profile.architectures().iter().flatten().copied().collect();
    #[cfg(target_arch = "x86_64")]
    let all = [
        (
            true,
            Tables {
                audit: 0xc000_003e,
                number: |name| {
                    name.parse::<syscalls::x86_64::Sysno>()
                        .ok()
                        .map(|n| n as u32)
                },
                x32: Some(listed.contains(&Arch::ScmpArchX32)),
            },
        ),
        (
            listed.contains(&Arch::ScmpArchX86),
            Tables {
                audit: 0x4000_0003,
                number: |name| name.parse::<syscalls::x86::Sysno>().ok().map(|n| n as u32),
                x32: None,
            },
        ),
    ];
    #[cfg(target_arch = "aarch64")]
    let all = [
        (
            true,
            Tables {
                audit: 0xc000_00b7,
                number: |name| {
                    name.parse::<syscalls::aarch64::Sysno>()
                        .ok()
                        .map(|n| n as u32)
                },
                x32: None,
            },
        ),
        (
            listed.contains(&Arch::ScmpArchArm),
            Tables {
                audit: 0x4000_0028,
                number: |name| name.parse::<syscalls::arm::Sysno>().ok().map(|n| n as u32),
                x32: None,
            },
        ),
    ];
    let wanted = all.into_iter().filter(|(is_listed, _)| *is_listed);
    wanted.map(|(_, tables)| tables).collect()
}

/// What happens to a range of calls, from its first number to that of the next segment.
#[derive(Debug, Clone, PartialEq)]
struct Segment {
    first: u32,
    decision: Vec<Rule>,
    /// Where no rule holds.
    otherwise: u32,
}

/// An action that holds where all comparisons do.
#[derive(Debug, Clone, PartialEq)]
struct Rule {
    comparisons: Vec<LinuxSeccompArg>,
    action: u32,
}

/// All numbers of calls, cut into segments.
fn segments(
    profile: &LinuxSeccomp,
    default: u32,
    tables: &Tables,
) -> Result<Vec<Segment>, SpecError> {
    let mut calls: BTreeMap<u32, Vec<Rule>> = BTreeMap::new();
    for syscall in profile.syscalls().iter().flatten() {
        let rules = rules(syscall)?;
        // A name that this architecture does not have cannot be called.
        for number in syscall
            .names()
            .iter()
            .filter_map(|name| (tables.number)(name))
        {
            calls
                .entry(number)
                .or_default()
                .extend(rules.iter().cloned());
        }
    }
    // A program that tries a newer call expects to be told that there is none, and then does without.
    let newer = match default & 0xffff_0000 {
        ERRNO | KILL_PROCESS | 0 => ERRNO | libc::ENOSYS.cast_unsigned(),
        _ => default,
    };
    let known = calls.keys().next_back().map_or(0, |last| last + 1);
    let own = cut(&calls, default, (0, known, newer));
    let Some(is_judged) = tables.x32 else {
        return Ok(own);
    };
    let mut all: Vec<_> = own
        .iter()
        .filter(|segment| segment.first < X32)
        .cloned()
        .collect();
    if is_judged {
        all.extend(own.into_iter().map(|segment| Segment {
            first: segment.first | X32,
            ..segment
        }));
    } else {
        all.push(Segment {
            first: X32,
            decision: Vec::new(),
            otherwise: KILL_PROCESS,
        });
    }
    Ok(all)
}

fn cut(
    calls: &BTreeMap<u32, Vec<Rule>>,
    default: u32,
    (mut next, known, newer): (u32, u32, u32),
) -> Vec<Segment> {
    let plain = |first, otherwise| Segment {
        first,
        decision: Vec::new(),
        otherwise,
    };
    let mut all: Vec<Segment> = Vec::new();
    let mut push = |segment: Segment| {
        let is_same = |last: &Segment| {
            last.decision == segment.decision && last.otherwise == segment.otherwise
        };
        if !all.last().is_some_and(is_same) {
            all.push(segment);
        }
    };
    for (&number, rules) in calls {
        if next < number {
            push(plain(next, default));
        }
        let always = rules.iter().position(|rule| rule.comparisons.is_empty());
        push(Segment {
            first: number,
            decision: rules[..always.unwrap_or(rules.len())].to_vec(),
            otherwise: always.map_or(default, |at| rules[at].action),
        });
        next = number + 1;
    }
    push(plain(known, newer));
    all
}

fn rules(syscall: &LinuxSyscall) -> Result<Vec<Rule>, SpecError> {
    let action = action(syscall.action(), syscall.errno_ret())?;
    let comparisons = syscall.args().clone().unwrap_or_default();
    if let Some(wrong) = comparisons.iter().find(|arg| arg.index() > 5) {
        let reason = format!("there is no argument {}", wrong.index());
        return Err(SpecError::new(FIELD, reason));
    }
    // Comparisons of one argument are alternatives, those of different ones hold together.
    let is_repeated = |arg: &LinuxSeccompArg| {
        comparisons
            .iter()
            .filter(|other| other.index() == arg.index())
            .count()
            > 1
    };
    if comparisons.iter().any(is_repeated) {
        let alone = |arg| Rule {
            comparisons: vec![arg],
            action,
        };
        return Ok(comparisons.into_iter().map(alone).collect());
    }
    Ok(vec![Rule {
        comparisons,
        action,
    }])
}

/// Searches for the segment of the number that is loaded. Never falls through.
fn tree(segments: &[Segment]) -> Vec<Instruction> {
    if let [segment] = segments {
        return leaf(segment);
    }
    let (low, high) = segments.split_at(segments.len() / 2);
    let below = tree(low);
    let size = u32::try_from(below.len()).unwrap_or(u32::MAX);
    let mut program = vec![
        jump(libc::BPF_JGE, high[0].first, 0, 1),
        (code(libc::BPF_JMP | libc::BPF_JA), 0, 0, size),
    ];
    program.extend(below);
    program.extend(tree(high));
    program
}

fn leaf(segment: &Segment) -> Vec<Instruction> {
    let mut program: Vec<_> = segment.decision.iter().flat_map(rule).collect();
    program.push(answer(segment.otherwise));
    program
}

/// Where a jump goes.
#[derive(Clone, Copy, PartialEq)]
enum To {
    Next,
    /// The comparison holds: to the one behind it.
    Holds,
    /// It does not: behind the rule.
    Fails,
}

fn rule(rule: &Rule) -> Vec<Instruction> {
    let mut steps: Vec<(u32, u32, To, To)> = Vec::new();
    let mut ends = Vec::new();
    for arg in &rule.comparisons {
        steps.extend(comparison(arg));
        ends.resize(steps.len(), steps.len());
    }
    let behind = steps.len() + 1;
    let mut program: Vec<_> = steps
        .iter()
        .enumerate()
        .map(|(at, &(operation, k, yes, no))| {
            let offset = |to| match to {
                To::Next => 0,
                To::Holds => ends[at] - at - 1,
                To::Fails => behind - at - 1,
            };
            let short =
                |to| u8::try_from(offset(to)).expect("six comparisons are 50 steps at most");
            (code(operation), short(yes), short(no), k)
        })
        .collect();
    program.push(answer(rule.action));
    program
}

/// Compares an argument of 64 bits in halves of 32, the kernel's registers.
fn comparison(arg: &LinuxSeccompArg) -> Vec<(u32, u32, To, To)> {
    use To::{Fails, Holds, Next};
    let at = 16 + 8 * u32::try_from(arg.index()).expect("at most 5");
    let (low_at, high_at) = if cfg!(target_endian = "little") {
        (at, at + 4)
    } else {
        (at + 4, at)
    };
    let halves = |value: u64| ((value >> 32) as u32, (value & 0xffff_ffff) as u32);
    let load = |at| (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at, Next, Next);
    let mask = |bits| {
        (
            libc::BPF_ALU | libc::BPF_AND | libc::BPF_K,
            bits,
            Next,
            Next,
        )
    };
    let when = |kind, k, yes, no| (libc::BPF_JMP | kind | libc::BPF_K, k, yes, no);
    let (high, low) = halves(arg.value());
    let above = |kind, yes, no| {
        vec![
            load(high_at),
            when(libc::BPF_JGT, high, yes, Next),
            when(libc::BPF_JEQ, high, Next, no),
            load(low_at),
            when(kind, low, yes, no),
        ]
    };
    match arg.op() {
        LinuxSeccompOperator::ScmpCmpEq => vec![
            load(high_at),
            when(libc::BPF_JEQ, high, Next, Fails),
            load(low_at),
            when(libc::BPF_JEQ, low, Holds, Fails),
        ],
        LinuxSeccompOperator::ScmpCmpNe => vec![
            load(high_at),
            when(libc::BPF_JEQ, high, Next, Holds),
            load(low_at),
            when(libc::BPF_JEQ, low, Fails, Holds),
        ],
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            let (want_high, want_low) = halves(arg.value_two().unwrap_or(0));
            vec![
                load(high_at),
                mask(high),
                when(libc::BPF_JEQ, want_high, Next, Fails),
                load(low_at),
                mask(low),
                when(libc::BPF_JEQ, want_low, Holds, Fails),
            ]
        }
        LinuxSeccompOperator::ScmpCmpGe => above(libc::BPF_JGE, Holds, Fails),
        LinuxSeccompOperator::ScmpCmpGt => above(libc::BPF_JGT, Holds, Fails),
        LinuxSeccompOperator::ScmpCmpLt => above(libc::BPF_JGE, Fails, Holds),
        LinuxSeccompOperator::ScmpCmpLe => above(libc::BPF_JGT, Fails, Holds),
    }
}

fn code(code: u32) -> u16 {
    u16::try_from(code).expect("codes of instructions have 16 bits")
}

/// Loads 32 bits of `struct seccomp_data`: the number of the call is at 0, the architecture at 4.
fn load(at: u32) -> Instruction {
    (code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS), 0, 0, at)
}

fn jump(kind: u32, k: u32, yes: u8, no: u8) -> Instruction {
    (code(libc::BPF_JMP | kind | libc::BPF_K), yes, no, k)
}

fn answer(action: u32) -> Instruction {
    (code(libc::BPF_RET | libc::BPF_K), 0, 0, action)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ALLOW: u32 = 0x7fff_0000;
    const EPERM: u32 = ERRNO | 1;
    const X86_64: u32 = 0xc000_003e;
    const I386: u32 = 0x4000_0003;

    /// Runs a filter as the kernel does.
    fn run(plan: &SeccompPlan, arch: u32, number: u32, args: [u64; 6]) -> u32 {
        let mut data = Vec::new();
        data.extend(number.to_ne_bytes());
        data.extend(arch.to_ne_bytes());
        data.extend(0u64.to_ne_bytes());
        data.extend(args.iter().flat_map(|arg| arg.to_ne_bytes()));
        let (mut at, mut a) = (0, 0u32);
        loop {
            let (code, yes, no, k) = plan.program[at];
            let code = u32::from(code);
            at += 1;
            match code & 0x07 {
                libc::BPF_LD => {
                    let at = k as usize;
                    a = u32::from_ne_bytes(data[at..at + 4].try_into().unwrap());
                }
                libc::BPF_ALU => a &= k,
                libc::BPF_RET => return k,
                libc::BPF_JMP => {
                    let holds = match code & 0xf0 {
                        libc::BPF_JA => {
                            at += k as usize;
                            continue;
                        }
                        libc::BPF_JEQ => a == k,
                        libc::BPF_JGT => a > k,
                        libc::BPF_JGE => a >= k,
                        other => panic!("jump {other}"),
                    };
                    at += usize::from(if holds { yes } else { no });
                }
                other => panic!("class {other}"),
            }
        }
    }

    fn plan(profile: serde_json::Value) -> SeccompPlan {
        seccomp(&serde_json::from_value(profile).unwrap()).unwrap()
    }

    #[test]
    fn calls_of_a_list_are_allowed() {
        let plan = plan(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "syscalls": [
                { "names": ["read", "write", "exit_group", "no_such_call"], "action": "SCMP_ACT_ALLOW" },
                { "names": ["mount"], "action": "SCMP_ACT_KILL_PROCESS" },
                { "names": ["umount2"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 },
            ],
        }));
        let check = |arch, number, expected: u32| {
            assert_eq!(
                run(&plan, arch, number, [0; 6]),
                expected,
                "{arch:x} {number}"
            );
        };
        for (number, expected) in [
            (0, ALLOW),
            (1, ALLOW),
            (2, EPERM),
            (231, ALLOW),
            (230, EPERM),
            (165, KILL_PROCESS),
            (166, ERRNO | 38),
            (500, ERRNO | 38),
            (X32 | 1, KILL_PROCESS),
        ] {
            check(X86_64, number, expected);
        }
        check(I386, 3, ALLOW);
        check(I386, 0, EPERM);
        check(0xc000_00b7, 0, KILL_PROCESS);
    }

    #[test]
    fn arguments_are_compared_with_all_their_bits() {
        let wide = 0x1_0000_0005u64;
        let check = |op: &str, value: u64, two: u64, cases: &[(u64, bool)]| {
            let plan = plan(json!({
                "defaultAction": "SCMP_ACT_ERRNO",
                "syscalls": [{ "names": ["write"], "action": "SCMP_ACT_ALLOW",
                    "args": [{ "index": 2, "value": value, "valueTwo": two, "op": op }] }],
            }));
            for &(given, holds) in cases {
                let expected = if holds { ALLOW } else { EPERM };
                let found = run(&plan, X86_64, 1, [9, 9, given, 9, 9, 9]);
                assert_eq!(found, expected, "{given:x} {op} {value:x}");
            }
        };
        let (below, above, most) = (wide - 1, wide + 1, u64::MAX);
        let ordered = |op, cases: [bool; 4]| {
            let given = [below, wide, above, most];
            let cases: Vec<_> = given.into_iter().zip(cases).collect();
            check(op, wide, 0, &cases);
            // Its low half alone is far below.
            check(op, wide, 0, &[(u64::MAX >> 32, cases[0].1)]);
        };
        ordered("SCMP_CMP_EQ", [false, true, false, false]);
        ordered("SCMP_CMP_NE", [true, false, true, true]);
        ordered("SCMP_CMP_LT", [true, false, false, false]);
        ordered("SCMP_CMP_LE", [true, true, false, false]);
        ordered("SCMP_CMP_GT", [false, false, true, true]);
        ordered("SCMP_CMP_GE", [false, true, true, true]);
        let masked = [(0x2f, true), (0x3f, false), (0x1_0000_0021, true)];
        check("SCMP_CMP_MASKED_EQ", 0xf0, 0x20, &masked);
    }

    #[test]
    fn comparisons_of_one_argument_are_alternatives() {
        let plan = plan(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [{ "names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [
                { "index": 0, "value": 0, "op": "SCMP_CMP_EQ" },
                { "index": 0, "value": 8, "op": "SCMP_CMP_EQ" },
            ] }],
        }));
        for (value, expected) in [(0, ALLOW), (8, ALLOW), (1, EPERM)] {
            assert_eq!(run(&plan, X86_64, 135, [value, 0, 0, 0, 0, 0]), expected);
        }
    }

    #[test]
    fn what_needs_a_listener_is_refused() {
        let profile = json!({ "defaultAction": "SCMP_ACT_NOTIFY" });
        let refused = seccomp(&serde_json::from_value(profile).unwrap()).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "linux.seccomp: SCMP_ACT_NOTIFY is not supported"
        );
    }
}
