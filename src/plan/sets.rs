//! Sets of rows into as few statements as possible: which way a set goes, its SQL and its data.
//!
//! Stands between `net` and `destination::apply`. Three ways, by measured crossovers (one connection, everything in one
//! flight, PostgreSQL 15): prepared statements row by row, one statement over an array for each column, COPY. A
//! temporary table with a merge never paid, at no size.
//!
//! Array and COPY data are written straight from the tuples: no value is copied before.

use bytes::{BufMut, BytesMut};

use super::net::Effect;
use crate::pg::{Datum, Tuple, TypeId};
use crate::plan::sql::apply;
use crate::plan::target::{Target, TargetColumn, TargetIdentity};

/// How a set goes to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// A prepared statement for each row.
    Rows,
    /// One statement over arrays.
    Arrays,
    /// COPY in text format.
    CopyText,
    /// COPY in binary format.
    CopyBinary,
}

/// From so many rows on COPY costs less than prepared inserts: as part of a flight it needs no round trip.
const COPY_ROWS_MIN: usize = 10;
/// From so many rows on one statement over arrays costs less than prepared statements.
const ARRAY_ROWS_MIN: usize = 5;

/// The way for so many rows; `sample` tells in which format values come.
pub fn way(target: &Target, effect: &Effect, rows: usize, sample: &Tuple) -> Way {
    match effect {
        Effect::Insert if rows >= COPY_ROWS_MIN && target.reaction.takes_copy() && has_columns(target) => {
            let text = sample.columns().any(|value| matches!(value, Datum::Text(_)));
            let binary = sample.columns().any(|value| matches!(value, Datum::Binary(_)));
            match (text, binary) {
                (true, false) => Way::CopyText,
                (false, true) => Way::CopyBinary,
                // Nothing but NULL: it does not say which.
                (false, false) | (true, true) => Way::Rows,
            }
        }
        Effect::Insert => Way::Rows,
        Effect::Update(set) if rows >= ARRAY_ROWS_MIN && go_in_arrays(target, set) => Way::Arrays,
        Effect::Delete if rows >= ARRAY_ROWS_MIN && go_in_arrays(target, &[]) => Way::Arrays,
        Effect::Update(_) | Effect::Delete => Way::Rows,
    }
}

fn has_columns(target: &Target) -> bool {
    target.columns.iter().any(Option::is_some)
}

/// The places of the key; empty for other identities.
pub fn key_of(target: &Target) -> &[usize] {
    match &target.identity {
        TargetIdentity::Key(key) => key,
        TargetIdentity::WholeRow | TargetIdentity::None => &[],
    }
}

fn go_in_arrays(target: &Target, set: &[usize]) -> bool {
    let key = key_of(target);
    let array = |place: &usize| target.key_column(*place).is_some_and(|column| column.array.is_some());
    let compared = |place: &usize| target.key_column(*place).is_some_and(|column| column.equality.is_some());
    !key.is_empty() && key.iter().all(compared) && key.iter().chain(set).all(array)
}

/// The statement over arrays of an effect. Its parameters: an array for each column that is set, one for each column
/// of the key, and for updates the number of rows.
pub fn arrays_sql(target: &Target, effect: &Effect) -> String {
    let key = key_of(target);
    match effect {
        Effect::Update(set) => apply::update_set(target, set, key),
        Effect::Delete | Effect::Insert => apply::delete_set(target, key),
    }
}

/// The types of its parameters.
pub fn arrays_types(target: &Target, effect: &Effect) -> Vec<TypeId> {
    const INT8: TypeId = TypeId(20);
    let set: &[usize] = match effect {
        Effect::Update(set) => set,
        Effect::Delete | Effect::Insert => &[],
    };
    let places = set.iter().chain(key_of(target));
    let mut types: Vec<TypeId> = places.filter_map(|place| target.key_column(*place)?.array).collect();
    if matches!(effect, Effect::Update(_)) {
        types.push(INT8);
    }
    types
}

