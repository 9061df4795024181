//! A policy as a program of the kernel, of the type `BPF_PROG_TYPE_CGROUP_DEVICE`.
//!
//! The kernel calls it with a pointer in `R1` to `{ u32 access << 16 | type, u32 major, u32 minor }`. It answers 1
//! for yes and 0 for no. Each exception of the policy becomes a block that either answers or jumps to the next.

use super::{Access, Kind, Policy};

/// `struct bpf_insn`, with both registers in one byte as on little and big endian machines.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cgroup) struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// `BPF_LDX | BPF_W | BPF_MEM`: target = *(u32 *)(source + offset).
const LOAD: u8 = 0x61;
/// `BPF_ALU | BPF_MOV | BPF_X`: the lower 32 bits of source.
const MOVE: u8 = 0xbc;
/// `BPF_ALU | BPF_MOV | BPF_K`.
const SET: u8 = 0xb4;
/// `BPF_ALU | BPF_AND | BPF_K`.
const AND: u8 = 0x54;
/// `BPF_ALU | BPF_RSH | BPF_K`.
const SHIFT_RIGHT: u8 = 0x74;
/// `BPF_JMP | BPF_JNE | BPF_X`: all 64 bits, of which the upper 32 are 0 here.
const JUMP_UNEQUAL: u8 = 0x5d;
/// `BPF_JMP | BPF_JEQ | BPF_X`.
const JUMP_EQUAL: u8 = 0x1d;
/// `BPF_JMP | BPF_EXIT`.
const EXIT: u8 = 0x95;

/// The answer.
const R0: u8 = 0;
/// The argument; free once it is read.
const R1: u8 = 1;
const TYPE: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

impl Instruction {
    fn new(code: u8, target: u8, source: u8, offset: i16, immediate: i32) -> Self {
        let registers = if cfg!(target_endian = "little") {
            source << 4 | target
        } else {
            target << 4 | source
        };
        Self {
            code,
            registers,
            offset,
            immediate,
        }
    }
}

