//! A row of a change, left in the bytes in which it arrived.
//!
//! Comes from `wire`, which has read a TupleData of pgoutput; goes to `apply_plan` and `destination`, which read its columns
//! in order and write them into a pipelined request. A [`Tuple`] is a slice of the read buffer and costs no allocation: rows are
//! many, and most columns are only passed on. The bytes are checked once, when the tuple is made; reading a checked
//! tuple cannot fail.
//!
//! Layout (protocol-logicalrep-message-formats, TupleData): per column one byte, `n` NULL, `u` unchanged TOAST value,
//! `t` text or `b` binary; the last two are followed by a length of four bytes and the value.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// One column's value in a tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Datum<'a> {
    /// NULL.
    Null,
    /// A TOASTed value that the UPDATE did not change and that was therefore not sent.
    UnchangedToast,
    /// The type's text output, in the source session's settings.
    Text(&'a [u8]),
    /// The type's binary send format.
    Binary(&'a [u8]),
}

impl<'a> Datum<'a> {
    /// The value's bytes; `None` for NULL and for an unchanged TOAST value.
    pub const fn bytes(self) -> Option<&'a [u8]> {
        match self {
            Datum::Null | Datum::UnchangedToast => None,
            Datum::Text(value) | Datum::Binary(value) => Some(value),
        }
    }
}

/// A row as it came over the wire. Cloning shares the bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Tuple {
    columns: u16,
    data: Bytes,
}

/// A tuple from outside the process, before its bytes are checked.
#[derive(Deserialize)]
#[serde(rename = "Tuple")]
struct Unchecked {
    columns: u16,
    data: Bytes,
}

/// The bytes are not a tuple of that many columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed tuple: column {column} of {columns} is cut short or of an unknown kind")]
pub struct MalformedTuple {
    /// The first column that cannot be read, counted from 1; `columns + 1` when bytes are left over.
    pub column: u32,
    /// How many columns the tuple claims to have.
    pub columns: u16,
}

impl TryFrom<Unchecked> for Tuple {
    type Error = MalformedTuple;

    fn try_from(tuple: Unchecked) -> Result<Tuple, MalformedTuple> {
        Tuple::new(tuple.columns, tuple.data)
    }
}

impl Tuple {
    /// Checks that `data` holds exactly `columns` well-formed columns.
    ///
    /// # Errors
    /// [`MalformedTuple`] names the first column that is not.
    pub fn new(columns: u16, data: Bytes) -> Result<Tuple, MalformedTuple> {
        let length = Tuple::measure(columns, &data)?;
        if length != data.len() {
            return Err(MalformedTuple { column: u32::from(columns) + 1, columns });
        }
        Ok(Tuple { columns, data })
    }

    /// How many of the leading bytes of `data` make up `columns` columns.
    ///
    /// # Errors
    /// [`MalformedTuple`] names the first column that is cut short or of an unknown kind.
    pub fn measure(columns: u16, data: &[u8]) -> Result<usize, MalformedTuple> {
        let mut rest = data;
        for column in 1..=u32::from(columns) {
            let (_, after) = split_datum(rest).ok_or(MalformedTuple { column, columns })?;
            rest = after;
        }
        Ok(data.len() - rest.len())
    }

    /// A tuple whose `data` is what [`Tuple::measure`] has just measured for `columns`.
    pub(crate) fn from_measured(columns: u16, data: Bytes) -> Tuple {
        debug_assert_eq!(Tuple::measure(columns, &data), Ok(data.len()));
        Tuple { columns, data }
    }

    /// How many columns the tuple has.
    pub fn len(&self) -> usize {
        usize::from(self.columns)
    }

    /// True for a tuple without columns (a table without columns, or an empty column list).
    pub fn is_empty(&self) -> bool {
        self.columns == 0
    }

    /// The size on the wire, in bytes.
    pub fn size_bytes(&self) -> usize {
        self.data.len()
    }

