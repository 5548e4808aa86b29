//! What of a row is hashed, on one server: images of its columns.
//!
//! Used by [`crate::comparison::sql`]. A row's hash is taken over the images of its columns. An image is the text that a value's output
//! function gives: 1.0 and 1.00 differ, -0 and 0 differ, trailing blanks count, json and point and xml have one; and values that are
//! the same on two servers have the same text there, whatever the types' OIDs and binary forms. Where a type's text may say less
//! than the value (types of extensions) the image is what its send function gives ([`Image`]). NULLs are marked apart from empty
//! strings, and a separator that is drawn for each run keeps the borders between columns.
//!
//! `concat_ws` is used, not `ROW(…)::text`: it does not look at each character for quotes, which makes the whole
//! comparison three times as fast.

use crate::pg::{Ident, QualifiedName, quote_literal};
use crate::sql::text_value::ValueType;

/// How text becomes 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashFunction {
    /// PostgreSQL's own hash of text: fast; the same on two servers of one encoding and byte order.
    Native,
    /// Half of an MD5 over the text in UTF-8: the same everywhere.
    Md5,
}

/// A text that is equal for two values if and only if they are the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Image {
    /// What the output function gives.
    Text,
    /// What the send function of this name gives, in hexadecimal digits.
    Sent(QualifiedName),
    /// The dimensions and the elements' images: what an array sends holds a type's OID, which is the server's own.
    Elements(Box<Image>),
    /// The attributes' images, for the same reason.
    Attributes(Vec<(Ident, Image)>),
}

impl Image {
    /// The same on another server: functions may stand in other schemas.
    pub fn is_like(&self, other: &Image) -> bool {
        match (self, other) {
            (Image::Text, Image::Text) => true,
            (Image::Sent(here), Image::Sent(there)) => here.name == there.name,
            (Image::Elements(here), Image::Elements(there)) => here.is_like(there),
            (Image::Attributes(here), Image::Attributes(there)) => {
                here.len() == there.len()
                    && here.iter().zip(there).all(|((a, here), (b, there))| a == b && here.is_like(there))
            }
            (Image::Text | Image::Sent(_) | Image::Elements(_) | Image::Attributes(_), _) => false,
        }
    }

    /// The image of `value`, NULL for NULL.
    fn sql(&self, value: &str, depth: usize) -> String {
        match self {
            Image::Text => value.to_owned(),
            Image::Sent(function) => format!("pg_catalog.encode({}({value}), 'hex')", function.sql()),
            Image::Elements(element) => {
                let (e, n) = (format!("e{depth}"), format!("n{depth}"));
                format!(
                    "CASE WHEN {value} IS NOT NULL THEN pg_catalog.concat(pg_catalog.array_dims({value}), \
                     (SELECT pg_catalog.string_agg({}, '' ORDER BY {n}) \
                     FROM pg_catalog.unnest({value}) WITH ORDINALITY AS u{depth} ({e}, {n}))) END",
                    element.part(&e, depth + 1)
                )
            }
            Image::Attributes(attributes) => {
                let parts =
                    attributes.iter().map(|(name, image)| image.part(&format!("({value}).{}", name.sql()), depth + 1));
                let parts: Vec<String> = parts.collect();
                format!("CASE WHEN {value} IS DISTINCT FROM NULL THEN {} END", parts.join(" || "))
            }
        }
    }

    /// The image as a part of a larger one, with its length before it.
    fn part(&self, value: &str, depth: usize) -> String {
        let image = match self {
            // As the output function gives it: a cast of char(n) to text would cut its blanks off.
            Image::Text => format!("pg_catalog.concat({value})"),
            Image::Sent(_) | Image::Elements(_) | Image::Attributes(_) => self.sql(value, depth),
        };
        format!(
            "CASE WHEN {value} IS DISTINCT FROM NULL THEN pg_catalog.length({image}) || ':' || {image} ELSE '-' END"
        )
    }
}

/// A column, as it is hashed on one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashedColumn {
    /// Its name.
    pub name: Ident,
    /// It may be NULL on either side.
    pub nullable: bool,
    /// What of its values is hashed.
    pub image: Image,
    /// Its type, where the image is a text that may say less than the value.
    pub doubtful: Option<ValueType>,
}

/// The columns of a row, as they are hashed on one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hashing {
    /// The columns, in the same order on both sides.
    pub columns: Vec<HashedColumn>,
    /// Those of the key; none where rows have no key.
    pub key: Vec<Ident>,
    /// What stands between two values.
    pub separator: String,
    /// How text becomes 64 bits.
    pub function: HashFunction,
}

/// A function takes at most 100 arguments, and a column may need two.
const COLUMNS_MAX: usize = 40;

