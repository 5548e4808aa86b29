//! How the source's row wins where the destination's rows are in its way.
//!
//! Used by `destination::conflict` with `on_conflict = "source-wins"`, for a transaction that has failed row by row.
//! In come a change, its target and the unique keys that both ends have; out go the statements that leave the rows of
//! the change as the source has them, whatever stood there before:
//!
//! | change | here | then |
//! |---|---|---|
//! | insert | the key exists | the row gets the source's values, local columns stay |
//! | update | the row is missing | it is inserted, when the message holds all of it |
//! | insert, update | another row has a unique value of the new one | that row goes |
//! | delete | the row is missing | nothing |
//!
//! A rival may go only because the source, which has the same unique key, cannot have that row: a unique key that only
//! the destination has proves nothing, so there the conflict stays (*it stops rather than guesses*). The same for
//! deferrable keys, which may be violated between two changes; for checks and foreign keys, which no row of this
//! change can satisfy; and for a missing row whose unchanged TOAST values the stream did not send.

use crate::apply_plan::row_by_row::{self, NoIdentity, RowStatement};
use crate::apply_plan::source_wins_sql as sql;
use crate::apply_plan::source_wins_sql::{ColumnParameters, Own};
use crate::apply_plan::target::{Target, TargetIdentity};
use crate::apply_plan::unique_keys::{Unique, UniquePart};
use crate::catalog::schema::{ForeignKeyAction, IndexDefinition, TableDefinition};
use crate::pg::{Datum, Ident, Tuple, TypeId};
use crate::transaction::RowChange;
use crate::wire::OldTuple;

/// The unique keys of `destination` that `source` has too, and that are checked at once. Rivals are looked for as the types of the
/// columns compare them, so that no key is among them whose operator class compares otherwise.
pub fn shared_uniques(source: &TableDefinition, destination: &TableDefinition) -> Vec<Unique> {
    let usable = |index: &&IndexDefinition| {
        let is_plain = index.parts.iter().all(|part| part.compared_as.is_none());
        index.unique && index.valid && index.immediate && is_plain
    };
    let same = |index: &IndexDefinition| {
        source.indexes.iter().filter(usable).any(|at_source| {
            at_source.predicate == index.predicate
                && at_source.nulls_not_distinct == index.nulls_not_distinct
                && at_source.key() == index.key()
        })
    };
    let unique = |index: &IndexDefinition| {
        let part =
            index.parts.iter().filter(|part| !part.included).map(|part| match (&part.column, &part.expression) {
                (Some(name), _) => Some(UniquePart::Column { name: name.clone(), equality: part.equality.clone() }),
                (None, Some(sql)) => Some(UniquePart::Expression { sql: sql.clone(), equality: part.equality.clone() }),
                (None, None) => None,
            });
        Some(Unique {
            parts: part.collect::<Option<Vec<_>>>()?,
            predicate: index.predicate.clone(),
            nulls_not_distinct: index.nulls_not_distinct,
        })
    };
    destination.indexes.iter().filter(usable).filter(|index| same(index)).filter_map(unique).collect()
}

/// Whether rows of the table may go without taking rows of other tables with them.
pub fn may_remove_rows(table: &TableDefinition, foreign_keys_act: bool) -> bool {
    let harmless = |action| matches!(action, ForeignKeyAction::NoAction | ForeignKeyAction::Restrict);
    !foreign_keys_act || table.referenced_by.iter().all(|key| harmless(key.on_delete))
}

/// What the number of rows that a statement touched says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountMeaning {
    /// Nothing.
    Nothing,
    /// A delete: 0 when its row was missing, which is no conflict.
    Deletes,
    /// Rows that were in the way and are gone.
    RemovesRivals,
    /// 0 when the row to insert existed and was overwritten.
    Overwrites,
    /// Rows to update that were missing and are there again.
    Restores,
}

/// A statement with its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement<'a> {
    /// SQL.
    pub sql: String,
    /// The parameters' types.
    pub types: Vec<TypeId>,
    /// Their values.
    pub values: Vec<Datum<'a>>,
    /// What its row count says.
    pub meaning: CountMeaning,
}

