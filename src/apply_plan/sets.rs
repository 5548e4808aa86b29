//! Sets of rows into as few statements as possible: how a set is written, its SQL and its data.
//!
//! Stands between `coalesce` and `destination::apply`. Three methods, by measured crossovers (one connection, everything in one
//! pipelined request, PostgreSQL 15): prepared statements row by row, one statement over an array for each column, COPY. A
//! temporary table with a merge never paid, at no size.
//!
//! Array and COPY data are written straight from the tuples: no value is copied before.

use bytes::{BufMut, BytesMut};

use crate::apply_plan::net_effect::SetEffect;
use crate::apply_plan::sql;
use crate::apply_plan::target::{Target, TargetColumn, TargetIdentity};
use crate::pg::{Datum, Tuple, TypeId};

/// How a set goes to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WriteMethod {
    /// A prepared statement for each row.
    Rows,
    /// One statement over arrays.
    Arrays,
    /// COPY in text format.
    CopyText,
    /// COPY in binary format.
    CopyBinary,
}

/// From so many rows on COPY costs less than prepared inserts: as part of a pipelined request it needs no round trip.
const COPY_ROWS_MIN: usize = 10;
/// From so many rows on one statement over arrays costs less than prepared statements.
const ARRAY_ROWS_MIN: usize = 5;

