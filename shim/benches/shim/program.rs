//! The programs whose lives are measured.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use anyhow::Result;

use crate::container::Container;

/// A static program and its arguments.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Program {
    /// It has a C library, whose start is a part of its life.
    Busybox,
    /// It makes one system call: what is left of its life is the container's.
    Exit,
}

impl Program {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Busybox => "busybox true",
            Self::Exit => "one exit(2)",
        }
    }

    /// The container runs it.
    pub(crate) fn of(self, container: Container<'_>) -> Container<'_> {
        match self {
            Self::Busybox => container.args(&["/bin/busybox", "true"]),
            Self::Exit => container
                .fill(|root| write(&root.join("exit")).unwrap())
                .args(&["/exit"]),
        }
    }
}

#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = 62;
/// `mov eax, 231; xor edi, edi; syscall`: exit_group(0).
#[cfg(target_arch = "x86_64")]
const CODE: &[u8] = &[0xb8, 0xe7, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05];
#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = 183;
/// `mov x8, 94; mov x0, 0; svc 0`: exit_group(0).
#[cfg(target_arch = "aarch64")]
const CODE: &[u8] = &[0xc8, 0x0b, 0x80, 0xd2, 0, 0, 0x80, 0xd2, 0x01, 0, 0, 0xd4];

/// One segment, which is the whole file.
///
/// Source: elf(5), `Elf64_Ehdr` and `Elf64_Phdr`.
fn write(path: &Path) -> Result<()> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let length = HEADERS + CODE.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let shorts = |file: &mut Vec<u8>, all: &[u16]| {
        all.iter().for_each(|n| file.extend(n.to_le_bytes()));
    };
    // An executable; version, entry, where the segments stand, no sections, flags; sizes and counts.
    shorts(&mut file, &[2, MACHINE, 1, 0]);
    for n in [BASE + HEADERS, 64, 0] {
        file.extend(n.to_le_bytes());
    }
    shorts(&mut file, &[0, 0, 64, 56, 1, 64, 0, 0]);
    // To be loaded, to be read and executed; offset, addresses, sizes, alignment.
    shorts(&mut file, &[1, 0, 5, 0]);
    for n in [0, BASE, BASE, length, length, 0x1000] {
        file.extend(n.to_le_bytes());
    }
    file.extend(CODE);
    fs::write(path, file)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}