/// The statements that make a row's change win, in order. `uniques` are those whose rivals may be removed.
///
/// # Errors
/// [`NoIdentity`] for an update or delete of a table without replica identity.
pub fn winning<'a>(
    target: &Target,
    uniques: &[Unique],
    change: &'a RowChange,
) -> Result<Vec<Statement<'a>>, NoIdentity> {
    let Some(statement) = row_by_row::statement(target, change)? else { return Ok(Vec::new()) };
    Ok(match change {
        RowChange::Insert { new, .. } => insert(target, uniques, new),
        RowChange::Update { old, new, .. } => update(target, uniques, &statement, change, old.as_ref(), new),
        RowChange::Delete { .. } => vec![plain(target, &statement, change, CountMeaning::Deletes)],
    })
}

fn plain<'a>(target: &Target, statement: &RowStatement, change: &'a RowChange, meaning: CountMeaning) -> Statement<'a> {
    let mut values = Vec::new();
    row_by_row::row_parameters(target, statement, change.identity(), change.image(), |value| values.push(value));
    Statement {
        sql: row_by_row::sql(target, statement),
        types: row_by_row::parameter_types(target, statement),
        values,
        meaning,
    }
}

fn insert<'a>(target: &Target, uniques: &[Unique], new: &'a Tuple) -> Vec<Statement<'a>> {
    let row = WinningRow::new(target, new, None, None);
    // The statement has the values of what is stored; a row with a generated key is not looked for by it.
    let key = match &target.identity {
        TargetIdentity::Key(key) => {
            Some(key.as_slice()).filter(|key| key.iter().all(|index| target.column(*index).is_some()))
        }
        TargetIdentity::WholeRow | TargetIdentity::None => None,
    };
    let own = key.map_or(Own::Nobody, Own::New);
    let mut statements = row.remove_rivals(uniques, own, key);
    match key {
        Some(key) => {
            let settable = |index: &usize| target.column(*index).is_some_and(|column| !column.identity_always);
            let set: Vec<usize> = row.stored.iter().copied().filter(settable).collect();
            let sql = sql::insert_or_overwrite(target, &set, key, &row.parameters());
            statements.push(row.statement(sql, CountMeaning::Overwrites));
        }
        None => {
            let sql = row_by_row::sql(target, &RowStatement::Insert);
            statements.push(row.statement(sql, CountMeaning::Nothing));
        }
    }
    statements
}

fn update<'a>(
    target: &Target,
    uniques: &[Unique],
    statement: &RowStatement,
    change: &'a RowChange,
    old: Option<&'a OldTuple>,
    new: &'a Tuple,
) -> Vec<Statement<'a>> {
    let set: &[usize] = match statement {
        RowStatement::Update { set } => set,
        RowStatement::Insert | RowStatement::Delete => &[],
    };
    let identity = old.map_or(new, OldTuple::tuple);
    let whole_old = match old {
        Some(OldTuple::Row(row)) => Some(row),
        Some(OldTuple::Key(_)) | None => None,
    };
    let row = WinningRow::new(target, new, whole_old, Some(identity));
    let (own, key) = match &target.identity {
        TargetIdentity::Key(key) => (Own::Old(key), Some(key.as_slice())),
        TargetIdentity::WholeRow | TargetIdentity::None => (Own::Nobody, None),
    };
    // Without a key nothing tells the row itself from its rivals. A key that stays has none.
    let same_key = key.filter(|key| old.is_none() || key.iter().all(|at| value(identity, *at) == value(new, *at)));
    let mut statements = if key.is_some() { row.remove_rivals(uniques, own, same_key) } else { Vec::new() };
    if row.is_whole() {
        let parameters = row.parameters();
        let sql = match key {
            Some(key) => sql::update_or_restore(target, set, key, &parameters),
            None => sql::update_whole_row_or_restore(target, set, &parameters),
        };
        statements.push(row.statement(sql, CountMeaning::Restores));
    } else {
        statements.push(plain(target, statement, change, CountMeaning::Nothing));
    }
    statements
}

fn value(tuple: &Tuple, index: usize) -> Option<Datum<'_>> {
    tuple.columns().nth(index)
}