/// Writes an array of a column's values, as the wire has it in their format; returns whether that is binary.
///
/// `binary` says which format the values are in; NULLs are in both.
pub fn write_array<'a>(
    out: &mut BytesMut,
    column: &TargetColumn,
    binary: bool,
    rows: usize,
    values: impl Iterator<Item = Datum<'a>>,
) {
    if !binary {
        return write_text_array(out, column, values);
    }
    // array_recv: dimensions, whether there are NULLs, element type; per dimension its length and lower bound.
    out.put_i32(1);
    let nulls_at = out.len();
    out.put_i32(0);
    out.put_u32(column.type_id.0);
    out.put_i32(length(rows));
    out.put_i32(1);
    let mut nulls = false;
    for value in values {
        match value.bytes() {
            Some(value) => {
                out.put_i32(length(value.len()));
                out.extend_from_slice(value);
            }
            None => {
                nulls = true;
                out.put_i32(-1);
            }
        }
    }
    if nulls && let Some(place) = out.get_mut(nulls_at..nulls_at + 4) {
        place.copy_from_slice(&1_i32.to_be_bytes());
    }
}

fn write_text_array<'a>(out: &mut BytesMut, column: &TargetColumn, values: impl Iterator<Item = Datum<'a>>) {
    let mut delimiter = [0; 4];
    let delimiter = column.delimiter.encode_utf8(&mut delimiter).as_bytes();
    out.put_u8(b'{');
    for (at, value) in values.enumerate() {
        if at > 0 {
            out.extend_from_slice(delimiter);
        }
        match value.bytes() {
            Some(value) => {
                out.put_u8(b'"');
                for byte in value {
                    if matches!(byte, b'"' | b'\\') {
                        out.put_u8(b'\\');
                    }
                    out.put_u8(*byte);
                }
                out.put_u8(b'"');
            }
            None => out.extend_from_slice(b"NULL"),
        }
    }
    out.put_u8(b'}');
}

/// What stands before the first row of COPY data.
pub fn copy_begin(out: &mut BytesMut, way: Way) {
    if way == Way::CopyBinary {
        // Signature, flags, length of the header's extension (sql-copy, Binary Format).
        out.extend_from_slice(b"PGCOPY\n\xff\r\n\0");
        out.put_u32(0);
        out.put_u32(0);
    }
}

/// What stands behind the last row.
pub fn copy_end(out: &mut BytesMut, way: Way) {
    if way == Way::CopyBinary {
        out.put_i16(-1);
    }
}

/// One row of COPY data: the columns that the destination stores.
pub fn copy_row(out: &mut BytesMut, way: Way, target: &Target, columns: i16, row: &Tuple) {
    let stored =
        target.columns.iter().zip(row.columns()).filter(|(column, _)| column.is_some()).map(|(_, value)| value);
    if way == Way::CopyBinary {
        out.put_i16(columns);
        for value in stored {
            match value.bytes() {
                Some(value) => {
                    out.put_i32(length(value.len()));
                    out.extend_from_slice(value);
                }
                None => out.put_i32(-1),
            }
        }
        return;
    }
    for (at, value) in stored.enumerate() {
        if at > 0 {
            out.put_u8(b'\t');
        }
        match value.bytes() {
            Some(value) => {
                for byte in value {
                    match byte {
                        b'\\' => out.extend_from_slice(b"\\\\"),
                        b'\n' => out.extend_from_slice(b"\\n"),
                        b'\r' => out.extend_from_slice(b"\\r"),
                        b'\t' => out.extend_from_slice(b"\\t"),
                        byte => out.put_u8(*byte),
                    }
                }
            }
            None => out.extend_from_slice(b"\\N"),
        }
    }
    out.put_u8(b'\n');
}

fn length(items: usize) -> i32 {
    i32::try_from(items).expect("a value is part of a message of at most 1 GiB")
}