/// Compiles a policy.
///
/// Source: `struct bpf_cgroup_dev_ctx` in `include/uapi/linux/bpf.h`; RFC 9669 for the instructions.
pub(in crate::cgroup) fn compile(policy: &Policy) -> Vec<Instruction> {
    let mut program = vec![
        Instruction::new(LOAD, TYPE, R1, 0, 0),
        Instruction::new(MOVE, ACCESS, TYPE, 0, 0),
        Instruction::new(AND, TYPE, 0, 0, 0xffff),
        Instruction::new(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        Instruction::new(LOAD, MAJOR, R1, 4, 0),
        Instruction::new(LOAD, MINOR, R1, 8, 0),
    ];
    for (device, access) in &policy.exceptions {
        let mut tests = vec![Test::Equal(
            TYPE,
            match device.kind {
                Kind::Block => 1,
                Kind::Char => 2,
            },
        )];
        // An exception to "no" has to grant all that is asked for, one to "yes" denies if it has any of it.
        if *access != Access::ALL {
            let bits = i32::from(access.bits());
            tests.push(if policy.is_open {
                Test::AnyAccess(bits)
            } else {
                Test::NoAccessBut(bits)
            });
        }
        tests.extend(device.major.map(|major| Test::Equal(MAJOR, major)));
        tests.extend(device.minor.map(|minor| Test::Equal(MINOR, minor)));
        append_block(&mut program, &tests, !policy.is_open);
    }
    append_answer(&mut program, policy.is_open);
    program
}

/// A condition of a block.
#[derive(Debug, Clone, Copy)]
enum Test {
    /// A register has this value.
    Equal(u8, u32),
    /// What is asked for has none but these bits.
    NoAccessBut(i32),
    /// What is asked for has one of these bits.
    AnyAccess(i32),
}

/// Appends "if all tests hold, answer".
fn append_block(program: &mut Vec<Instruction>, tests: &[Test], answer: bool) {
    let mut jumps = Vec::with_capacity(tests.len());
    for test in tests {
        let (code, left, right) = match *test {
            Test::Equal(register, value) => {
                program.push(Instruction::new(SET, R0, 0, 0, value as i32));
                (JUMP_UNEQUAL, register, R0)
            }
            Test::NoAccessBut(bits) => {
                program.push(Instruction::new(MOVE, R1, ACCESS, 0, 0));
                program.push(Instruction::new(AND, R1, 0, 0, bits));
                (JUMP_UNEQUAL, R1, ACCESS)
            }
            Test::AnyAccess(bits) => {
                program.push(Instruction::new(MOVE, R1, ACCESS, 0, 0));
                program.push(Instruction::new(AND, R1, 0, 0, bits));
                program.push(Instruction::new(SET, R0, 0, 0, 0));
                (JUMP_EQUAL, R1, R0)
            }
        };
        jumps.push(program.len());
        program.push(Instruction::new(code, left, right, 0, 0));
    }
    append_answer(program, answer);
    let end = program.len();
    for at in jumps {
        program[at].offset = (end - at - 1) as i16;
    }
}

fn append_answer(program: &mut Vec<Instruction>, answer: bool) {
    program.push(Instruction::new(SET, R0, 0, 0, i32::from(answer)));
    program.push(Instruction::new(EXIT, 0, 0, 0, 0));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::device::Device;

    /// Runs a program as the kernel would; the registers have 64 bits.
    fn run(program: &[Instruction], context: [u32; 3]) -> bool {
        let mut registers = [0u64; 6];
        let mut at = 0;
        loop {
            let instruction = program[at];
            let (target, source) = if cfg!(target_endian = "little") {
                (instruction.registers & 15, instruction.registers >> 4)
            } else {
                (instruction.registers >> 4, instruction.registers & 15)
            };
            let (target, source) = (usize::from(target), usize::from(source));
            let immediate = instruction.immediate as u32;
            let low = registers[target] as u32;
            at += 1;
            match instruction.code {
                LOAD => registers[target] = context[instruction.offset as usize / 4].into(),
                MOVE => registers[target] = u64::from(registers[source] as u32),
                SET => registers[target] = immediate.into(),
                AND => registers[target] = (low & immediate).into(),
                SHIFT_RIGHT => registers[target] = (low >> immediate).into(),
                JUMP_UNEQUAL | JUMP_EQUAL => {
                    let is_equal = registers[target] == registers[source];
                    if is_equal == (instruction.code == JUMP_EQUAL) {
                        at += instruction.offset as usize;
                    }
                }
                EXIT => return registers[0] == 1,
                code => panic!("unknown instruction {code:#x}"),
            }
        }
    }

    /// Asks a policy, as in `check("closed, c 1:3 rw", "c 1:3 w", true)`.
    #[track_caller]
    fn check(policy: &str, question: &str, expected: bool) {
        let mut parts = policy.split(", ");
        let is_open = parts.next() == Some("open");
        let list: String = parts.map(|part| format!("{part}\n")).collect();
        let policy = Policy {
            is_open,
            ..Policy::of_list(&list).unwrap()
        };
        let asked = Policy::of_list(question).unwrap();
        let (Device { major, minor, kind }, access) = asked.exceptions.first_key_value().unwrap();
        let kind = match kind {
            Kind::Block => 1,
            Kind::Char => 2,
        };
        let context = [
            u32::from(access.bits()) << 16 | kind,
            major.unwrap(),
            minor.unwrap(),
        ];
        assert_eq!(run(&compile(&policy), context), expected, "{question}");
    }

    #[test]
    fn a_closed_policy_allows_its_exceptions_only() {
        check("closed", "c 1:3 r", false);
        check("closed, c 1:3 rw", "c 1:3 w", true);
        check("closed, c 1:3 rw", "c 1:3 rw", true);
        check("closed, c 1:3 rw", "c 1:3 m", false);
        check("closed, c 1:3 r", "c 1:3 rw", false);
        check("closed, c 1:3 rwm", "b 1:3 r", false);
        check("closed, c 1:3 rwm", "c 3:1 r", false);
        check("closed, c 136:* rwm, b *:7 r", "c 136:4000 rwm", true);
        check("closed, c 136:* rwm, b *:7 r", "b 8:7 r", true);
        check("closed, c 136:* rwm, b *:7 r", "b 8:8 r", false);
        check("closed, c 4294967295:0 r", "c 4294967295:0 r", true);
        check("closed, c 4294967295:0 r", "c 4294967294:0 r", false);
    }

    #[test]
    fn an_open_policy_denies_what_has_any_of_an_exception() {
        check("open", "b 8:0 rwm", true);
        check("open, b 8:0 w", "b 8:0 r", true);
        check("open, b 8:0 w", "b 8:0 rw", false);
        check("open, b 8:* rwm", "b 8:1 r", false);
    }
}
