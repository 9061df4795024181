//! The HTTP server of the rust runtime, with the function in it: the sandbox's main process.

fn main() {
    runtime::serve(runtime::Settings::from_environment(), handler::main);
}
