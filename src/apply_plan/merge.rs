//! One row out of several images of it.
//!
//! An UPDATE does not send TOASTed values that it left alone. Where an earlier change of the same batch sent them, the
//! row's last image is completed from it; `coalesce` asks for that once per row, at the end.

use bytes::{BufMut, BytesMut};

use crate::pg::{Datum, Tuple, length_u32};

/// Whether a value of the row was left out because it did not change.
pub(super) fn has_unchanged(tuple: &Tuple) -> bool {
    tuple.columns().any(|value| value == Datum::UnchangedToast)
}

/// The newest of the images, each missing value taken from the next older one that has it. Newest first, not empty.
pub(super) fn merge(images: &[&Tuple]) -> Tuple {
    let newest = images[0];
    let mut columns: Vec<_> = images.iter().map(|image| image.columns()).collect();
    let mut data = BytesMut::with_capacity(newest.size_bytes());
    for _ in 0..newest.len() {
        let mut found = Datum::UnchangedToast;
        for image in &mut columns {
            let value = image.next().expect("the images of a row have as many columns as its relation");
            if found == Datum::UnchangedToast {
                found = value;
            }
        }
        write(&mut data, found);
    }
    let columns = u16::try_from(newest.len()).expect("TupleData counts its columns in 16 bits");
    Tuple::new(columns, data.freeze()).expect("the columns were written as TupleData has them")
}

/// Appends a column as TupleData has it.
fn write(data: &mut BytesMut, value: Datum<'_>) {
    let (kind, value) = match value {
        Datum::Null => (b'n', None),
        Datum::UnchangedToast => (b'u', None),
        Datum::Text(value) => (b't', Some(value)),
        Datum::Binary(value) => (b'b', Some(value)),
    };
    data.put_u8(kind);
    if let Some(value) = value {
        data.put_u32(length_u32(value.len()));
        data.extend_from_slice(value);
    }
}

/// A row of these columns.
#[cfg(test)]
pub(super) fn tuple_of<'a>(values: impl IntoIterator<Item = Datum<'a>>) -> Option<Tuple> {
    let mut data = BytesMut::new();
    let mut columns = 0;
    for value in values {
        write(&mut data, value);
        columns += 1;
    }
    Tuple::new(columns, data.freeze()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_was_not_sent_comes_from_the_newest_image_that_has_it() {
        let row = |values: &[Datum<'_>]| tuple_of(values.iter().copied()).unwrap();
        let oldest = row(&[Datum::Text(b"1"), Datum::Text(b"a"), Datum::Text(b"old"), Datum::UnchangedToast]);
        let middle = row(&[Datum::Text(b"1"), Datum::Text(b"b"), Datum::Null, Datum::UnchangedToast]);
        let newest = row(&[Datum::Text(b"2"), Datum::UnchangedToast, Datum::UnchangedToast, Datum::UnchangedToast]);
        let merged = merge(&[&newest, &middle, &oldest]);
        assert_eq!(merged, row(&[Datum::Text(b"2"), Datum::Text(b"b"), Datum::Null, Datum::UnchangedToast]));
        assert!(has_unchanged(&merged));
        assert!(!has_unchanged(&oldest) || oldest.columns().nth(3) == Some(Datum::UnchangedToast));
    }
}