/// The values of a change, as every statement of it takes them.
struct WinningRow<'a, 't> {
    target: &'t Target,
    stored: Vec<usize>,
    types: Vec<TypeId>,
    values: Vec<Datum<'a>>,
}

impl<'a, 't> WinningRow<'a, 't> {
    /// `whole_old` holds unchanged TOAST values, where the source sends whole old rows; `identity` is the tuple by
    /// which the old row is found.
    fn new(
        target: &'t Target,
        new: &'a Tuple,
        whole_old: Option<&'a Tuple>,
        identity: Option<&'a Tuple>,
    ) -> WinningRow<'a, 't> {
        let stored: Vec<usize> = target.stored_columns().collect();
        let type_of = |index: &usize| target.key_column(*index).map(|column| column.type_id);
        let mut types: Vec<TypeId> = stored.iter().filter_map(type_of).collect();
        let of_new = |index: &usize| match (value(new, *index), whole_old) {
            (Some(Datum::UnchangedToast), Some(old)) => value(old, *index).unwrap_or(Datum::UnchangedToast),
            (found, _) => found.unwrap_or(Datum::Null),
        };
        let mut values: Vec<Datum<'a>> = stored.iter().map(of_new).collect();
        if let Some(identity) = identity {
            let found_by: &[usize] = match &target.identity {
                TargetIdentity::Key(key) => key,
                TargetIdentity::WholeRow | TargetIdentity::None => &stored,
            };
            types.extend(found_by.iter().filter_map(type_of));
            values.extend(found_by.iter().map(|index| value(identity, *index).unwrap_or(Datum::Null)));
        }
        WinningRow { target, stored, types, values }
    }