impl Hashing {
    fn text(&self, columns: &[&HashedColumn]) -> String {
        let values = columns.iter().map(|column| {
            let name = column.name.sql();
            let image = column.image.sql(&name, 0);
            // `IS NULL` of a row is true for one of NULLs, too: its text tells the two apart, its attributes' images do not.
            let is_null = match &column.image {
                Image::Text => format!("{name} IS NULL"),
                Image::Sent(_) | Image::Elements(_) | Image::Attributes(_) => {
                    format!("NOT ({name} IS DISTINCT FROM NULL)")
                }
            };
            if column.nullable { format!("{image}, {is_null}") } else { image }
        });
        format!("pg_catalog.concat_ws({}, {})", quote_literal(&self.separator), values.collect::<Vec<_>>().join(", "))
    }

    /// The hash of these columns.
    fn of(&self, columns: &[&HashedColumn]) -> String {
        match self.function {
            HashFunction::Native => columns.chunks(COLUMNS_MAX).fold("0".to_owned(), |seed, columns| {
                format!("pg_catalog.hashtextextended({} COLLATE \"C\", {seed})", self.text(columns))
            }),
            HashFunction::Md5 => {
                let texts: Vec<String> = columns.chunks(COLUMNS_MAX).map(|columns| self.text(columns)).collect();
                let text = texts.join(" || ");
                let text = if text.is_empty() { "''".to_owned() } else { text };
                format!(
                    "('x' || pg_catalog.substr(pg_catalog.md5(pg_catalog.convert_to({text}, 'UTF8')), 1, 16))\
                     ::pg_catalog.bit(64)::pg_catalog.int8"
                )
            }
        }
    }

    /// The hash of a row.
    pub fn row(&self) -> String {
        self.of(&self.columns.iter().collect::<Vec<_>>())
    }

    /// The hash of a row's key; of the row itself, where it has none.
    pub(crate) fn key_hash(&self) -> String {
        if self.key.is_empty() {
            return self.row();
        }
        self.of(&self.columns.iter().filter(|column| self.key.contains(&column.name)).collect::<Vec<_>>())
    }

    /// A hash of each column by itself, as an array.
    pub(crate) fn each(&self) -> String {
        let each: Vec<String> = self.columns.iter().map(|column| self.of(&[column])).collect();
        format!("ARRAY[{}]::pg_catalog.int8[]", each.join(", "))
    }

    /// The columns whose images may say less than their values.
    pub fn doubtful(&self) -> impl Iterator<Item = &Ident> {
        self.columns.iter().filter(|column| column.doubtful.is_some()).map(|column| &column.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, nullable: bool, image: Image) -> HashedColumn {
        HashedColumn { name: Ident::new(name), nullable, image, doubtful: None }
    }

    fn hashing(columns: &[(&str, bool)]) -> Hashing {
        Hashing {
            columns: columns.iter().map(|(name, nullable)| column(name, *nullable, Image::Text)).collect(),
            key: Vec::new(),
            separator: "|".to_owned(),
            function: HashFunction::Native,
        }
    }

    #[test]
    fn a_null_is_marked_apart_from_an_empty_string() {
        assert_eq!(
            hashing(&[("id", false), ("body", true)]).row(),
            "pg_catalog.hashtextextended(pg_catalog.concat_ws('|', \"id\", \"body\", \"body\" IS NULL) COLLATE \"C\", 0)"
        );
    }

    #[test]
    fn what_a_text_does_not_tell_exactly_is_sent_and_parts_keep_their_borders() {
        let sent = Image::Sent(QualifiedName::new("ext", "thing_send"));
        let mut hashing = hashing(&[]);
        hashing.columns = vec![column("t", true, sent.clone())];
        assert!(
            hashing
                .row()
                .contains("pg_catalog.encode(\"ext\".\"thing_send\"(\"t\"), 'hex'), NOT (\"t\" IS DISTINCT FROM NULL)"),
            "{}",
            hashing.row()
        );
        let elements = Image::Elements(Box::new(sent.clone()));
        hashing.columns = vec![column("t", false, elements.clone())];
        assert!(hashing.row().contains("pg_catalog.length(pg_catalog.encode(\"ext\".\"thing_send\"(e0), 'hex'))"));
        let elsewhere = Image::Elements(Box::new(Image::Sent(QualifiedName::new("public", "thing_send"))));
        assert!(elements.is_like(&elsewhere) && !elements.is_like(&sent) && !sent.is_like(&Image::Text));
    }

    #[test]
    fn wide_tables_are_hashed_in_links_of_a_chain() {
        let names: Vec<String> = (0..90).map(|n| format!("c{n}")).collect();
        let columns: Vec<(&str, bool)> = names.iter().map(|name| (name.as_str(), true)).collect();
        let sql = hashing(&columns).row();
        assert_eq!(sql.matches("hashtextextended").count(), 3);
        assert!(sql.ends_with("COLLATE \"C\", 0)))"), "{sql}");
    }
}
