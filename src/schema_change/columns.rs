//! Which of a table's columns a Relation message means, by number.
//!
//! A Relation message carries names and types, and no numbers. Asked by `source::relation_tracker` to tell whether a description means
//! the columns that were known, and by [`super::TableChange`] to follow what has changed. In come the shape that was known, the
//! relation, and the source's catalog; out comes the number of each of the relation's columns, or why it cannot be told.
//!
//! The relation describes some moment after the known shape and not after the catalog was read. Names prove nothing: between
//! the three moments they may have changed hands any number of times. What holds at all of them is how PostgreSQL numbers
//! columns (`pg_attribute.attnum`, `pg_class.relnatts`; 14 to 18): a column keeps its number, a new one gets the next number, a
//! dropped one never comes back, and a relation lists the columns in the order of their numbers. So of the columns that the
//! relation may list,
//!
//! - one that is known and still there **must** be in it;
//! - one that is known and gone from the catalog **may** be in it, with any name;
//! - one that is new and still there may be in it, but then every older new one that is still there is in it too;
//! - one that is new and gone already may be in it, with any name and type.
//!
//! If exactly one choice gives as many columns as the relation has, with its types, that is the answer. Otherwise only a copy
//! has the right rows. Most changes leave one choice whatever the names are: nothing is gone, or nothing is new.

use std::collections::{BTreeMap, BTreeSet};

use crate::catalog::schema::{ColumnDefinition, TableDefinition};
use crate::catalog::shape::{Shape, ShapeColumn};
use crate::pg::{Column, Relation, TypeId};

/// A column that a relation may list.
struct RenameCandidate<'a> {
    number: i16,
    presence: Presence,
    known: Option<&'a ShapeColumn>,
    now: Option<&'a ColumnDefinition>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    /// It is known, and still there.
    Certain,
    /// It is known and gone, or was not published before.
    Possible,
    /// It is new, and still there: it is listed before any that was added later.
    Added,
    /// It was added since, and is gone already.
    AddedAndGone,
}

/// The numbers of the relation's columns, in their order.
///
/// # Errors
/// A sentence without its full stop: why the numbers cannot be told.
pub fn numbers(known: &Shape, relation: &Relation, now: &TableDefinition) -> Result<Vec<i16>, String> {
    let candidates = candidates(known, relation, now);
    // What was rewritten may have been of any type before.
    let found = match Choices::new(&candidates, &relation.columns, known.was_rewritten(now)).only() {
        Some(numbers) => numbers,
        None => return Err(reason(known, relation, now)),
    };
    let is_there = |number: i16| now.columns.iter().any(|live| live.number == number);
    for (column, number) in relation.columns.iter().zip(&found).filter(|(_, number)| **number > known.attributes) {
        if known.columns.iter().any(|before| before.name == column.name && !is_there(before.number)) {
            return Err(format!("column {} was dropped and added again", column.name));
        }
        // What its old rows hold is known of it as it is now. And one that was generated for a while was not listed then: the
        // one behind it may be meant.
        let is_as_described =
            |live: &&ColumnDefinition| live.number == *number && live.name == column.name && is_of_type(live, column);
        if !now.columns.iter().any(|live| is_as_described(&live)) {
            return Err(format!("column {} has changed again since", column.name));
        }
    }
    Ok(found)
}

/// Whether a column of the catalog has the type that the relation says.
pub(super) fn is_of_type(definition: &ColumnDefinition, column: &Column) -> bool {
    definition.type_id == column.type_id && definition.type_modifier == column.type_modifier
}

/// Why no choice is the only one, in an operator's words.
fn reason(known: &Shape, relation: &Relation, now: &TableDefinition) -> String {
    let is_there = |number: i16| now.columns.iter().any(|live| live.number == number);
    let gone: Vec<&ShapeColumn> = known.columns.iter().filter(|column| !is_there(column.number)).collect();
    let replaced = gone.iter().find(|gone| now.column(&gone.name).is_some_and(|live| live.number > known.attributes));
    if let Some(replaced) = replaced {
        return format!("column {} was dropped and added again", replaced.name);
    }
    if (known.attributes + 1..=now.attributes).any(|number| !is_there(number)) {
        return "columns were added and dropped again".to_owned();
    }
    if gone.is_empty() {
        let listed = |column: &&Column| !now.columns.iter().any(|live| live.name == column.name);
        return match relation.columns.iter().find(listed) {
            Some(column) => format!("column {} has changed again since", column.name),
            None => "its columns have changed again since".to_owned(),
        };
    }
    "columns were dropped and others added, and which of them its rows have cannot be told".to_owned()
}