    fn parameters(&self) -> ColumnParameters<'_> {
        ColumnParameters { stored: &self.stored }
    }

    fn statement(&self, sql: String, meaning: CountMeaning) -> Statement<'a> {
        Statement { sql, types: self.types.clone(), values: self.values.clone(), meaning }
    }

    /// Whether all values of the new row are here.
    fn is_whole(&self) -> bool {
        self.values.iter().take(self.stored.len()).all(|value| *value != Datum::UnchangedToast)
    }

    fn has(&self, name: &Ident) -> bool {
        let index = self.target.relation.columns.iter().position(|column| column.name == *name);
        let at = index.and_then(|index| self.stored.iter().position(|stored| *stored == index));
        at.and_then(|at| self.values.get(at)).is_some_and(|value| *value != Datum::UnchangedToast)
    }

    /// Statements that remove rows with unique values of the new one; `settled` is a key that needs none.
    fn remove_rivals(&self, uniques: &[Unique], own: Own<'_>, settled: Option<&[usize]>) -> Vec<Statement<'a>> {
        let is_settled = |unique: &Unique| {
            let Some(key) = settled.filter(|_| unique.predicate.is_none()) else { return false };
            let names: Vec<&Ident> = key
                .iter()
                .filter_map(|index| self.target.relation.columns.get(*index))
                .map(|column| &column.name)
                .collect();
            unique.parts.len() == names.len()
                && unique.parts.iter().all(|part| match part {
                    UniquePart::Column { name, .. } => names.contains(&name),
                    UniquePart::Expression { .. } => false,
                })
        };
        let is_known = |unique: &Unique| {
            let columns_only = unique.predicate.is_none();
            let known = |part: &UniquePart| match part {
                UniquePart::Column { name, .. } => self.has(name),
                // It may speak of any column.
                UniquePart::Expression { .. } => self.is_whole(),
            };
            unique.parts.iter().all(known) && (columns_only || self.is_whole())
        };
        uniques
            .iter()
            .filter(|unique| !is_settled(unique) && is_known(unique))
            .filter_map(|unique| sql::remove_rivals(self.target, unique, &self.parameters(), own))
            .map(|sql| self.statement(sql, CountMeaning::RemovesRivals))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::pg::QualifiedName;
    use crate::pg::{Column as RelationColumn, Relation, RelationId, ReplicaIdentity};
    use crate::testing::{TestColumn, table, types, unique_index};

    fn definition() -> TableDefinition {
        let columns = [TestColumn::new("id", 23).not_null(), TestColumn::new("name", 25), TestColumn::new("body", 25)];
        let mut table = table("t", &columns);
        table.indexes.push(unique_index("t_name_key", &[Ident::new("name")], false));
        let parts = table.indexes.iter_mut().flat_map(|index| &mut index.parts);
        parts.for_each(|part| part.equality = Some(QualifiedName::new("pg_catalog", "=")));
        table
    }

    fn target(definition: &TableDefinition, replica_identity: ReplicaIdentity) -> Target {
        let column = |(at, column): (usize, &crate::catalog::schema::ColumnDefinition)| RelationColumn {
            name: column.name.clone(),
            in_identity: at == 0,
            type_id: column.type_id,
            type_modifier: -1,
        };
        let relation = Relation {
            leaves: Default::default(),
            id: RelationId(1),
            name: definition.name(),
            replica_identity,
            columns: definition.columns.iter().enumerate().map(column).collect(),
        };
        Target::bind(&Arc::new(relation), definition, &types(), Some(definition)).unwrap()
    }

    fn tuple(values: &[Option<&str>]) -> Tuple {
        let mut data = Vec::new();
        for value in values {
            match value {
                Some("unchanged") => data.push(b'u'),
                Some(value) => {
                    data.push(b't');
                    data.extend(i32::try_from(value.len()).unwrap().to_be_bytes());
                    data.extend(value.as_bytes());
                }
                None => data.push(b'n'),
            }
        }
        Tuple::new(u16::try_from(values.len()).unwrap(), Bytes::from(data)).unwrap()
    }

    fn shown(target: &Target, uniques: &[Unique], change: &RowChange) -> Vec<String> {
        let statements = winning(target, uniques, change).unwrap();
        let is_target = crate::apply_plan::target_guard::is_target(target);
        let shown = |sql: &str| sql.replace(&is_target, "is_target").replace('"', "");
        statements.into_iter().map(|s| format!("{:?}: {}", s.meaning, shown(&s.sql))).collect()
    }

    #[test]
    fn an_insert_removes_rivals_and_overwrites_the_row_with_its_key() {
        let table = definition();
        let target = target(&table, ReplicaIdentity::Default);
        let uniques = shared_uniques(&table, &table);
        let new = tuple(&[Some("1"), Some("a"), Some("b")]);
        let insert = RowChange::Insert { relation: Arc::clone(&target.relation), new };
        assert_eq!(
            shown(&target, &uniques, &insert),
            [
                "RemovesRivals: DELETE FROM ONLY public.t WHERE name OPERATOR(pg_catalog.=) $2 \
                 AND NOT (id OPERATOR(pg_catalog.=) $1) AND is_target",
                "Overwrites: WITH changed AS (UPDATE ONLY public.t SET id = $1, name = $2, body = $3 \
                 WHERE id OPERATOR(pg_catalog.=) $1 RETURNING 1) INSERT INTO public.t (id, name, body) SELECT $1, $2, $3 \
                 WHERE NOT EXISTS (SELECT FROM changed) AND is_target",
            ]
        );
    }

    #[test]
    fn an_update_that_changes_its_key_removes_whoever_has_the_new_one() {
        let table = definition();
        let target = target(&table, ReplicaIdentity::Default);
        let uniques = shared_uniques(&table, &table);
        let old = Some(OldTuple::Key(tuple(&[Some("1"), None, None])));
        let new = tuple(&[Some("2"), Some("a"), Some("b")]);
        let update = RowChange::Update { relation: Arc::clone(&target.relation), old, new };
        let statements = shown(&target, &uniques, &update);
        assert_eq!(
            statements.first().map(String::as_str),
            Some(
                "RemovesRivals: DELETE FROM ONLY public.t WHERE id OPERATOR(pg_catalog.=) $1 \
                 AND NOT (id OPERATOR(pg_catalog.=) $4) AND is_target"
            )
        );
        assert_eq!(statements.len(), 3);
    }

    #[test]
    fn a_missing_row_of_which_the_stream_did_not_send_everything_is_not_made_up() {
        let table = definition();
        let target = target(&table, ReplicaIdentity::Default);
        let new = tuple(&[Some("1"), Some("a"), Some("unchanged")]);
        let update = RowChange::Update { relation: Arc::clone(&target.relation), old: None, new };
        let statements = shown(&target, &shared_uniques(&table, &table), &update);
        assert_eq!(statements.len(), 2);
        assert!(statements[1].starts_with("Nothing: WITH changed AS (UPDATE"), "{}", statements[1]);
        assert!(statements[1].contains("headwater.expect"), "a missing row stays a conflict: {}", statements[1]);
    }

    #[test]
    fn an_unchanged_toast_value_comes_from_the_whole_old_row_where_the_source_sends_it() {
        let table = definition();
        let target = target(&table, ReplicaIdentity::Full);
        let old = Some(OldTuple::Row(tuple(&[Some("1"), Some("a"), Some("large")])));
        let new = tuple(&[Some("1"), Some("b"), Some("unchanged")]);
        let update = RowChange::Update { relation: Arc::clone(&target.relation), old, new };
        let statements = winning(&target, &[], &update).unwrap();
        let [restore] = statements.as_slice() else { panic!("{statements:?}") };
        assert_eq!(restore.meaning, CountMeaning::Restores);
        assert_eq!(restore.values.get(2), Some(&Datum::Text(b"large")));
    }

    #[test]
    fn only_unique_keys_that_the_source_has_too_and_checks_at_once_make_rivals_go() {
        let here = definition();
        let mut there = here.clone();
        assert_eq!(shared_uniques(&there, &here).len(), 2);
        there.indexes.retain(|index| index.primary);
        assert_eq!(shared_uniques(&there, &here).len(), 1, "the destination's own unique key proves nothing");
        let mut deferrable = here.clone();
        deferrable.indexes.iter_mut().for_each(|index| index.immediate = index.primary);
        assert_eq!(shared_uniques(&here, &deferrable).len(), 1);
        let mut partial = here.clone();
        partial.indexes.iter_mut().for_each(|index| index.predicate = Some("(id > 0)".into()));
        assert_eq!(shared_uniques(&here, &partial).len(), 0);
    }

    #[test]
    fn rows_that_would_take_others_with_them_stay() {
        let mut table = definition();
        assert!(may_remove_rows(&table, true));
        table.referenced_by.push(crate::catalog::schema::IncomingForeignKey {
            name: Ident::new("fk"),
            schema: Ident::new("public"),
            table: Ident::new("child"),
            index: None,
            on_delete: ForeignKeyAction::Cascade,
            on_update: ForeignKeyAction::NoAction,
        });
        assert!(!may_remove_rows(&table, true));
        assert!(may_remove_rows(&table, false), "in the replica role foreign keys do not act");
    }

    #[test]
    fn expressions_and_predicates_are_asked_of_the_new_row() {
        let mut table = definition();
        let part = |index: &mut IndexDefinition| {
            index.predicate = Some("(body IS NOT NULL)".into());
            for part in &mut index.parts {
                (part.column, part.expression) = (None, Some("lower(name)".into()));
            }
        };
        table.indexes.iter_mut().filter(|index| !index.primary).for_each(part);
        let target = target(&table, ReplicaIdentity::Default);
        let new = tuple(&[Some("1"), Some("a"), Some("b")]);
        let insert = RowChange::Insert { relation: Arc::clone(&target.relation), new };
        let statements = shown(&target, &shared_uniques(&table, &table), &insert);
        assert_eq!(
            statements.first().map(String::as_str),
            Some(
                "RemovesRivals: DELETE FROM ONLY public.t WHERE (lower(name)) OPERATOR(pg_catalog.=) \
                 (SELECT (lower(name)) FROM (SELECT $1 AS id, $2 AS name, $3 AS body) AS new) AND ((body IS NOT NULL)) AND \
                 (SELECT ((body IS NOT NULL)) FROM (SELECT $1 AS id, $2 AS name, $3 AS body) AS new) \
                 AND NOT (id OPERATOR(pg_catalog.=) $1) AND is_target"
            )
        );
    }
}
