//! What there is instead of a C library: where the program begins, its memory, and how it ends.
#![allow(unsafe_code, reason = "it is what this file is for")]

use core::{
    ffi::{CStr, c_char},
    iter,
    panic::PanicInfo,
    ptr,
    sync::atomic::{AtomicPtr, Ordering},
};

use rlibc as _;
use rustix::fd::BorrowedFd;
use static_alloc::Bump;
use syscalls::{Sysno, syscall};

/// Bytes. Nothing is given back: it is for one spec.
pub(crate) const MEMORY: usize = 2 << 20;

#[global_allocator]
static MEMORY_OF_ALL: Bump<[u8; MEMORY]> = Bump::uninit();

/// What the kernel has put on the stack: how many arguments there are, the arguments, null, the environment, null.
///
/// Source: `arch/x86/include/asm/elf.h` and `fs/binfmt_elf.c` of Linux 6.1, `create_elf_tables`.
static STACK: AtomicPtr<*const c_char> = AtomicPtr::new(ptr::null_mut());

/// Where the kernel begins.
#[unsafe(naked)]
#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    #[cfg(target_arch = "x86_64")]
    core::arch::naked_asm!("xor ebp, ebp", "mov rdi, rsp", "call {}", sym begin);
    #[cfg(target_arch = "aarch64")]
    core::arch::naked_asm!("mov x29, xzr", "mov x30, xzr", "mov x0, sp", "bl {}", sym begin);
}

extern "C" fn begin(stack: *mut *const c_char) -> ! {
    STACK.store(stack, Ordering::Relaxed);
    crate::main()
}

/// The compiler calls it for the length of a string; rlibc has no such function.
///
/// Source: strlen(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(string: *const u8) -> usize {
    let mut length = 0;
    loop {
        let at = string.wrapping_add(length);
        // SAFETY: the caller's string ends with a zero byte, which is the last that is read. Were it not volatile,
        // the compiler would see what the loop does, and have it call this function.
        if unsafe { at.read_volatile() } == 0 {
            return length;
        }
        length += 1;
    }
}

/// A failed allocation ends here too.
#[panic_handler]
fn panic(_: &PanicInfo) -> ! {
    crate::go_on()
}

/// The program's name and its arguments.
pub(crate) fn arguments() -> impl Iterator<Item = &'static CStr> {
    let mut next = words();
    iter::from_fn(move || {
        // SAFETY: `next` is within the list of arguments, which null ends; after null it is not read again, since it
        // is not moved beyond.
        let argument = unsafe { *next };
        if argument.is_null() {
            return None;
        }
        // SAFETY: what follows an argument of the list is in it, or is the null that ends it.
        next = unsafe { next.add(1) };
        // SAFETY: the kernel ends each argument with a zero byte, and nothing moves or changes it while this
        // process lives.
        Some(unsafe { CStr::from_ptr(argument) })
    })
}

/// The list of arguments.
fn words() -> *const *const c_char {
    let stack = STACK.load(Ordering::Relaxed).cast_const();
    // SAFETY: the number of arguments stands first on the stack, and the list follows it.
    unsafe { stack.add(1) }
}

/// Executes another program with this one's arguments and environment. It comes back only if that fails.
///
/// Source: execve(2).
pub(crate) fn execute(program: &CStr) {
    let words = words();
    let environment = words.wrapping_add(arguments().count() + 1);
    // SAFETY: execve reads a string and two lists, which null ends as the kernel made them; where it succeeds,
    // nothing of this program is left that could be wrong.
    let _ = unsafe { syscall!(Sysno::execve, program.as_ptr(), words, environment) };
}

/// Ends this process.
///
/// Source: exit_group(2).
pub(crate) fn exit(status: u8) -> ! {
    loop {
        // SAFETY: exit_group takes an integer and does not come back.
        let _ = unsafe { syscall!(Sysno::exit_group, status) };
    }
}

pub(crate) fn stdin() -> BorrowedFd<'static> {
    // SAFETY: containerd gives it, and nothing here closes it.
    unsafe { rustix::stdio::stdin() }
}

pub(crate) fn stdout() -> BorrowedFd<'static> {
    // SAFETY: containerd gives it, and nothing here closes it.
    unsafe { rustix::stdio::stdout() }
}

pub(crate) fn stderr() -> BorrowedFd<'static> {
    // SAFETY: containerd gives it, and nothing here closes it.
    unsafe { rustix::stdio::stderr() }
}
