//! The shim's program.

use std::process::ExitCode;

fn main() -> ExitCode {
    shim::bootstrap::main()
}
