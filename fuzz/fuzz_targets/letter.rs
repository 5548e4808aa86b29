//! Letters of headwater.dead_letter: whatever the bytes are, they are changes or an error, and what is accepted writes back to a
//! letter that reads the same.

#![no_main]

use headwater::transaction::{read_letter, write_letter};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(changes) = read_letter(data) else { return };
    let again = read_letter(&write_letter(&changes));
    assert_eq!(again.ok(), Some(changes));
});
