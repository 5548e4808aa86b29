//! Sequences owned by replicated columns: which of them to move, and where to.
//!
//! Logical replication does not carry sequences. So `supervisor` reads both ends' now and then, and asks here. A destination's
//! sequence belongs to a source's when both are owned by the same column of the same table, whatever their names; it is
//! moved forward only, in its own direction, so that no value is ever given out twice at the destination. One whose type is
//! narrower than the source's gets the source's type: a migration from `integer` to `bigint` ends no sequence here. Limits that
//! somebody has chosen stay.

use serde::Deserialize;

use crate::catalog::schema::SequenceType;
use crate::config::SchemaChanges;
use crate::pg::{ErrorReport, Ident, QualifiedName};

/// A sequence and the column that owns it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct OwnedSequence {
    /// The column's table.
    pub table: QualifiedName,
    /// The column.
    pub column: Ident,
    /// The sequence.
    pub name: QualifiedName,
    /// It counts up.
    pub ascending: bool,
    /// Its type.
    pub data_type: SequenceType,
    /// The least value that it may have.
    pub least: i64,
    /// The greatest.
    pub most: i64,
    /// Our role may read it.
    pub readable: bool,
    /// Our role may set it.
    pub movable: bool,
    /// Our role may alter it.
    pub alterable: bool,
    /// Our role.
    pub role: Ident,
}

impl OwnedSequence {
    /// The same once `ALTER SEQUENCE … AS` has given it this type: limits that are the type's own become those of the new one
    /// (sequence.c: init_params).
    fn widened(&self, data_type: SequenceType) -> OwnedSequence {
        let ((least, most), (new_least, new_most)) = (self.data_type.limits(), data_type.limits());
        OwnedSequence {
            data_type,
            least: if self.least == least { new_least } else { self.least },
            most: if self.most == most { new_most } else { self.most },
            ..self.clone()
        }
    }
}

/// Where a sequence stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceState {
    /// The value last given out, or the first one to be.
    pub last_value: i64,
    /// `last_value` was given out.
    pub is_called: bool,
}

impl SequenceState {
    /// Whether a sequence that stands here has given out more than one that stands there.
    fn is_ahead_of(self, other: SequenceState, ascending: bool) -> bool {
        let (here, there) = (self.last_value, other.last_value);
        let further = if ascending { here > there } else { here < there };
        further || (here == there && self.is_called && !other.is_called)
    }
}

/// A destination's sequence and where it is to stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// The sequence at the destination.
    pub name: QualifiedName,
    /// It counts up.
    pub ascending: bool,
    /// Where the source's stands.
    pub to: SequenceState,
}

/// A destination's sequence and the type that it gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Widening {
    /// The sequence at the destination.
    pub name: QualifiedName,
    /// The source's.
    pub data_type: SequenceType,
}

/// What to do about the destination's sequences, and what cannot be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// To be widened, before any is moved.
    pub widenings: Vec<Widening>,
    /// To be moved.
    pub moves: Vec<Move>,
    /// For the operator.
    pub reports: Vec<ErrorReport>,
}

/// A sequence with its state, where it could be read.
pub type SequenceReading = (OwnedSequence, Option<SequenceState>);

