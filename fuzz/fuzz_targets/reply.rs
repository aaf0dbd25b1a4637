#![no_main]
libfuzzer_sys::fuzz_target!(|octets: &[u8]| mailrace_fuzz::targets::reply::run(octets));
