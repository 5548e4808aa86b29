//! Expressions of the source's catalog: parsing never panics, and what is printed parses to the same tree.

#![no_main]

use headwater::schema_change::expression::parse;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(tree) = parse(text) {
        let printed = tree.to_string();
        assert_eq!(parse(&printed), Some(tree), "{text} is printed as {printed}");
    }
});