/// The method for so many rows; `sample` shows in which format values come.
pub fn write_method(target: &Target, effect: &SetEffect, rows: usize, sample: &Tuple) -> WriteMethod {
    match effect {
        SetEffect::Insert if rows >= COPY_ROWS_MIN && target.side_effects.takes_copy() && has_columns(target) => {
            let text = sample.columns().any(|value| matches!(value, Datum::Text(_)));
            let binary = sample.columns().any(|value| matches!(value, Datum::Binary(_)));
            match (text, binary) {
                (true, false) => WriteMethod::CopyText,
                (false, true) => WriteMethod::CopyBinary,
                // Nothing but NULL: it does not say which.
                (false, false) | (true, true) => WriteMethod::Rows,
            }
        }
        SetEffect::Insert => WriteMethod::Rows,
        SetEffect::Update(set) if rows >= ARRAY_ROWS_MIN && go_in_arrays(target, set) => WriteMethod::Arrays,
        SetEffect::Delete if rows >= ARRAY_ROWS_MIN && go_in_arrays(target, &[]) => WriteMethod::Arrays,
        SetEffect::Update(_) | SetEffect::Delete => WriteMethod::Rows,
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
    let array = |index: &usize| target.key_column(*index).is_some_and(|column| column.array.is_some());
    let compared = |index: &usize| target.key_column(*index).is_some_and(|column| column.equality.is_some());
    !key.is_empty() && key.iter().all(compared) && key.iter().chain(set).all(array)
}

/// The statement over arrays of an effect. Its parameters: an array for each column that is set, one for each column
/// of the key, and for updates the number of rows.
pub fn arrays_sql(target: &Target, effect: &SetEffect) -> String {
    let key = key_of(target);
    match effect {
        SetEffect::Update(set) => sql::update_set(target, set, key),
        SetEffect::Delete | SetEffect::Insert => sql::delete_set(target, key),
    }
}

/// The types of its parameters.
pub fn arrays_types(target: &Target, effect: &SetEffect) -> Vec<TypeId> {
    const INT8: TypeId = TypeId(20);
    let set: &[usize] = match effect {
        SetEffect::Update(set) => set,
        SetEffect::Delete | SetEffect::Insert => &[],
    };
    let indexes = set.iter().chain(key_of(target));
    let mut types: Vec<TypeId> = indexes.filter_map(|index| target.key_column(*index)?.array).collect();
    if matches!(effect, SetEffect::Update(_)) {
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
    if nulls && let Some(flag) = out.get_mut(nulls_at..nulls_at + 4) {
        flag.copy_from_slice(&1_i32.to_be_bytes());
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
pub fn copy_begin(out: &mut BytesMut, method: WriteMethod) {
    if method == WriteMethod::CopyBinary {
        // Signature, flags, length of the header's extension (sql-copy, Binary Format).
        out.extend_from_slice(b"PGCOPY\n\xff\r\n\0");
        out.put_u32(0);
        out.put_u32(0);
    }
}

/// What stands behind the last row.
pub fn copy_end(out: &mut BytesMut, method: WriteMethod) {
    if method == WriteMethod::CopyBinary {
        out.put_i16(-1);
    }
}

/// One row of COPY data: the columns that the destination stores.
pub fn copy_row(out: &mut BytesMut, method: WriteMethod, target: &Target, columns: i16, row: &Tuple) {
    let stored =
        target.columns.iter().zip(row.columns()).filter(|(column, _)| column.is_some()).map(|(_, value)| value);
    if method == WriteMethod::CopyBinary {
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
    index: usize,
    integer: bool,
}

impl KeyOrder {
    /// By the first column of the key.
    pub fn of(target: &Target, key: &[usize]) -> KeyOrder {
        // int8, int2, int4
        const INTEGERS: [u32; 3] = [20, 21, 23];
        let index = key.first().copied().unwrap_or(0);
        let integer = target.key_column(index).is_some_and(|column| INTEGERS.contains(&column.type_id.0));
        KeyOrder { index, integer }
    }

    /// Where a row stands in that order.
    pub fn sort_key(self, row: &Tuple) -> u64 {
        let signed = |number: i64| number.cast_unsigned() ^ (1 << 63);
        match row.columns().nth(self.index) {
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
    use std::sync::Arc;

    use super::*;
    use crate::apply_plan::merge::tuple_of;
    use crate::apply_plan::side_effects::SideEffects;
    use crate::catalog::schema::TableDefinition;
    use crate::pg::{Ident, QualifiedName, Relation, RelationId, ReplicaIdentity};
    use crate::testing;

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
        let integer = KeyOrder { index: 0, integer: true };
        let binary = |n: i32| integer.sort_key(&tuple_of([Datum::Binary(&n.to_be_bytes())]).unwrap());
        let text = |n: i32| integer.sort_key(&tuple_of([Datum::Text(n.to_string().as_bytes())]).unwrap());
        for pair in [-2_000_000_000, -70_000, -1, 0, 1, 255, 256, 2_000_000_000].windows(2) {
            assert!(binary(pair[0]) < binary(pair[1]), "{pair:?}");
            assert!(text(pair[0]) < text(pair[1]), "{pair:?}");
        }
        let other = KeyOrder { index: 0, integer: false };
        let of = |text: &[u8]| other.sort_key(&tuple_of([Datum::Text(text)]).unwrap());
        assert!(of(b"a") < of(b"ab") && of(b"ab") < of(b"b"));
    }

    /// Table t (id, a), found by id, whose columns have an array and an operator for equality, changed by `change`.
    fn target(change: impl Fn(&mut Target)) -> Target {
        let table =
            testing::table("t", &[testing::TestColumn::new("id", 25).not_null(), testing::TestColumn::new("a", 25)]);
        let columns = table.columns.iter().map(|column| crate::pg::Column {
            name: column.name.clone(),
            in_identity: column.name == Ident::new("id"),
            type_id: column.type_id,
            type_modifier: -1,
        });
        let relation = Relation {
            leaves: Default::default(),
            id: RelationId(1),
            name: table.name(),
            replica_identity: ReplicaIdentity::Default,
            columns: columns.collect(),
        };
        let mut target = Target::bind(&Arc::new(relation), &table, &testing::types(), Some(&table)).unwrap();
        for column in &mut target.finders {
            column.array = Some(TypeId(1009));
            column.equality = Some(QualifiedName::new("pg_catalog", "="));
        }
        change(&mut target);
        target
    }

    #[test]
    fn many_rows_go_by_copy_and_arrays_and_few_one_by_one() {
        let target = target(|_| {});
        let row = tuple_of([Datum::Text(b"1"), Datum::Null]).unwrap();
        let ways = |effect: &SetEffect, rows: [usize; 2]| rows.map(|rows| write_method(&target, effect, rows, &row));
        assert_eq!(
            ways(&SetEffect::Insert, [COPY_ROWS_MIN - 1, COPY_ROWS_MIN]),
            [WriteMethod::Rows, WriteMethod::CopyText]
        );
        for effect in [SetEffect::Update(vec![1]), SetEffect::Delete] {
            assert_eq!(
                ways(&effect, [ARRAY_ROWS_MIN - 1, ARRAY_ROWS_MIN]),
                [WriteMethod::Rows, WriteMethod::Arrays],
                "{effect:?}"
            );
        }
    }

    #[test]
    fn a_table_that_copy_or_arrays_cannot_change_takes_rows_one_by_one() {
        let row = tuple_of([Datum::Text(b"1"), Datum::Text(b"x")]).unwrap();
        let ways = |target: &Target| {
            [SetEffect::Insert, SetEffect::Update(vec![1]), SetEffect::Delete]
                .map(|effect| write_method(target, &effect, 100, &row))
        };
        let by = |change: &dyn Fn(&mut Target)| ways(&target(change));
        let secured =
            TableDefinition { row_security: true, ..testing::table("t", &[testing::TestColumn::new("id", 25)]) };
        let no_copy = by(&|target| target.side_effects = SideEffects::of(&secured));
        assert_eq!(
            no_copy,
            [WriteMethod::Rows, WriteMethod::Arrays, WriteMethod::Arrays],
            "row-level security refuses COPY"
        );
        let no_operator = by(&|target| target.finders[0].equality = None);
        assert_eq!(
            no_operator,
            [WriteMethod::CopyText, WriteMethod::Rows, WriteMethod::Rows],
            "a key without an operator"
        );
        let no_array_of_key = by(&|target| target.finders[0].array = None);
        assert_eq!(
            no_array_of_key,
            [WriteMethod::CopyText, WriteMethod::Rows, WriteMethod::Rows],
            "a key without an array"
        );
        let no_array_of_value = by(&|target| target.finders[1].array = None);
        assert_eq!(
            no_array_of_value,
            [WriteMethod::CopyText, WriteMethod::Rows, WriteMethod::Arrays],
            "a value without an array"
        );
        let no_key = by(&|target| target.identity = TargetIdentity::WholeRow);
        assert_eq!(no_key, [WriteMethod::CopyText, WriteMethod::Rows, WriteMethod::Rows], "no key");
        let all_generated = by(&|target| target.columns = vec![None, None]);
        assert_eq!(
            all_generated,
            [WriteMethod::Rows, WriteMethod::Arrays, WriteMethod::Arrays],
            "no column to copy into"
        );
    }

    #[test]
    fn copy_goes_in_the_format_of_the_values_and_not_where_they_do_not_say_which() {
        let target = target(|_| {});
        let of = |row: [Datum<'_>; 2]| write_method(&target, &SetEffect::Insert, 100, &tuple_of(row).unwrap());
        assert_eq!(of([Datum::Text(b"1"), Datum::Null]), WriteMethod::CopyText);
        assert_eq!(of([Datum::Binary(b"1"), Datum::Null]), WriteMethod::CopyBinary);
        assert_eq!(of([Datum::Null, Datum::Null]), WriteMethod::Rows);
        assert_eq!(of([Datum::Text(b"1"), Datum::Binary(b"1")]), WriteMethod::Rows);
    }

    fn copied(method: WriteMethod, target: &Target, rows: &[[Datum<'_>; 2]]) -> Vec<u8> {
        let mut out = BytesMut::new();
        copy_begin(&mut out, method);
        let columns = i16::try_from(target.stored_columns().count()).unwrap();
        for row in rows {
            copy_row(&mut out, method, target, columns, &tuple_of(*row).unwrap());
        }
        copy_end(&mut out, method);
        out.to_vec()
    }

    #[test]
    fn copy_in_text_escapes_what_ends_values_and_rows() {
        let rows = [[Datum::Text(b"a\tb\nc\rd\\e"), Datum::Null], [Datum::Text(b""), Datum::Text(b"\\N")]];
        let expected = b"a\\tb\\nc\\rd\\\\e\t\\N\n\t\\\\N\n";
        assert_eq!(copied(WriteMethod::CopyText, &target(|_| {}), &rows), expected);
    }

    #[test]
    fn copy_in_binary_has_lengths_and_a_header_and_an_end() {
        let rows = [[Datum::Binary(b"ab"), Datum::Null]];
        let expected: Vec<u8> = [
            b"PGCOPY\n\xff\r\n\0".as_slice(),
            &[0; 8],
            &[0, 2, 0, 0, 0, 2, b'a', b'b', 0xff, 0xff, 0xff, 0xff],
            &[0xff, 0xff],
        ]
        .concat();
        assert_eq!(copied(WriteMethod::CopyBinary, &target(|_| {}), &rows), expected);
    }

    #[test]
    fn copy_leaves_out_what_the_destination_generates() {
        let target = target(|target| target.columns[1] = None);
        let rows = [[Datum::Text(b"a"), Datum::Text(b"generated")]];
        assert_eq!(copied(WriteMethod::CopyText, &target, &rows), b"a\n");
    }
}
