//! What the program that containerd executes leaves to another.

use std::process::ExitCode;

fn main() -> ExitCode {
    shim::bootstrap::main()
}