fn candidates<'a>(known: &'a Shape, relation: &Relation, now: &'a TableDefinition) -> Vec<RenameCandidate<'a>> {
    let before: BTreeMap<i16, &ShapeColumn> = known.columns.iter().map(|column| (column.number, column)).collect();
    let live: BTreeMap<i16, &ColumnDefinition> = now.columns.iter().map(|column| (column.number, column)).collect();
    let listed: BTreeSet<_> = relation.columns.iter().map(|column| &column.name).collect();
    // Generated columns are listed only where the publication says so (18 and later), and then from the beginning.
    let hidden = |column: &ColumnDefinition| column.generated.is_some() && !listed.contains(&column.name);
    let last = known.attributes.max(now.attributes);
    let candidate = |number: i16| {
        let (known_column, now_column) = (before.get(&number).copied(), live.get(&number).copied());
        let presence = match (known_column, now_column) {
            (_, Some(column)) if hidden(column) => return None,
            (Some(_), Some(_)) => Presence::Certain,
            (Some(_), None) => Presence::Possible,
            (None, Some(_)) if number > known.attributes => Presence::Added,
            (None, Some(_)) => Presence::Possible,
            (None, None) if number > known.attributes => Presence::AddedAndGone,
            (None, None) => return None,
        };
        Some(RenameCandidate { number, presence, known: known_column, now: now_column })
    };
    (1..=last).filter_map(candidate).collect()
}

impl RenameCandidate<'_> {
    /// Whether it may have had the type of a relation's column.
    fn may_be(&self, column: &Column, rewritten: bool) -> bool {
        let was = self.known.map(|known| may_become(known.type_id, column.type_id));
        let will_be = self.now.map(|now| may_become(column.type_id, now.type_id));
        match self.presence {
            Presence::Certain | Presence::Added => rewritten || was == Some(true) || will_be == Some(true),
            Presence::Possible => rewritten || was.unwrap_or(true),
            Presence::AddedAndGone => true,
        }
    }
}

/// Whether a column of one type may be made one of the other without a rewrite of the table (`ATColumnChangeRequiresRewrite` in
/// tablecmds.c). User-defined types: always, for all that is known of their casts.
fn may_become(from: TypeId, to: TypeId) -> bool {
    if !from.is_built_in() || !to.is_built_in() {
        return true;
    }
    // text, xml, bpchar, varchar; timestamp, timestamptz; cidr, inet; bit, varbit; int4, oid and the types that are OIDs.
    const FAMILIES: [&[u32]; 5] = [
        &[25, 142, 1042, 1043],
        &[1114, 1184],
        &[650, 869],
        &[1560, 1562],
        &[23, 24, 26, 2202, 2203, 2204, 2205, 2206, 3734, 3769, 4089, 4096, 4191],
    ];
    from == to || FAMILIES.iter().any(|family| family.contains(&from.0) && family.contains(&to.0))
}

/// The ways to choose among the candidates so that they are the relation's columns, counted up to two.
struct Choices<'a> {
    candidates: &'a [RenameCandidate<'a>],
    columns: &'a [Column],
    rewritten: bool,
    /// By the place in the candidates, that in the columns, and whether one that was added has been passed over.
    ways: Vec<[u8; 2]>,
}

impl<'a> Choices<'a> {
    fn new(candidates: &'a [RenameCandidate<'a>], columns: &'a [Column], rewritten: bool) -> Choices<'a> {
        let mut choices = Choices { candidates, columns, rewritten, ways: Vec::new() };
        choices.ways = vec![[0, 0]; (candidates.len() + 1) * (columns.len() + 1)];
        let end = choices.at(candidates.len(), columns.len());
        choices.ways[end] = [1, 1];
        for candidate in (0..candidates.len()).rev() {
            for column in (0..=columns.len()).rev() {
                let at = choices.at(candidate, column);
                choices.ways[at] = [false, true].map(|passed| {
                    let taken = if choices.may_take(candidate, column, passed) {
                        choices.count(candidate + 1, column + 1, passed)
                    } else {
                        0
                    };
                    let left = match choices.candidates[candidate].presence {
                        Presence::Certain => 0,
                        Presence::Possible | Presence::AddedAndGone => choices.count(candidate + 1, column, passed),
                        Presence::Added => choices.count(candidate + 1, column, true),
                    };
                    (taken + left).min(2)
                });
            }
        }
        choices
    }

    fn at(&self, candidate: usize, column: usize) -> usize {
        candidate * (self.columns.len() + 1) + column
    }

    fn count(&self, candidate: usize, column: usize, passed: bool) -> u8 {
        self.ways[self.at(candidate, column)][usize::from(passed)]
    }

    fn may_take(&self, candidate: usize, column: usize, passed: bool) -> bool {
        let Some(column) = self.columns.get(column) else { return false };
        let candidate = &self.candidates[candidate];
        let too_late = passed && matches!(candidate.presence, Presence::Added | Presence::AddedAndGone);
        !too_late && candidate.may_be(column, self.rewritten)
    }

