//! Lengths and indexes in memory as numbers of a fixed width, and back.
//!
//! Instead of `unwrap_or(0)` and `unwrap_or(MAX)` where rows pass: a length that silently becomes another one is a row that is lost. Each
//! of these says why it cannot fail.

/// How many bytes or entries are in memory.
pub fn length_u64(length: usize) -> u64 {
    u64::try_from(length).expect("an address has at most 64 bits")
}

/// How many bytes or entries there are of what came in one message: these are at most 1 GiB long (`PQ_LARGE_MESSAGE_LIMIT`).
pub fn length_u32(length: usize) -> u32 {
    u32::try_from(length).expect("a message is shorter than 4 GiB")
}

/// A length or index of 32 bits in memory.
pub fn usize_from(number: u32) -> usize {
    usize::try_from(number).expect("an address has at least 32 bits")
}
