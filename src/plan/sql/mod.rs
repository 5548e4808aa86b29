//! All SQL that headwater generates. Fixed SQL is in sql/ and included where it is used.
//!
//! Asked by `destination` and `source`; pure. Names get in through [`crate::pg::Ident::sql`] only, so that a hostile
//! name is an odd name. Every object of a catalog is named with its schema, because sessions run with an empty
//! search_path.

pub mod apply;
pub mod conflict;
pub mod ddl;
pub mod evolve;
pub mod hashing;
pub mod only_tables;
pub mod sequences;
pub mod staging;
pub mod value;
pub mod verify;
