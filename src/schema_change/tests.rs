//! What follows from a source table's change, by small tables.

use super::*;
use crate::catalog::fit;
use crate::catalog::schema::{
    GeneratedColumn, IdentityColumn, Partition, SequenceOptions, SequenceType, TableDefinition, TableKind,
};
use crate::pg::RelationId;
use crate::testing::{TestColumn as Of, table, types, unique_index};

const INT: u32 = 23;
const BIGINT: u32 = 20;
const TEXT: u32 = 25;
const VARCHAR: u32 = 1043;

fn relation(table: &TableDefinition, columns: &[&str]) -> Relation {
    let find = |name: &&str| table.columns.iter().find(|column| column.name.as_str() == *name).expect("a column");
    let column = |name: &&str| {
        let ColumnDefinition { name, type_id, type_modifier, .. } = find(name);
        Column { name: name.clone(), in_identity: false, type_id: *type_id, type_modifier: *type_modifier }
    };
    Relation {
        leaves: Default::default(),
        id: RelationId(table.id),
        name: table.name(),
        replica_identity: table.replica_identity,
        columns: columns.iter().map(column).collect(),
    }
}

/// A table with these columns under these numbers.
fn numbered(columns: &[(i16, Of)]) -> TableDefinition {
    let definitions: Vec<Of> = columns.iter().map(|(_, column)| column.clone()).collect();
    let mut table = table("t", &definitions);
    for (column, (number, _)) in table.columns.iter_mut().zip(columns) {
        column.number = *number;
    }
    table.attributes = columns.iter().map(|(number, _)| *number).max().unwrap_or(0);
    table
}

fn start() -> TableDefinition {
    numbered(&[(1, Of::new("id", INT).not_null()), (2, Of::new("a", TEXT)), (3, Of::new("b", INT).not_null())])
}

/// What follows when the table was as at the start, the stream describes these columns of `described`, and the catalog
/// holds `now`.
fn follow_described(
    described: &TableDefinition,
    columns: &[&str],
    now: &TableDefinition,
) -> Result<(Evolution, Shape), FollowObstacle> {
    follow_into(&start(), described, columns, now)
}

/// The same, into this table.
fn follow_into(
    here: &TableDefinition,
    described: &TableDefinition,
    columns: &[&str],
    now: &TableDefinition,
) -> Result<(Evolution, Shape), FollowObstacle> {
    follow_from(&start(), here, described, columns, now)
}

/// The same, when the table was as `before`.
fn follow_from(
    before: &TableDefinition,
    here: &TableDefinition,
    described: &TableDefinition,
    columns: &[&str],
    now: &TableDefinition,
) -> Result<(Evolution, Shape), FollowObstacle> {
    let (types, expressions) = (types(), crate::testing::expressions());
    let names: Vec<Ident> = columns.iter().map(|name| Ident::new(*name)).collect();
    let creation = Creation {
        table: now,
        schema: &Ident::new("public"),
        type_sql: &|column| fit::type_sql(column.type_id, column.type_modifier, &crate::testing::types()).unwrap(),
        types: &types,
        expressions: &expressions,
        columns: &names,
    };
    let known = Shape::of(before, &types, |_| true);
    TableChange {
        known: &known,
        relation: &relation(described, columns),
        source: End { table: now, types: &types },
        destination: End { table: here, types: &types },
        creation: &creation,
        measured: &Measured::default(),
        commit_lsn: Lsn::new(500),
    }
    .follow()
}

fn follow(columns: &[&str], now: &TableDefinition) -> Result<(Evolution, Shape), FollowObstacle> {
    follow_described(now, columns, now)
}

fn statements(columns: &[&str], now: &TableDefinition) -> Vec<String> {
    follow(columns, now).unwrap().0.statements
}

/// The statements of new sequences, each under its first name.
fn sequences(evolution: &Evolution) -> Vec<&str> {
    evolution.sequences.iter().flat_map(NewSequence::statements).map(String::as_str).collect()
}

fn id() -> (i16, Of) {
    (1, Of::new("id", INT).not_null())
}

fn a() -> (i16, Of) {
    (2, Of::new("a", TEXT))
}

