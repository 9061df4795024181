//! Any bytes as requests of the Task API: they are understood or refused, and never a panic.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| shim::fuzz::request(bytes));
