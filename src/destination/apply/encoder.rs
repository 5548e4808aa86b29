//! A pipelined request that is being written: its bytes, which change each statement carries out, and what the row counts will say.
//!
//! Made and finished by the functions of `requests`; `rows` and `sets` write changes into it. It is a value of one call: after an error it
//! is dropped, and nothing of it is left anywhere but statements in the [`RelationMap`] that the session never prepared. So an error
//! of encoding ends the session.

use std::sync::Arc;

use super::prepared::{PreparedStatement, SetStatement};
use super::relation_map::RelationMap;
use crate::apply_plan::row_by_row::RowStatement;
use crate::apply_plan::target::Target;
use crate::destination::conflict::{OverwriteCounts, Repair};
use crate::pg::Lsn;
use crate::session::{Format, PipelinedRequest};

/// Calls the function, not the view: a lock on pg_rewrite would keep the view waiting.
const REFUSE_REPLACED: &str = "SELECT CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_prepared_statement() AS s WHERE s.from_sql) \
     THEN headwater.statement_replaced() END";

/// What a request's counted statements are to say, in their order.
#[derive(Debug)]
pub(super) enum CountedRows {
    /// So many rows each. Only deletes may find fewer than they name: updates raise, COPY counts what it was given.
    Expected(Vec<u64>),
    /// The source's rows win: what each count means.
    Overwrite(OverwriteCounts),
}

/// What the row counts of an answer say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Effects {
    pub(super) repairs: Vec<Repair>,
    pub(super) missing_deletes: u64,
}

impl CountedRows {
    pub(super) fn conclude(self, counts: impl Iterator<Item = u64>) -> Effects {
        match self {
            CountedRows::Overwrite(counted) => {
                let (repairs, missing_deletes) = counted.conclude(counts);
                Effects { repairs, missing_deletes }
            }
            CountedRows::Expected(named) => {
                let missing = counts.zip(named).map(|(found, named)| named.saturating_sub(found));
                Effects { repairs: Vec::new(), missing_deletes: missing.sum() }
            }
        }
    }
}

/// A pipelined request, ready to be sent.
pub(super) struct Encoded {
    pub(super) request: PipelinedRequest,
    pub(super) expected: ExpectedAnswer,
}

impl Encoded {
    /// With `read_wal` the answer brings the destination's WAL positions as well, read after what the request does.
    pub(super) fn reading_wal(mut self, map: &mut RelationMap, read_wal: bool) -> Encoded {
        if read_wal {
            map.read_wal(&mut self.request);
        }
        self
    }
}

/// What must be known of a request when its answer comes.
#[derive(Debug)]
pub(super) struct ExpectedAnswer {
    pub(super) statement_offsets: StatementOffsets,
    pub(super) counts: CountedRows,
}

/// Which change each statement of a request carries out.
#[derive(Debug, Default)]
pub(super) struct StatementOffsets(Vec<StatementOffset>);

/// From this statement on they carry out that change, by its index in the task; `None`: no single one.
#[derive(Clone, Copy, Debug)]
struct StatementOffset {
    statement: usize,
    change: Option<usize>,
}

impl StatementOffsets {
    fn push(&mut self, statement: usize, change: Option<usize>) {
        self.0.push(StatementOffset { statement, change });
    }

    /// The index of the change that a statement carries out, where it is one alone. Changes that take no statement share their offset
    /// with the next one that does.
    pub(super) fn change_of(&self, statement: usize) -> Option<usize> {
        let at = self.0.partition_point(|offset| offset.statement <= statement).checked_sub(1)?;
        self.0.get(at)?.change
    }
}

/// Writes a pipelined request.
pub(super) struct Encoder<'m> {
    pub(super) map: &'m mut RelationMap,
    pub(super) request: PipelinedRequest,
    statement_offsets: StatementOffsets,
    pub(super) counts: CountedRows,
    /// Of the statement that is being written; its memory is used again.
    pub(super) formats: Vec<Format>,
}

impl<'m> Encoder<'m> {
    pub(super) fn new(map: &'m mut RelationMap) -> Encoder<'m> {
        Encoder {
            map,
            request: PipelinedRequest::new(),
            statement_offsets: StatementOffsets::default(),
            counts: CountedRows::Expected(Vec::new()),
            formats: Vec::new(),
        }
    }

    /// The request as it is now.
    pub(super) fn finish(self) -> Encoded {
        let Encoder { request, statement_offsets, counts, .. } = self;
        Encoded { request, expected: ExpectedAnswer { statement_offsets, counts } }
    }

    /// The next statements carry out the change with this index; with `None`, no single one.
    pub(super) fn begin_change(&mut self, change: Option<usize>) {
        self.statement_offsets.push(self.request.statements(), change);
    }

    /// The next counted statement names so many rows.
    pub(super) fn expect(&mut self, rows: u64) {
        if let CountedRows::Expected(named) = &mut self.counts {
            named.push(rows);
        }
    }

    /// Begins a transaction that applies changes.
    pub(super) fn begin(&mut self) {
        self.request.run("BEGIN");
        self.defer_foreign_keys();
    }

    /// Moves the position, on condition that it is at `previous`.
    pub(super) fn advance(&mut self, previous: Lsn, next: Lsn) {
        self.map.advance(&mut self.request, previous, next);
    }

    /// Where foreign keys act, they are checked at the end of the transaction: the source's cascades arrive as rows, the
    /// parent's delete before its children's.
    pub(super) fn defer_foreign_keys(&mut self) {
        if self.map.foreign_keys_act() {
            self.request.run("SET CONSTRAINTS ALL DEFERRED");
        }
    }

    /// Commits. Where code of the destination runs in this session, COMMIT waits for a look at its prepared statements: headwater's own
    /// are prepared by the protocol alone. The look costs a microsecond for each of them, so it is left out elsewhere.
    pub(super) fn commit(&mut self) {
        if self.map.may_run_code() {
            self.request.run(REFUSE_REPLACED);
        }
        self.request.commit();
    }

    pub(super) fn prepare_row(&mut self, target: &Target, statement: &RowStatement) -> PreparedStatement {
        self.map.prepare_row(&mut self.request, target, statement)
    }

    pub(super) fn prepare_set(&mut self, target: &Arc<Target>, statement: &SetStatement) -> PreparedStatement {
        self.map.prepare_set(&mut self.request, target, statement)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_change_that_a_statement_carries_out_is_found_by_its_number() {
        let mut offsets = StatementOffsets::default();
        assert_eq!(offsets.change_of(0), None, "BEGIN");
        // The first change takes no statement, the third is folded with others.
        for (statement, change) in [(2, Some(0)), (2, Some(1)), (4, None), (5, Some(3)), (6, None)] {
            offsets.push(statement, change);
        }
        let found: Vec<Option<usize>> = (0..8).map(|statement| offsets.change_of(statement)).collect();
        assert_eq!(found, [None, None, Some(1), Some(1), None, Some(3), None, None]);
    }

    #[test]
    fn only_counts_below_what_was_named_are_missing_deletes() {
        let counted = CountedRows::Expected(vec![1, 1, 7]);
        let effects = counted.conclude([1, 0, 5].into_iter());
        assert_eq!(effects, Effects { repairs: Vec::new(), missing_deletes: 3 });
    }
}
