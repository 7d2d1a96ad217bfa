#![no_main]

#[path = "../checks/carriers.rs"]
mod carriers;

libfuzzer_sys::fuzz_target!(|input: &[u8]| carriers::check(input));
