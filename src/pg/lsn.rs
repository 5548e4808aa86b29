//! A position in the write-ahead log.
//!
//! Comes in as the eight bytes of a protocol message or as text (`16/B374D848`); goes out the same two ways. A plain
//! integer alias was rejected: commit_lsn, end_lsn and a byte count would mix without a sound.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A write-ahead log position: a byte offset into a server's WAL, printed as PostgreSQL prints `pg_lsn`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(u64);

impl Lsn {
    /// `0/0`, PostgreSQL's InvalidXLogRecPtr: no position at all, lower than every real one.
    pub const INVALID: Lsn = Lsn(0);

    /// The position `offset` bytes into the WAL.
    pub const fn new(offset: u64) -> Lsn {
        Lsn(offset)
    }

    /// The byte offset into the WAL.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Bytes of WAL from `earlier` up to here; 0 when `earlier` is not behind.
    pub const fn bytes_since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The position `bytes` further on.
    pub const fn advanced_by(self, bytes: u64) -> Lsn {
        Lsn(self.0.saturating_add(bytes))
    }

    /// Where the page of `page_bytes` that holds this position begins.
    pub const fn page_start(self, page_bytes: u64) -> Lsn {
        Lsn(self.0 - self.0 % page_bytes)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a write-ahead log position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a write-ahead log position (write it as PostgreSQL does: 16/B374D848)")]
pub struct ParseLsnError(String);

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Lsn, ParseLsnError> {
        let half = |digits: &str| {
            let hex = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
            hex.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Lsn(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| ParseLsnError(text.chars().take(40).collect()))
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Lsn, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_postgresqls_own_in_both_directions() {
        for (text, offset) in
            [("0/0", 0), ("16/B374D848", 0x16_B374_D848), ("FFFFFFFF/FFFFFFFF", u64::MAX), ("1/A", 0x1_0000_000A)]
        {
            assert_eq!(text.parse::<Lsn>(), Ok(Lsn::new(offset)));
            assert_eq!(Lsn::new(offset).to_string(), text);
        }
        assert_eq!("1/0000000A".parse::<Lsn>(), Ok(Lsn::new(0x1_0000_000A)), "as PostgreSQL 19 pads it");
    }

    #[test]
    fn what_is_no_position_is_refused() {
        for text in ["", "/", "1", "1/", "/1", "1/2/3", "+1/2", "1/123456789", "g/0", " 1/2", "-1/0"] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_page_starts_at_its_first_byte() {
        assert_eq!(Lsn::new(8192 * 3 + 24).page_start(8192), Lsn::new(8192 * 3));
        assert_eq!(Lsn::new(8192 * 3).page_start(8192), Lsn::new(8192 * 3));
    }
}