fn b() -> (i16, Of) {
    (3, Of::new("b", INT).not_null())
}

#[test]
fn nothing_follows_from_the_same_table() {
    let (evolution, shape) = follow(&["id", "a", "b"], &start()).unwrap();
    assert_eq!(evolution, Evolution::default());
    assert_eq!(shape, Shape::of(&start(), &types(), |_| true));
}

#[test]
fn an_added_column_gets_what_old_rows_hold() {
    let mut now = numbered(&[id(), a(), b(), (4, Of::new("c", TEXT).not_null()), (5, Of::new("d", INT))]);
    now.columns[3].missing_value = Some("{it's}".to_owned());
    assert_eq!(
        statements(&["id", "a", "b", "c", "d"], &now),
        [
            "ALTER TABLE \"public\".\"t\" ADD COLUMN \"c\" text DEFAULT 'it''s'::text NOT NULL",
            "ALTER TABLE \"public\".\"t\" ALTER COLUMN \"c\" DROP DEFAULT",
            "ALTER TABLE \"public\".\"t\" ADD COLUMN \"d\" int4",
        ]
    );
}

/// The column at this place draws from a sequence of its own.
fn drawing(table: &mut TableDefinition, index: usize, identity: Option<IdentityColumn>) {
    let column = &mut table.columns[index];
    column.identity = identity;
    column.default = identity.is_none().then(|| "nextval('there.t_s'::regclass)".to_owned());
    column.sequence = Some("there.\"t S\"".to_owned());
    column.sequence_options = Some(SequenceOptions {
        type_name: SequenceType::Smallint,
        start: 30,
        increment: -3,
        least: -300,
        most: 30,
        cache: 1,
        cycles: false,
    });
}

const GIVEN: [&str; 4] = [
    "CREATE SEQUENCE \"public\".\"t S\" AS smallint INCREMENT BY -3 MINVALUE -300 MAXVALUE 30 START WITH 30 CACHE 1 NO CYCLE",
    "ALTER SEQUENCE \"public\".\"t S\" OWNER TO \"owner\"",
    "ALTER SEQUENCE \"public\".\"t S\" OWNED BY \"public\".\"t\".\"c\"",
    "ALTER TABLE \"public\".\"t\" ALTER COLUMN \"c\" SET DEFAULT pg_catalog.nextval('\"public\".\"t S\"'::pg_catalog.regclass)",
];

#[test]
fn a_column_that_draws_from_a_sequence_gets_one_as_its_default() {
    for identity in [None, Some(IdentityColumn::Always), Some(IdentityColumn::ByDefault)] {
        let mut now = numbered(&[id(), a(), b(), (4, Of::new("c", INT).not_null())]);
        drawing(&mut now, 3, identity);
        let (evolution, shape) = follow(&["id", "a", "b", "c"], &now).unwrap();
        assert_eq!(evolution.statements, ["ALTER TABLE \"public\".\"t\" ADD COLUMN \"c\" int4"]);
        assert_eq!(sequences(&evolution), GIVEN);
        let mut failed = shape.clone();
        evolution.sequences[0].undo(&mut failed);
        let promised = |shape: &Shape| shape.column(4).map(|column| column.sequence);
        assert_eq!((promised(&shape), promised(&failed)), (Some(true), Some(false)));
    }
    // A sequence of somebody else's is not taken over.
    let mut shared = numbered(&[id(), a(), b(), (4, Of::new("c", INT))]);
    drawing(&mut shared, 3, None);
    shared.columns[3].sequence = None;
    assert!(follow(&["id", "a", "b", "c"], &shared).unwrap().0.sequences.is_empty());
}

#[test]
fn a_column_that_gets_its_sequence_later_gets_one_here_too_unless_it_has_a_default() {
    let mut now = start();
    drawing(&mut now, 2, Some(IdentityColumn::Always));
    let (evolution, shape) = follow(&["id", "a", "b"], &now).unwrap();
    assert!(evolution.statements.is_empty());
    assert_eq!(evolution.sequences.len(), 1);
    assert!(shape.columns[2].sequence);
    let given = |fill: &dyn Fn(&mut ColumnDefinition)| {
        let mut here = start();
        fill(&mut here.columns[2]);
        follow_into(&here, &now, &["id", "a", "b"], &now).unwrap().0.sequences
    };
    assert_eq!(given(&|column| column.default = Some("7".to_owned())), []);
    assert_eq!(given(&|column| column.identity = Some(IdentityColumn::ByDefault)), []);
    assert_eq!(given(&|column| column.generated = Some(GeneratedColumn::Stored)), []);
}