    /// The numbers of the only choice.
    fn only(&self) -> Option<Vec<i16>> {
        if self.count(0, 0, false) != 1 {
            return None;
        }
        let (mut numbers, mut passed) = (Vec::new(), false);
        for (at, candidate) in self.candidates.iter().enumerate() {
            let column = numbers.len();
            if self.may_take(at, column, passed) && self.count(at + 1, column + 1, passed) == 1 {
                numbers.push(candidate.number);
            } else {
                passed |= candidate.presence == Presence::Added;
            }
        }
        Some(numbers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::{Ident, RelationId};
    use crate::testing;
    use crate::testing::types;

    const INT: u32 = 23;
    const TEXT: u32 = 25;
    const VARCHAR: u32 = 1043;

    /// `1 id, 3 b text`: the columns with their numbers; ints unless said. `5` alone: the numbers go up to it.
    fn table(columns: &str) -> TableDefinition {
        let mut last = 0;
        let mut definitions = Vec::new();
        for column in columns.split(", ") {
            let mut words = column.split(' ');
            let number: i16 = words.next().and_then(|word| word.parse().ok()).expect("a number");
            last = last.max(number);
            let Some(name) = words.next() else { continue };
            let (kind, generated) = match words.next() {
                Some("text") => (TEXT, None),
                Some("varchar") => (VARCHAR, None),
                Some("generated") => (INT, Some(crate::catalog::schema::GeneratedColumn::Stored)),
                Some(other) => panic!("{other}"),
                None => (INT, None),
            };
            definitions.push((number, name, kind, generated));
        }
        let named: Vec<testing::TestColumn> =
            definitions.iter().map(|(_, name, kind, _)| testing::TestColumn::new(name, *kind)).collect();
        let mut table = testing::table("t", &named);
        for (column, (number, _, _, generated)) in table.columns.iter_mut().zip(&definitions) {
            (column.number, column.generated) = (*number, *generated);
        }
        table.attributes = last;
        table
    }

    fn relation(columns: &str) -> Relation {
        let numbered: Vec<String> =
            columns.split(", ").enumerate().map(|(at, column)| format!("{} {column}", at + 1)).collect();
        let table = table(&numbered.join(", "));
        let column = |column: &ColumnDefinition| Column {
            name: column.name.clone(),
            in_identity: false,
            type_id: column.type_id,
            type_modifier: -1,
        };
        Relation {
            leaves: Default::default(),
            id: RelationId(1),
            name: table.name(),
            replica_identity: table.replica_identity,
            columns: table.columns.iter().map(column).collect(),
        }
    }

    fn known(columns: &str) -> Shape {
        let table = table(columns);
        let published: BTreeSet<Ident> = table
            .columns
            .iter()
            .filter(|column| column.generated.is_none())
            .map(|column| column.name.clone())
            .collect();
        Shape::of(&table, &types(), |name| published.contains(name))
    }

    fn found(before: &str, described: &str, now: &str) -> Result<Vec<i16>, String> {
        numbers(&known(before), &relation(described), &table(now))
    }

    #[test]
    fn numbers_are_found_whatever_the_names_were_meanwhile() {
        for (before, described, now, expected) in [
            ("1 id, 2 a", "id, a", "1 id, 2 a", vec![1, 2]),
            // Dropped, and the next one renamed to its name: that is gone from the catalog by now.
            ("1 id, 2 a, 3 b", "id, a", "1 id, 3 z", vec![1, 3]),
            // Two names changed hands, and have their owners back.
            ("1 id, 2 a, 3 b", "id, b, a", "1 id, 2 a, 3 b", vec![1, 2, 3]),
            // The catalog is ahead by a column and a name.
            ("1 id, 2 a", "id, a", "1 id, 2 x, 3 a", vec![1, 2]),
            ("1 id, 2 a", "id, a, c", "1 id, 2 a, 3 c, 4 d", vec![1, 2, 3]),
            // Ahead by two that are dropped, and by all that is dropped.
            ("1 id, 2 v, 3 r", "id, v, r", "1 id, 3", vec![1, 2, 3]),
            ("1 id, 2 v, 3 r", "id", "1 id, 3", vec![1]),
            // Dropped and added, of types that no column has had.
            ("1 id, 2 a", "id, c text", "1 id, 3 c text", vec![1, 3]),
            // What came and went behind the last column of the relation.
            ("1 id", "id, c", "1 id, 2 c, 3", vec![1, 2]),
            // Generated columns do not come; one whose expression was dropped does.
            ("1 id, 2 g generated", "id, c", "1 id, 2 g generated, 3 c", vec![1, 3]),
            ("1 id, 2 g generated", "id, g", "1 id, 2 g", vec![1, 2]),
            ("1 id, 2 g generated", "id", "1 id, 2 g", vec![1]),
        ] {
            assert_eq!(found(before, described, now), Ok(expected), "{before} | {described} | {now}");
        }
    }

    #[test]
    fn what_may_be_either_of_two_columns_is_not_told() {
        for (before, described, now, reason) in [
            // Dropped and added again under its name, then renamed; or renamed, then dropped, and another one added.
            ("1 id, 2 a", "id, a", "1 id, 3 c", "which of them its rows have"),
            ("1 id, 2 a", "id, c", "1 id, 3 c", "which of them its rows have"),
            ("1 id, 2 a varchar", "id, c text", "1 id, 3 c text", "which of them its rows have"),
            ("1 id, 2 a, 3 b", "id, b, y", "1 id, 3 b, 4 y", "which of them its rows have"),
            ("1 id, 2 a", "id, a", "1 id, 3 a", "column a was dropped and added again"),
            ("1 id, 2 a text, 3 b", "id, b, a text", "1 id, 3 b, 4 a text", "column a was dropped and added again"),
            // Added and gone again.
            ("1 id", "id, c", "1 id, 3 c", "columns were added and dropped again"),
            ("1 id", "id, c", "1 id, 2", "column c has changed again since"),
            // Of two that are dropped by now, one was there.
            ("1 id, 2 a, 3 b", "id, a", "1 id, 3", "which of them its rows have"),
            // Another name or type since.
            ("1 id", "id, c", "1 id, 2 d", "column c has changed again since"),
            ("1 id", "id, c varchar", "1 id, 2 c text", "column c has changed again since"),
            // It was hidden, or it came later.
            ("1 id, 2 g generated", "id, c", "1 id, 2 g, 3 c", "its columns have changed again since"),
        ] {
            let told = found(before, described, now).expect_err(&format!("{before} | {described} | {now}"));
            assert!(told.contains(reason), "{before} | {described} | {now}: {told}");
        }
    }

    #[test]
    fn after_a_rewrite_a_type_proves_nothing() {
        let now = |file: u32| {
            let mut now = table("1 id, 3 c text");
            now.files[0].file = file;
            now
        };
        let (known, relation) = (known("1 id, 2 a"), relation("id, c text"));
        assert_eq!(numbers(&known, &relation, &now(1)), Ok(vec![1, 3]));
        assert!(numbers(&known, &relation, &now(2)).is_err(), "a may have been made a text and renamed");
    }

    /// Random histories of a small table whose columns are of one type: the numbers are right, or they are not told.
    #[test]
    fn no_history_of_renames_drops_and_additions_is_taken_for_another() {
        let seed = fastrand::u64(..);
        let mut rng = fastrand::Rng::with_seed(seed);
        let (mut told, mut untold) = (0, 0);
        for _ in 0..20_000 {
            let mut live: Vec<(i16, usize)> = vec![(1, 0), (2, 1), (3, 2)];
            let mut last: i16 = 3;
            let mut moments = vec![(live.clone(), last)];
            for _ in 0..6 {
                match rng.u32(..3) {
                    0 if live.len() > 1 => drop(live.remove(rng.usize(..live.len()))),
                    1 if live.len() < 4 => {
                        let free = (0..5).find(|name| !live.iter().any(|(_, taken)| taken == name)).expect("a name");
                        last += 1;
                        live.push((last, free));
                    }
                    _ => {
                        let free: Vec<usize> =
                            (0..5).filter(|name| !live.iter().any(|(_, taken)| taken == name)).collect();
                        let at = rng.usize(..live.len());
                        live[at].1 = free[rng.usize(..free.len())];
                    }
                }
                moments.push((live.clone(), last));
            }
            let described = rng.usize(..moments.len());
            let now = rng.usize(described..moments.len());
            let text = |(live, last): &(Vec<(i16, usize)>, i16)| {
                let mut columns: Vec<String> = live.iter().map(|(number, name)| format!("{number} c{name}")).collect();
                columns.push(last.to_string());
                columns.join(", ")
            };
            let listed: Vec<String> = moments[described].0.iter().map(|(_, name)| format!("c{name}")).collect();
            let truth: Vec<i16> = moments[described].0.iter().map(|(number, _)| *number).collect();
            match found(&text(&moments[0]), &listed.join(", "), &text(&moments[now])) {
                Ok(numbers) => {
                    assert_eq!(numbers, truth, "seed {seed}: {moments:?}, described {described}, asked at {now}");
                    told += 1;
                }
                Err(_) => untold += 1,
            }
        }
        assert!(told > untold / 2, "{told} told, {untold} not");
    }
}
