#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| topiclog::fuzzing::groups(bytes));