/// Compares both ends. `changes` says whether a sequence may be altered, or only moved.
pub fn moves(source: &[SequenceReading], destination: &[SequenceReading], changes: SchemaChanges) -> Moves {
    let mut moves = Moves::default();
    for (from, there) in source {
        let owned = |to: &&SequenceReading| to.0.table == from.table && to.0.column == from.column;
        let Some((to, here)) = destination.iter().find(owned) else { continue };
        let Some(there) = there else {
            moves.reports.push(unreadable("source", "SELECT", from));
            continue;
        };
        let Some(here) = here else {
            moves.reports.push(unreadable("destination", "SELECT", to));
            continue;
        };
        if from.ascending != to.ascending {
            moves.reports.push(
                ErrorReport::new(format!("sequence {} at the destination counts the other way", to.name)).detail(
                    format!(
                        "Column {} of table {} draws from it; at the source it draws from {}.",
                        to.column, to.table, from.name
                    ),
                ),
            );
            continue;
        }
        let is_narrower = to.data_type < from.data_type;
        let may_widen = to.alterable && changes == SchemaChanges::Follow;
        let to = if is_narrower && may_widen { &to.widened(from.data_type) } else { to };
        if is_narrower && may_widen {
            moves.widenings.push(Widening { name: to.name.clone(), data_type: from.data_type });
        }
        let is_ahead = there.is_ahead_of(*here, to.ascending);
        if is_ahead && !(to.least..=to.most).contains(&there.last_value) {
            moves.reports.push(too_short(from, to));
            continue;
        }
        if is_narrower && !may_widen {
            moves.reports.push(narrower(from, to));
        }
        if !is_ahead {
            continue;
        }
        if !to.movable {
            moves.reports.push(unreadable("destination", "UPDATE", to));
            continue;
        }
        moves.moves.push(Move { name: to.name.clone(), ascending: to.ascending, to: *there });
    }
    moves
}

fn too_short(from: &OwnedSequence, to: &OwnedSequence) -> ErrorReport {
    // A limit that the type does not hold is refused.
    let of_type = if to.data_type < from.data_type { format!(" AS {}", from.data_type.sql()) } else { String::new() };
    ErrorReport::new(format!("sequence {} at the destination cannot follow: it ends before the source's", to.name))
        .hint(format!(
            "Run at the destination:\nALTER SEQUENCE {}{of_type} MINVALUE {} MAXVALUE {};",
            to.name, from.least, from.most
        ))
}

fn narrower(from: &OwnedSequence, to: &OwnedSequence) -> ErrorReport {
    let (there, here) = (from.data_type.sql(), to.data_type.sql());
    ErrorReport::new(format!("sequence {} is {there} at the source, but {here} at the destination", from.name))
        .detail(format!("Column {} of table {} draws from {} at the destination.", to.column, to.table, to.name))
        .hint(format!("Run at the destination as its owner:\nALTER SEQUENCE {} AS {there};", to.name))
}

