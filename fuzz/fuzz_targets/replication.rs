//! CopyData payloads of both directions: reading never panics.

#![no_main]

use bytes::Bytes;
use headwater::wire::{ReplicationMessage, StandbyStatusUpdate};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let payload = Bytes::copy_from_slice(data);
    if let Ok(message) = ReplicationMessage::read(&payload) {
        let mut written = Vec::new();
        message.write(&mut written);
        assert_eq!(written, payload);
    }
    let _ = StandbyStatusUpdate::read(&payload);
});
