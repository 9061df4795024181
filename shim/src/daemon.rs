//! The daemon's program.

use std::process::ExitCode;

fn main() -> ExitCode {
    shim::serve::main()
}