#[test]
fn a_dropped_column_draws_no_more_and_asks_for_no_values() {
    for (identity, what) in [(None, "DEFAULT"), (Some(IdentityColumn::ByDefault), "IDENTITY")] {
        let (now, mut here) = (numbered(&[id(), a()]), start());
        drawing(&mut here, 2, identity);
        assert_eq!(
            follow_into(&here, &now, &["id", "a"], &now).unwrap().0.statements,
            [
                format!("ALTER TABLE \"public\".\"t\" ALTER COLUMN \"b\" DROP {what}"),
                "ALTER TABLE \"public\".\"t\" ALTER COLUMN \"b\" DROP NOT NULL".to_owned(),
            ]
        );
    }
}

#[test]
fn a_column_that_the_operator_has_prepared_is_left_as_it_is() {
    let c = || (4, Of::new("c", INT));
    let (mut now, here) = (numbered(&[id(), a(), b(), c()]), numbered(&[id(), a(), b(), c()]));
    drawing(&mut now, 3, None);
    assert_eq!(follow_into(&here, &now, &["id", "a", "b", "c"], &now).unwrap().0.sequences, []);
}

#[test]
fn a_rename_is_told_from_a_drop_and_an_addition_by_the_number() {
    assert_eq!(
        statements(&["id", "x", "b"], &numbered(&[id(), (2, Of::new("x", TEXT)), b()])),
        ["ALTER TABLE \"public\".\"t\" RENAME COLUMN \"a\" TO \"x\""]
    );
    assert_eq!(
        statements(&["id", "b", "x"], &numbered(&[id(), b(), (4, Of::new("x", TEXT))])),
        ["ALTER TABLE \"public\".\"t\" ADD COLUMN \"x\" text"]
    );
}

#[test]
fn names_that_change_hands_are_renamed_by_way_of_another() {
    let now = numbered(&[id(), (2, Of::new("b", TEXT)), (3, Of::new("a", INT).not_null())]);
    assert_eq!(
        statements(&["id", "b", "a"], &now),
        [
            "ALTER TABLE \"public\".\"t\" RENAME COLUMN \"a\" TO \"headwater renames 0\"",
            "ALTER TABLE \"public\".\"t\" RENAME COLUMN \"b\" TO \"headwater renames 1\"",
            "ALTER TABLE \"public\".\"t\" RENAME COLUMN \"headwater renames 0\" TO \"b\"",
            "ALTER TABLE \"public\".\"t\" RENAME COLUMN \"headwater renames 1\" TO \"a\"",
        ]
    );
}

#[test]
fn a_dropped_column_makes_room_for_one_that_takes_its_name() {
    let now = numbered(&[id(), (2, Of::new("b", TEXT))]);
    let (evolution, _) = follow(&["id", "b"], &now).unwrap();
    assert_eq!(
        evolution.statements,
        [
            "ALTER TABLE \"public\".\"t\" RENAME COLUMN \"b\" TO \"b_dropped\"",
            "ALTER TABLE \"public\".\"t\" RENAME COLUMN \"a\" TO \"b\"",
            "ALTER TABLE \"public\".\"t\" ALTER COLUMN \"b_dropped\" DROP NOT NULL",
        ]
    );
    assert_eq!(
        evolution.told,
        ["column a is now called b", "column b was dropped at the source; it stays here as b_dropped"]
    );
}

#[test]
fn a_dropped_column_stays_and_a_key_that_is_dropped_is_the_operators() {
    assert_eq!(
        statements(&["id", "a"], &numbered(&[id(), a()])),
        ["ALTER TABLE \"public\".\"t\" ALTER COLUMN \"b\" DROP NOT NULL"]
    );
    let Err(FollowObstacle::Misfits(misfits)) = follow(&["a", "b"], &numbered(&[a(), b()])) else { panic!() };
    assert!(misfits[0].remedy.as_ref().is_some_and(|sql| sql.contains("DROP CONSTRAINT t_pkey")), "{misfits:?}");
}

