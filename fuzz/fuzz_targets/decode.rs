//! pgoutput's messages, several in a row: decoding never panics, and what is accepted writes back to the same bytes.

#![no_main]

use bytes::Bytes;
use headwater::pg::{Lsn, QualifiedName, RelationId};
use headwater::transaction::{Assembler, TableSet};
use headwater::wire::{Decoder, write_message};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // The corpus's form: each message behind its length.
    let mut rest = Bytes::copy_from_slice(data);
    let mut decoder = Decoder::new(false);
    let tables = TableSet::new([(RelationId(16384), QualifiedName::new("public", "t"))]);
    let mut assembler = Assembler::new(tables, 4096, "headwater", Lsn::INVALID).with_streams();
    while rest.len() > 4 {
        let length = rest.split_to(4);
        let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize;
        let message = rest.split_to(length.min(rest.len()));
        let Ok(read) = decoder.read(&message) else { return };
        let mut written = Vec::new();
        write_message(&read, false, &mut written);
        assert_eq!(written.len(), message.len(), "{read:?}");
        if assembler.message(read).is_err() {
            return;
        }
        while assembler.poll().is_some() {}
    }
});
