//! PostgreSQL's nouns as types: positions, names, relations, tuples, timestamps.
//!
//! Pure. Nothing comes in but text and bytes that other modules have read; out go values that cannot be
//! confused with one another. Every later module speaks in these words, spelled as PostgreSQL spells them: an [`Lsn`]
//! is not a number, a [`RelationId`] is not a [`TypeId`], and an [`Ident`] is the only way a name gets into SQL.
//!
//! Invariants: a value of these types is well-formed by construction (parse, don't validate), and its text form is
//! PostgreSQL's own.

mod ident;
mod length;
mod lsn;
mod printable;
mod provider;
mod relation;
mod report;
mod shown_sql;
mod slot_name;
mod time;
mod timeline;
mod tuple;
mod without_values;

pub use ident::{Ident, IdentError, QualifiedName, quote_literal, split_names};
pub use length::{length_u32, length_u64, usize_from};
pub use lsn::{Lsn, ParseLsnError};
pub use printable::{is_printable, printable, printable_json, printable_lines, shell_word, toml_string};
pub use provider::{Provider, logical_decoding_hint, replication_hint, settings_hint};
pub use relation::{Column, Description, Leaves, Relation, RelationId, ReplicaIdentity, TypeId};
pub use report::{ErrorReport, counted};
pub use shown_sql::{shown_literal, shown_sql};
pub use slot_name::{SlotName, SlotNameError};
pub use time::PgTimestamp;
pub use timeline::{Descent, ParseTimelineError, Timeline, TimelineHistory, TimelineSwitch};
pub use tuple::{Columns, Datum, MalformedTuple, Tuple};
pub use without_values::without_values;
