//! Work written in another manner than as it is: so that the source's rows win, or as a dead letter.
//!
//! Asked by `apply` when it writes a flight. Which manner a transaction takes is `super::super::conflict`'s to say;
//! here it gets into the flight.

use std::sync::Arc;

use super::super::conflict::{Manner, Winning};
use super::super::dead_letter::{self, Letter};
use super::super::error::DestinationError;
use super::{Applier, Form, Large};
use crate::apply_plan::{Batch, Work};
use crate::pg::{Lsn, Relation};
use crate::session::Flight;
use crate::transaction::{Change, Piece};
use crate::wire::{Begin, Commit};

impl Applier {
    /// Takes a batch apart when it holds a transaction that is to be left out: what comes back goes first, the rest
    /// waits in line.
    pub(super) fn set_aside(&mut self, work: Work, form: Form) -> Work {
        let Work::Batch(batch) = work else { return work };
        let mut parts = batch.split_if(|commit| self.conflicts.wants_out(commit.commit_lsn, Some(commit.end_lsn)));
        let first = parts.remove(0);
        for part in parts.into_iter().rev() {
            self.again.push_front((Work::Batch(part), form));
        }
        Work::Batch(first)
    }

    /// Writes a batch in its manner; true when it is left out.
    pub(super) fn write_in_manner(
        &mut self,
        flight: &mut Flight,
        batch: &Batch,
        form: Form,
    ) -> Result<bool, DestinationError> {
        if let [member] = batch.members.as_slice() {
            let commit = member.commit;
            match self.conflicts.manner(commit.commit_lsn, Some(commit.end_lsn)) {
                Manner::Plain => {}
                Manner::Winning => self.winning = Some(Winning::default()),
                Manner::LeftOut => {
                    let letter = Letter {
                        commit_lsn: commit.commit_lsn,
                        end_lsn: Some(commit.end_lsn),
                        part: 1,
                        committed_at: commit.committed_at,
                        xid: member.begin.xid,
                        changes: &batch.changes,
                    };
                    dead_letter::write(flight, &letter);
                    dead_letter::finish(flight, commit.commit_lsn, commit.end_lsn);
                    return Ok(true);
                }
            }
        }
        match form {
            Form::Net if self.winning.is_none() => self.write_batch_net(flight, batch)?,
            Form::Net | Form::InOrder => self.write_batch(flight, batch)?,
        }
        Ok(false)
    }

    /// A transaction in pieces begins.
    pub(super) fn begin_large(&mut self, begin: &Begin) {
        let manner = self.conflicts.manner(begin.final_lsn, None);
        self.large = Some(Large { begin: *begin, manner, parts: 0, open: false });
    }

    /// Writes a piece in its transaction's manner; true when it is left out.
    pub(super) fn write_piece(&mut self, flight: &mut Flight, piece: &Piece) -> Result<bool, DestinationError> {
        let large = self.large.as_mut().expect("a piece comes between its transaction's begin and commit");
        let begin = large.begin;
        match large.manner {
            Manner::Plain => {}
            Manner::Winning => self.winning = Some(Winning::default()),
            Manner::LeftOut => {
                large.parts += 1;
                let letter = Letter {
                    commit_lsn: begin.final_lsn,
                    end_lsn: None,
                    part: large.parts,
                    committed_at: begin.committed_at,
                    xid: begin.xid,
                    changes: &piece.changes,
                };
                dead_letter::write(flight, &letter);
                return Ok(true);
            }
        }
        if self.winning.is_none() && self.conflicts.in_order != Some(begin.final_lsn) {
            self.write_changes_net(flight, &piece.changes, begin.final_lsn)?;
        } else {
            self.write_changes(flight, &piece.changes, begin.final_lsn)?;
        }
        Ok(false)
    }

    /// Checks that a transaction in pieces, now that its end_lsn is known, is not one that the operator wants left out.
    pub(super) fn check_wanted(&self, commit: &Commit) -> Result<(), DestinationError> {
        let Commit { commit_lsn, end_lsn, .. } = *commit;
        let left_out = self.large.is_some_and(|large| large.manner == Manner::LeftOut);
        if !left_out && self.conflicts.wants_out(commit_lsn, Some(end_lsn)) {
            return Err(DestinationError::WantedOut { commit_lsn, end_lsn });
        }
        Ok(())
    }

    /// A transaction in pieces ends; true when it was left out.
    pub(super) fn end_large(&mut self, flight: &mut Flight, commit: &Commit) -> bool {
        let left_out = self.large.is_some_and(|large| large.manner == Manner::LeftOut);
        if left_out {
            dead_letter::finish(flight, commit.commit_lsn, commit.end_lsn);
        }
        self.large = None;
        left_out
    }

    /// The commit_lsn of the transaction that is applied in pieces.
    pub(super) fn large_commit_lsn(&self) -> Lsn {
        self.large.map_or(Lsn::INVALID, |large| large.begin.final_lsn)
    }

    /// Writes a change of a bound relation so that its row wins.
    pub(super) fn write_winning(
        &mut self,
        flight: &mut Flight,
        relation: &Arc<Relation>,
        change: &Change,
    ) -> Result<(), DestinationError> {
        let (Some(winning), Some(bound)) = (&mut self.winning, self.bound.get(&relation.id)) else { return Ok(()) };
        let Some(here) = self.catalog.table(&bound.target.table) else { return Ok(()) };
        winning.write(flight, &bound.target, (here, &self.conflicts), self.writer.role(), change)
    }
}
