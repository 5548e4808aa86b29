//! Backend messages as they arrive, in pieces of any size: framing never panics and gives the same frames however the bytes were
//! cut, and an error's fields are kept in bounds.

#![no_main]

use bytes::BytesMut;
use headwater::session::{Frame, ServerError};
use libfuzzer_sys::fuzz_target;

const BYTES_MAX: usize = 4096;

/// The frames of what arrived, and whether it ended in a length that is none.
fn frames(pieces: impl Iterator<Item = Vec<u8>>) -> (Vec<(u8, Vec<u8>)>, bool) {
    let (mut incoming, mut frames) = (BytesMut::new(), Vec::new());
    for piece in pieces {
        incoming.extend_from_slice(&piece);
        loop {
            match Frame::take(&mut incoming, BYTES_MAX) {
                Ok(Some(frame)) => frames.push((frame.tag, frame.body.to_vec())),
                Ok(None) => break,
                Err(length) => {
                    assert!(!(4..=BYTES_MAX).contains(&length));
                    return (frames, true);
                }
            }
        }
        // Nothing waits but one frame that is not whole.
        assert!(incoming.len() <= BYTES_MAX);
    }
    (frames, false)
}

fuzz_target!(|data: &[u8]| {
    let Some((size, data)) = data.split_first() else { return };
    let (at_once, _) = frames(data.chunks(1).map(<[u8]>::to_vec));
    let (in_pieces, _) = frames(data.chunks(usize::from(*size) + 1).map(<[u8]>::to_vec));
    assert_eq!(at_once, in_pieces);
    for (tag, body) in at_once {
        if tag == b'E' {
            let error = ServerError::read(&body);
            assert!(error.to_string().len() < 16 << 10);
        }
    }
});