#[test]
fn a_wider_type_is_followed_and_another_one_is_not() {
    let wide = numbered(&[id(), a(), (3, Of::new("b", BIGINT).not_null())]);
    assert_eq!(statements(&["id", "a", "b"], &wide), ["ALTER TABLE \"public\".\"t\" ALTER COLUMN \"b\" TYPE int8"]);
    // Which expression has made the values nobody knows: no cast is proposed, the table is copied.
    let other = numbered(&[id(), a(), (3, Of::new("b", TEXT).not_null())]);
    let Err(FollowObstacle::Copy(reason)) = follow(&["id", "a", "b"], &other) else { panic!() };
    assert_eq!(reason, "column b was int4 and is now text");
    let mut rewritten = wide.clone();
    rewritten.files[0].file = 2;
    let Err(FollowObstacle::Copy(reason)) = follow(&["id", "a", "b"], &rewritten) else { panic!() };
    assert_eq!(reason, "column b was int4 and is now int8");
    // What takes every value already needs nothing.
    let narrow = numbered(&[id(), (2, Of::new("a", VARCHAR).modifier(24)), b()]);
    assert_eq!(statements(&["id", "a", "b"], &narrow), Vec::<String>::new());
}

#[test]
fn a_type_widened_twice_is_followed_step_by_step_while_the_catalog_is_ahead() {
    let with = |a: Of| numbered(&[id(), (2, a), b()]);
    let columns = ["id", "a", "b"];
    let known = with(Of::new("a", VARCHAR).modifier(9));
    let described = with(Of::new("a", VARCHAR).modifier(14));
    let step = |ahead: &TableDefinition, described: &TableDefinition| {
        follow_from(&known, &known, described, &columns, ahead).map(|(evolution, _)| evolution.statements)
    };
    let widened = Ok(vec!["ALTER TABLE \"public\".\"t\" ALTER COLUMN \"a\" TYPE varchar(10)".to_owned()]);
    assert_eq!(step(&with(Of::new("a", VARCHAR).modifier(19)), &described), widened);
    assert_eq!(step(&with(Of::new("a", TEXT)), &described), widened);
    assert_eq!(step(&with(Of::new("renamed", VARCHAR).modifier(14)), &described), widened);
    // What neither end has a name for by now comes with a copy.
    let gone = with(Of::new("a", 9_999));
    assert!(matches!(step(&with(Of::new("a", TEXT)), &gone), Err(FollowObstacle::Copy(_))));
}

#[test]
fn what_only_a_copy_can_tell_is_not_guessed() {
    let copy = |columns: &[&str], now: &TableDefinition| match follow(columns, now) {
        Err(FollowObstacle::Copy(reason)) => reason,
        other => panic!("{other:?}"),
    };
    let again = numbered(&[id(), b(), (4, Of::new("a", TEXT))]);
    assert_eq!(copy(&["id", "b", "a"], &again), "column a was dropped and added again");
    let gap = numbered(&[id(), a(), b(), (5, Of::new("c", TEXT))]);
    assert_eq!(copy(&["id", "a", "b", "c"], &gap), "columns were added and dropped again");
    let mut rewritten = numbered(&[id(), a(), b(), (4, Of::new("c", TEXT))]);
    rewritten.files[0].file = 2;
    assert!(copy(&["id", "a", "b", "c"], &rewritten).contains("the table rewritten"));
    // VACUUM FULL keeps the TOAST table, and puts a new column's value for old rows into them; what an earlier version has remembered
    // does not say which it was.
    let (mut before, mut moved) = (start(), rewritten.clone());
    (before.files[0].toast, moved.files[0].toast) = (7, 7);
    let mut known = Shape::of(&before, &types(), |_| true);
    assert!(known.was_rewritten(&rewritten) && known.was_moved(&rewritten));
    assert!(!known.was_rewritten(&moved) && known.was_moved(&moved));
    (known.files, moved.storage) = (None, Some("2".to_owned()));
    assert!(known.was_rewritten(&moved));
    let mut parted = start();
    parted.partitions = Some(vec![crate::catalog::schema::Partition {
        id: 9,
        name: crate::pg::QualifiedName::new("public", "t9"),
        kind: crate::catalog::schema::TableKind::Ordinary,
        persistence: 'p',
        attached: true,
    }]);
    assert!(copy(&["id", "a", "b"], &parted).contains("attached"));
}

