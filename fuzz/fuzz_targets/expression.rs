//! Expressions of the source's catalog: deciding on them never panics, and nothing with a semicolon outside of a literal is
//! ever accepted.

#![no_main]

use headwater::plan::expression::{Expressions, Purpose};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let expressions = Expressions::new(["lower".to_owned(), "length".to_owned()]);
    if expressions.accepts(text, Purpose::Default) {
        assert!(!text.contains(';') || text.contains('\'') || text.contains('"'), "{text}");
        assert!(!text.contains("--") || text.contains('\'') || text.contains('"'), "{text}");
    }
});