/// Orders rows roughly as the index of their key does, so that neighbours in the index are touched one after the other.
#[derive(Clone, Copy, Debug)]
pub struct KeyOrder {
    place: usize,
    integer: bool,
}

impl KeyOrder {
    /// By the first column of the key.
    pub fn of(target: &Target, key: &[usize]) -> KeyOrder {
        // int8, int2, int4
        const INTEGERS: [u32; 3] = [20, 21, 23];
        let place = key.first().copied().unwrap_or(0);
        let integer = target.key_column(place).is_some_and(|column| INTEGERS.contains(&column.type_id.0));
        KeyOrder { place, integer }
    }

    /// Where a row stands in that order.
    pub fn place(self, row: &Tuple) -> u64 {
        let signed = |number: i64| number.cast_unsigned() ^ (1 << 63);
        match row.columns().nth(self.place) {
            Some(Datum::Text(value)) if self.integer => {
                std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).map_or(0, signed)
            }
            Some(Datum::Binary(value)) if self.integer => {
                let negative = value.first().is_some_and(|first| first & 0x80 != 0);
                let start = if negative { -1 } else { 0 };
                signed(value.iter().fold(start, |number, byte| (number << 8) | i64::from(*byte)))
            }
            Some(Datum::Text(value) | Datum::Binary(value)) => {
                let mut first = [0; 8];
                for (to, from) in first.iter_mut().zip(value) {
                    *to = *from;
                }
                u64::from_be_bytes(first)
            }
            Some(Datum::Null | Datum::UnchangedToast) | None => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::Ident;
    use crate::plan::merge::tuple_of;

    fn column(type_id: u32) -> TargetColumn {
        TargetColumn {
            name: Ident::new("c"),
            type_id: TypeId(type_id),
            array: Some(TypeId(1007)),
            delimiter: ',',
            equality: None,
            identity_always: false,
            equal_when_identical: true,
        }
    }

    #[test]
    fn a_text_array_quotes_what_it_must() {
        let mut out = BytesMut::new();
        let values = [Datum::Text(b"a"), Datum::Null, Datum::Text(br#"say "x\y", {z}"#), Datum::Text(b"NULL")];
        write_array(&mut out, &column(25), false, 4, values.into_iter());
        assert_eq!(&out[..], br#"{"a",NULL,"say \"x\\y\", {z}","NULL"}"#);
    }

    #[test]
    fn a_binary_array_tells_of_its_nulls() {
        let mut out = BytesMut::new();
        write_array(&mut out, &column(23), true, 2, [Datum::Binary(&[0, 0, 0, 7]), Datum::Null].into_iter());
        let expected =
            [[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 23], [0, 0, 0, 2], [0, 0, 0, 1], [0, 0, 0, 4], [0, 0, 0, 7]];
        assert_eq!(&out[..28], expected.concat());
        assert_eq!(&out[28..], (-1_i32).to_be_bytes());
    }

    #[test]
    fn keys_are_ordered_as_their_index_is() {
        let integer = KeyOrder { place: 0, integer: true };
        let binary = |n: i32| integer.place(&tuple_of([Datum::Binary(&n.to_be_bytes())]).unwrap());
        let text = |n: i32| integer.place(&tuple_of([Datum::Text(n.to_string().as_bytes())]).unwrap());
        for pair in [-2_000_000_000, -70_000, -1, 0, 1, 255, 256, 2_000_000_000].windows(2) {
            assert!(binary(pair[0]) < binary(pair[1]), "{pair:?}");
            assert!(text(pair[0]) < text(pair[1]), "{pair:?}");
        }
        let other = KeyOrder { place: 0, integer: false };
        let of = |text: &[u8]| other.place(&tuple_of([Datum::Text(text)]).unwrap());
        assert!(of(b"a") < of(b"ab") && of(b"ab") < of(b"b"));
    }
}