#[test]
fn a_catalog_that_is_ahead_tells_only_what_the_stream_has_come_to() {
    let described = numbered(&[id(), a(), b(), (4, Of::new("c", TEXT))]);
    let mut ahead = numbered(&[id(), a(), b(), (4, Of::new("c", TEXT)), (5, Of::new("d", INT))]);
    ahead.columns[3].missing_value = Some("{x}".to_owned());
    ahead.files[0].file = 2;
    let (evolution, shape) = follow_described(&described, &["id", "a", "b", "c"], &ahead).unwrap();
    assert_eq!(evolution.statements.len(), 2, "{evolution:?}");
    assert_eq!((shape.attributes, shape.columns.len()), (4, 4));
    assert_eq!(shape.files, Some(start().files), "the rewrite is noticed with the column that it filled");
}

#[test]
fn a_table_that_is_copied_anew_gets_the_columns_alone() {
    let (types, expressions) = (types(), crate::testing::expressions());
    let reshape = |now: &TableDefinition| {
        let names: Vec<Ident> = now.columns.iter().map(|column| column.name.clone()).collect();
        let columns: Vec<&str> = names.iter().map(Ident::as_str).collect();
        let creation = Creation {
            table: now,
            schema: &Ident::new("public"),
            type_sql: &|column| fit::type_sql(column.type_id, column.type_modifier, &types).unwrap(),
            types: &types,
            expressions: &expressions,
            columns: &names,
        };
        let (before, here) = (start(), start());
        TableChange {
            known: &Shape::of(&before, &types, |_| true),
            relation: &relation(now, &columns),
            source: End { table: now, types: &types },
            destination: End { table: &here, types: &types },
            creation: &creation,
            measured: &Measured::default(),
            commit_lsn: Lsn::new(500),
        }
        .reshape()
    };
    let mut now = numbered(&[id(), (2, Of::new("x", TEXT)), b(), (4, Of::new("c", INT).not_null())]);
    now.files[0].file = 2;
    drawing(&mut now, 3, None);
    let (evolution, shape) = reshape(&now).unwrap();
    assert_eq!(
        evolution.statements,
        [
            "ALTER TABLE \"public\".\"t\" RENAME COLUMN \"a\" TO \"x\"",
            "ALTER TABLE \"public\".\"t\" ADD COLUMN \"c\" int4",
        ]
    );
    assert_eq!((evolution.fills.len(), evolution.attempts.len()), (0, 0));
    assert_eq!(sequences(&evolution), GIVEN, "which depends on no rows");
    assert!(shape.column(4).is_some_and(|column| column.sequence));
    let promised: Vec<bool> = shape.columns.iter().map(|column| column.not_null).collect();
    assert_eq!(promised, [true, false, true, false], "what the old rows do not keep is promised later");
    // Dropped and added again: the column that is here takes the copy's values, NULL too.
    let again = numbered(&[id(), a(), (4, Of::new("b", INT))]);
    assert_eq!(
        reshape(&again).unwrap().0.statements,
        ["ALTER TABLE \"public\".\"t\" ALTER COLUMN \"b\" DROP NOT NULL"]
    );
    // Another type would lose what is here.
    let other = numbered(&[id(), a(), (4, Of::new("b", TEXT))]);
    assert!(matches!(reshape(&other), Err(FollowObstacle::Misfits(_))));
    // The key does not let it be empty.
    let wider = numbered(&[a(), b(), (4, Of::new("id", BIGINT).not_null())]);
    let Err(FollowObstacle::Misfits(misfits)) = reshape(&wider) else { panic!() };
    assert_eq!(
        misfits[0].remedy.as_deref(),
        Some("ALTER TABLE public.t DROP CONSTRAINT t_pkey;\nALTER TABLE public.t ALTER COLUMN id DROP NOT NULL;")
    );
}

