//! Any bytes as `config.json`: they become a plan or an error, and never a panic.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| shim::fuzz::spec(bytes));