    /// The tuple's columns, in the relation's order.
    pub fn columns(&self) -> Columns<'_> {
        Columns { rest: &self.data }
    }

    /// The bytes as they came, without the leading column count.
    pub fn as_bytes(&self) -> &[u8] {
        &self.data
    }

    /// The same, shared with the tuple.
    pub fn shared_bytes(&self) -> Bytes {
        self.data.clone()
    }

    /// A value of the tuple's, shared with it; `None` when these bytes are not among its own.
    pub fn share(&self, value: &[u8]) -> Option<Bytes> {
        let (own, value) = (self.data.as_ptr_range(), value.as_ptr_range());
        let is_own = own.start <= value.start && value.end <= own.end;
        let at = value.start.addr().checked_sub(own.start.addr()).filter(|_| is_own)?;
        Some(self.data.slice(at..at + (value.end.addr() - value.start.addr())))
    }
}

/// Iterates over a tuple's columns.
#[derive(Clone, Debug)]
pub struct Columns<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Columns<'a> {
    type Item = Datum<'a>;

    #[inline]
    fn next(&mut self) -> Option<Datum<'a>> {
        let (datum, rest) = split_datum(self.rest)?;
        self.rest = rest;
        Some(datum)
    }
}

/// The first column of `bytes` and what follows it; `None` when they do not begin with a whole column.
#[inline]
fn split_datum(bytes: &[u8]) -> Option<(Datum<'_>, &[u8])> {
    let (&kind, rest) = bytes.split_first()?;
    match kind {
        b'n' => Some((Datum::Null, rest)),
        b'u' => Some((Datum::UnchangedToast, rest)),
        b't' | b'b' => {
            let (length, rest) = rest.split_first_chunk::<4>()?;
            let length = usize::try_from(i32::from_be_bytes(*length)).ok()?;
            let (value, rest) = rest.split_at_checked(length)?;
            Some((if kind == b't' { Datum::Text(value) } else { Datum::Binary(value) }, rest))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: &[u8] = b"nut\0\0\0\x03oneb\0\0\0\x02\x00\x01";

    #[test]
    fn columns_come_out_in_order_and_as_they_came() {
        let tuple = Tuple::new(4, Bytes::from_static(ROW)).unwrap();
        let columns: Vec<_> = tuple.columns().collect();
        assert_eq!(columns, [Datum::Null, Datum::UnchangedToast, Datum::Text(b"one"), Datum::Binary(&[0, 1])]);
    }

    #[test]
    fn a_value_is_shared_by_its_own_tuple_alone() {
        let row = || Tuple::new(4, Bytes::copy_from_slice(ROW)).unwrap();
        let (tuple, other) = (row(), row());
        let values = tuple.columns().filter_map(Datum::bytes);
        let shared: Vec<_> = values.clone().map(|value| tuple.share(value)).collect();
        assert_eq!(shared, [Some(Bytes::from_static(b"one")), Some(Bytes::from_static(&[0, 1]))]);
        assert!(values.clone().all(|value| other.share(value).is_none()));
        let places = shared.iter().flatten().map(|value| value.as_ptr());
        assert!(values.map(<[u8]>::as_ptr).eq(places), "nothing is copied");
    }

    #[test]
    fn every_cut_and_every_leftover_byte_is_noticed() {
        for end in 0..ROW.len() {
            assert!(Tuple::new(4, Bytes::from_static(&ROW[..end])).is_err(), "cut at {end}");
        }
        assert_eq!(
            Tuple::new(3, Bytes::from_static(ROW)),
            Err(MalformedTuple { column: 4, columns: 3 }),
            "a column too many"
        );
        assert!(Tuple::new(1, Bytes::from_static(b"x")).is_err(), "an unknown kind");
        assert!(Tuple::new(1, Bytes::from_static(b"t\xff\xff\xff\xff")).is_err(), "a negative length");
    }
}
