//! The program that containerd executes.

use std::process::ExitCode;

fn main() -> ExitCode {
    shim::bootstrap::main()
}