#[test]
fn a_table_that_has_its_old_name_back_is_followed_under_it() {
    let mut described = start();
    described.table = Ident::new("u");
    let (evolution, shape) = follow_described(&described, &["id", "a", "b"], &start()).unwrap();
    assert_eq!((evolution, shape.name), (Evolution::default(), start().name()));
    assert!(matches!(
        follow_described(&described, &["id", "a", "b"], &described),
        Err(FollowObstacle::Renamed(name)) if name == described.name()
    ));
}

#[test]
fn a_column_that_was_there_and_was_not_published_is_copied() {
    let before = numbered(&[id(), b()]);
    let obstacle = follow_from(&before, &before, &start(), &["id", "a", "b"], &start()).unwrap_err();
    assert_eq!(obstacle, FollowObstacle::Copy("column a was not published before, or was generated".to_owned()));
}

#[test]
fn a_new_unique_index_is_tried_once_unless_it_exists_or_lacks_a_column() {
    let mut now = start();
    now.indexes.push(unique_index("t_a_key", &[Ident::new("a")], false));
    let attempts = |here: &TableDefinition, columns: &[&str]| {
        let (evolution, _) = follow_into(here, &now, columns, &now).unwrap();
        evolution.attempts.into_iter().map(|attempt| attempt.statement).collect::<Vec<_>>()
    };
    let created = r#"CREATE UNIQUE INDEX "t_a_key" ON "public"."t" USING "btree" ("a" NULLS LAST)"#;
    assert_eq!(attempts(&start(), &["id", "a", "b"]), [created]);
    assert_eq!(attempts(&now, &["id", "a", "b"]), [""; 0], "it is there");
    let mut ahead = numbered(&[id(), a(), b(), (4, Of::new("c", INT))]);
    ahead.indexes.push(unique_index("t_c_key", &[Ident::new("c")], false));
    let (evolution, _) = follow(&["id", "a", "b"], &ahead).unwrap();
    assert!(evolution.attempts.is_empty(), "its column does not come yet");
}

#[test]
fn partitions_that_were_attached_or_are_gone_are_copied_and_new_ones_are_not() {
    let leaf = |id: u32, attached: bool| Partition {
        id,
        name: crate::pg::QualifiedName::new("public", format!("t{id}")),
        kind: TableKind::Ordinary,
        persistence: 'p',
        attached,
    };
    let with = |leaves: Vec<Partition>| TableDefinition { partitions: Some(leaves), ..start() };
    let before = with(vec![leaf(10, true), leaf(11, false)]);
    let follow = |now: Vec<Partition>| {
        let now = with(now);
        follow_from(&before, &start(), &now, &["id", "a", "b"], &now).map(|(_, shape)| shape.partitions.len())
    };
    assert_eq!(follow(vec![leaf(10, true), leaf(11, false)]), Ok(2), "one that was attached long ago is known");
    assert_eq!(
        follow(vec![leaf(10, true), leaf(11, false), leaf(12, false)]),
        Ok(2),
        "a new one began empty, and is known from its first row on"
    );
    let copied = Err(FollowObstacle::Copy("partitions with rows of their own were attached, or detached".to_owned()));
    assert_eq!(follow(vec![leaf(10, true), leaf(11, false), leaf(12, true)]), copied);
    assert_eq!(follow(vec![leaf(10, true)]), copied);
}

#[test]
fn what_is_remembered_is_the_catalogs_once_the_stream_describes_all_of_it() {
    let mut now = numbered(&[id(), a(), b(), (4, Of::new("c", INT))]);
    now.columns[3].missing_value = Some("{7}".to_owned());
    now.storage = Some("2".to_owned());
    let storage = |columns: &[&str]| Some(follow(columns, &now).unwrap().1.storage);
    assert_eq!(storage(&["id", "a", "b", "c"]), now.storage);
    assert_eq!(storage(&["id", "a", "b"]), start().storage, "a rewrite that comes later must still be noticed");
}
