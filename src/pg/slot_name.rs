//! The name of a replication slot.
//!
//! Comes in as text from the configuration; goes into replication commands and the bookkeeping. PostgreSQL allows
//! lower-case letters, digits and underscore, at most 63 bytes (`ReplicationSlotValidateName` in
//! `src/backend/replication/slot.c`, 14 to 18), so a slot's name never needs quoting.

use std::fmt;
use std::str::FromStr;

/// A valid replication slot name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SlotName(String);

/// The text cannot name a replication slot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" cannot name a replication slot: use 1 to 63 lower-case letters, digits and underscores")]
pub struct SlotNameError(String);

impl SlotName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SlotName {
    type Err = SlotNameError;

    fn from_str(text: &str) -> Result<SlotName, SlotNameError> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        if (1..=63).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(SlotName(text.to_owned()))
        } else {
            Err(SlotNameError(text.chars().take(80).collect()))
        }
    }
}

impl fmt::Display for SlotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_postgresql_takes_are_slot_names() {
        assert!("headwater_2".parse::<SlotName>().is_ok());
        assert!("a".repeat(63).parse::<SlotName>().is_ok());
        for bad in ["", "Headwater", "head water", "a-b", "ä", &"a".repeat(64)] {
            assert!(bad.parse::<SlotName>().is_err(), "{bad:?}");
        }
    }
}
