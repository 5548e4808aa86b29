//! The formats of a statement's parameters.
//!
//! Asked when a row's values are written into a pipelined request. A value is bound as it came. NULL shows no format, and is bound in that
//! of the others: the server looks for the type's receive function even for a NULL, and types without one come as text.

use crate::pg::Datum;
use crate::session::Format;

/// The formats of values, in their order.
pub(super) fn formats_of(values: &[Datum<'_>]) -> Vec<Format> {
    let mut formats = Vec::with_capacity(values.len());
    let nulls = format_of_nulls(values.iter().copied());
    formats.extend(values.iter().map(|value| format_of(*value, nulls)));
    formats
}

/// In which format the NULLs among these values are bound: text, unless there are binary values and no others.
fn format_of_nulls<'a>(values: impl Iterator<Item = Datum<'a>>) -> Format {
    let mut found = Format::Text;
    for value in values {
        match value {
            Datum::Text(_) => return Format::Text,
            Datum::Binary(_) => found = Format::Binary,
            Datum::Null | Datum::UnchangedToast => {}
        }
    }
    found
}

/// The format of a value, where NULLs have this one.
pub(super) fn format_of(value: Datum<'_>, nulls: Format) -> Format {
    match value {
        Datum::Text(_) => Format::Text,
        Datum::Binary(_) => Format::Binary,
        Datum::Null | Datum::UnchangedToast => nulls,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_are_bound_as_the_values_beside_them() {
        let (text, binary, null) = (Datum::Text(b"1"), Datum::Binary(b"1"), Datum::Null);
        assert_eq!(formats_of(&[null, text]), [Format::Text, Format::Text]);
        assert_eq!(formats_of(&[null, binary]), [Format::Binary, Format::Binary]);
        assert_eq!(formats_of(&[null, Datum::UnchangedToast]), [Format::Text, Format::Text]);
        assert_eq!(formats_of(&[binary, text, null]), [Format::Binary, Format::Text, Format::Text]);
    }
}
