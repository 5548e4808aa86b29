//! What the destination does by itself when a table's rows change: foreign keys and triggers.
//!
//! Read off the catalog when a relation is bound; part of its [`super::target::Target`], judged by `table_activity`.

use crate::catalog::schema::{ForeignKeyAction, TableDefinition};
use crate::pg::Ident;

/// How a destination table reacts to changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SideEffects {
    /// Triggers fire in the ordinary role.
    pub(crate) triggers_in_origin: bool,
    /// Triggers fire even in the replica role.
    pub(crate) triggers_in_replica: bool,
    /// A foreign key of another table follows deletes of this one's rows.
    pub(crate) follows_delete: bool,
    /// A foreign key of another table follows changes of this one's keys.
    pub(crate) follows_update: bool,
    /// What its foreign keys point at.
    pub(crate) parents: Vec<Parent>,
    /// Row level security may keep COPY from it.
    pub(crate) row_security: bool,
}

impl SideEffects {
    /// From the catalog.
    pub fn of(table: &TableDefinition) -> SideEffects {
        let follows = |action: ForeignKeyAction| match action {
            ForeignKeyAction::NoAction | ForeignKeyAction::Restrict => false,
            ForeignKeyAction::Cascade | ForeignKeyAction::SetNull | ForeignKeyAction::SetDefault => true,
        };
        let fires = |roles: &[char]| table.triggers.iter().any(|trigger| roles.contains(&trigger.enabled));
        SideEffects {
            // tgenabled: O origin, R replica, A always, D disabled.
            triggers_in_origin: fires(&['O', 'A']),
            triggers_in_replica: fires(&['R', 'A']),
            follows_delete: table.referenced_by.iter().any(|key| follows(key.on_delete)),
            follows_update: table.referenced_by.iter().any(|key| follows(key.on_update)),
            parents: table
                .foreign_keys()
                .map(|(_, target)| Parent { table_id: target.table_id, columns: target.columns.clone() })
                .collect(),
            row_security: table.row_security,
        }
    }

    /// Whether triggers act in the replica role.
    pub fn acts_in_replica(&self) -> bool {
        self.triggers_in_replica
    }

    /// Whether rows may come by COPY.
    pub fn takes_copy(&self) -> bool {
        !self.row_security
    }
}

/// What a foreign key points at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parent {
    pub(crate) table_id: u32,
    pub(crate) columns: Vec<Ident>,
}