/// What to say of a sequence that our role may not read or set.
pub fn unreadable(end: &str, privilege: &str, sequence: &OwnedSequence) -> ErrorReport {
    ErrorReport::new(format!(
        "sequence {} is not followed: our role lacks {privilege} on it at the {end}",
        sequence.name
    ))
    .detail(format!("Column {} of table {} draws from it.", sequence.column, sequence.table))
    .hint(format!(
        "Run at the {end} as its owner:\nGRANT {privilege} ON SEQUENCE {} TO {};",
        sequence.name, sequence.role
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(name: &str) -> OwnedSequence {
        OwnedSequence {
            table: QualifiedName::new("public", "t"),
            column: Ident::new("id"),
            name: QualifiedName::new("public", name),
            ascending: true,
            data_type: SequenceType::Bigint,
            least: 1,
            most: 1000,
            readable: true,
            movable: true,
            alterable: true,
            role: Ident::new("hw"),
        }
    }

    fn at(last_value: i64, is_called: bool) -> Option<SequenceState> {
        Some(SequenceState { last_value, is_called })
    }

    #[test]
    fn a_sequence_is_moved_forward_in_its_own_direction_and_never_back() {
        for (ascending, source, destination, moved) in [
            (true, at(7, true), at(1, false), true),
            (true, at(7, true), at(7, true), false),
            (true, at(7, true), at(7, false), true),
            (true, at(7, false), at(7, true), false),
            (true, at(7, true), at(8, false), false),
            (true, at(7, false), at(3, true), true),
            (false, at(7, true), at(9, true), true),
            (false, at(9, true), at(7, true), false),
            (false, at(7, true), at(7, false), true),
        ] {
            let from = OwnedSequence { ascending, ..sequence("a") };
            let to = OwnedSequence { ascending, ..sequence("b") };
            let found = moves(&[(from, source)], &[(to, destination)], SchemaChanges::Follow);
            let expected =
                moved.then(|| Move { name: QualifiedName::new("public", "b"), ascending, to: source.unwrap() });
            assert_eq!(found.moves, expected.into_iter().collect::<Vec<_>>(), "{ascending} {source:?} {destination:?}");
            assert!(found.reports.is_empty());
        }
    }

    #[test]
    fn what_cannot_follow_is_said_with_the_remedy() {
        let told = |from: OwnedSequence, there, to: OwnedSequence, here| {
            let found = moves(&[(from, there)], &[(to, here)], SchemaChanges::Follow);
            assert!(found.moves.is_empty());
            let [report] = found.reports.as_slice() else { panic!("{found:?}") };
            report.lines()
        };
        let text = told(sequence("a"), None, sequence("b"), at(1, true));
        assert!(text.contains("GRANT SELECT ON SEQUENCE public.a TO hw;"), "{text}");
        let fixed = OwnedSequence { movable: false, ..sequence("b") };
        let text = told(sequence("a"), at(5, true), fixed, at(1, true));
        assert!(text.contains("GRANT UPDATE ON SEQUENCE public.b TO hw;"), "{text}");
        let wide = OwnedSequence { most: i64::MAX, ..sequence("a") };
        let text = told(wide, at(5000, true), sequence("b"), at(1, true));
        assert!(text.contains("ALTER SEQUENCE public.b MINVALUE 1 MAXVALUE 9223372036854775807"), "{text}");
        let down = OwnedSequence { ascending: false, ..sequence("b") };
        let text = told(sequence("a"), at(5, true), down, at(1, true));
        assert!(text.contains("counts the other way"), "{text}");
    }

    #[test]
    fn a_column_without_a_sequence_at_the_destination_needs_none() {
        assert_eq!(moves(&[(sequence("a"), at(5, true))], &[], SchemaChanges::Follow), Moves::default());
    }

    #[test]
    fn a_sequence_gets_the_sources_wider_type_and_keeps_limits_that_somebody_chose() {
        let from = OwnedSequence { most: i64::MAX, ..sequence("a") };
        let int = |most: i64| OwnedSequence { data_type: SequenceType::Integer, most, ..sequence("b") };
        let found = |to: OwnedSequence, changes| {
            moves(&[(from.clone(), at(5_000_000_000, true))], &[(to, at(1, true))], changes)
        };
        let widened = found(int(i64::from(i32::MAX)), SchemaChanges::Follow);
        let name = QualifiedName::new("public", "b");
        assert_eq!(widened.widenings, [Widening { name: name.clone(), data_type: SequenceType::Bigint }]);
        assert_eq!(widened.moves.len(), 1);
        assert!(widened.reports.is_empty());
        let chosen = found(int(1000), SchemaChanges::Follow);
        assert_eq!((chosen.widenings.len(), chosen.moves.len()), (1, 0));
        let lines = |found: Moves| found.reports.iter().map(ErrorReport::lines).collect::<Vec<_>>().join("\n");
        assert!(lines(chosen).contains("ALTER SEQUENCE public.b MINVALUE 1 MAXVALUE 9223372036854775807;"));
        let with_type = "ALTER SEQUENCE public.b AS bigint MINVALUE 1 MAXVALUE 9223372036854775807;";
        let left = found(int(i64::from(i32::MAX)), SchemaChanges::Stop);
        assert_eq!((left.widenings.len(), left.moves.len()), (0, 0));
        assert!(lines(left).contains(with_type));
        let foreign = OwnedSequence { alterable: false, ..int(i64::from(i32::MAX)) };
        let early = moves(&[(from.clone(), at(7, true))], &[(foreign, at(1, true))], SchemaChanges::Follow);
        assert_eq!(early.moves.len(), 1, "it follows as long as it can");
        assert!(lines(early).contains("ALTER SEQUENCE public.b AS bigint;"));
        // The other way is nobody's matter.
        let wide = moves(&[(int(1000), at(7, true))], &[(sequence("b"), at(1, true))], SchemaChanges::Follow);
        assert!(wide.widenings.is_empty() && wide.reports.is_empty());
    }
}
