//! Work written in another mode than as it is: so that the source's rows win, or as a dead letter.
//!
//! Asked by `apply` when it writes a pipelined request. Which mode a transaction takes is `super::super::conflict`'s to say;
//! here it gets into the pipelined request.

use std::sync::Arc;

use super::super::conflict::{ApplyMode, Winning};
use super::super::dead_letter::{self, Letter};
use super::super::error::DestinationError;
use super::{Applier, Large, Strategy};
use crate::apply_plan::{Batch, Work};
use crate::pg::{Lsn, Relation};
use crate::session::PipelinedRequest;
use crate::transaction::{Change, Piece};
use crate::wire::{Begin, Commit};

impl Applier {
    /// Takes a batch apart when it holds a transaction that is to be left out: what comes back goes first, the rest
    /// waits in line.
    pub(super) fn split_left_out(&mut self, work: Work, strategy: Strategy) -> Work {
        let Work::Batch(batch) = work else { return work };
        let mut parts = batch.split_if(|commit| self.conflicts.wants_out(commit.commit_lsn, Some(commit.end_lsn)));
        let first = parts.remove(0);
        for part in parts.into_iter().rev() {
            self.again.push_front((Work::Batch(part), strategy));
        }
        Work::Batch(first)
    }

    /// Writes a batch in its mode; true when it is left out.
    pub(super) fn write_in_mode(
        &mut self,
        request: &mut PipelinedRequest,
        batch: &Batch,
        strategy: Strategy,
    ) -> Result<bool, DestinationError> {
        if let [member] = batch.members.as_slice() {
            let commit = member.commit;
            match self.conflicts.mode(commit.commit_lsn, Some(commit.end_lsn)) {
                ApplyMode::Normal => {}
                ApplyMode::Winning => self.winning = Some(Winning::default()),
                ApplyMode::LeftOut => {
                    let letter = Letter {
                        commit_lsn: commit.commit_lsn,
                        end_lsn: Some(commit.end_lsn),
                        part: 1,
                        committed_at: commit.committed_at,
                        xid: member.begin.xid,
                        changes: &batch.changes,
                    };
                    dead_letter::write(request, &letter);
                    dead_letter::finish(request, commit.commit_lsn, commit.end_lsn);
                    return Ok(true);
                }
            }
        }
        match strategy {
            Strategy::Net if self.winning.is_none() => self.write_batch_net(request, batch)?,
            Strategy::Net | Strategy::InOrder => self.write_batch(request, batch)?,
        }
        Ok(false)
    }

    /// A transaction in pieces begins.
    pub(super) fn begin_large(&mut self, begin: &Begin) {
        let mode = self.conflicts.mode(begin.final_lsn, None);
        self.large = Some(Large { begin: *begin, mode, parts: 0, open: false });
    }

    /// Writes a piece in its transaction's mode; true when it is left out.
    pub(super) fn write_piece(
        &mut self,
        request: &mut PipelinedRequest,
        piece: &Piece,
    ) -> Result<bool, DestinationError> {
        let large = self.large.as_mut().expect("a piece comes between its transaction's begin and commit");
        let begin = large.begin;
        match large.mode {
            ApplyMode::Normal => {}
            ApplyMode::Winning => self.winning = Some(Winning::default()),
            ApplyMode::LeftOut => {
                large.parts += 1;
                let letter = Letter {
                    commit_lsn: begin.final_lsn,
                    end_lsn: None,
                    part: large.parts,
                    committed_at: begin.committed_at,
                    xid: begin.xid,
                    changes: &piece.changes,
                };
                dead_letter::write(request, &letter);
                return Ok(true);
            }
        }
        if self.winning.is_none() && self.conflicts.in_order != Some(begin.final_lsn) {
            self.write_changes_net(request, &piece.changes, begin.final_lsn)?;
        } else {
            self.write_changes(request, &piece.changes, begin.final_lsn)?;
        }
        Ok(false)
    }

    /// Checks that a transaction in pieces, now that its end_lsn is known, is not one that the operator wants left out.
    pub(super) fn check_wanted(&self, commit: &Commit) -> Result<(), DestinationError> {
        let Commit { commit_lsn, end_lsn, .. } = *commit;
        let left_out = self.large.is_some_and(|large| large.mode == ApplyMode::LeftOut);
        if !left_out && self.conflicts.wants_out(commit_lsn, Some(end_lsn)) {
            return Err(DestinationError::WantedOut { commit_lsn, end_lsn });
        }
        Ok(())
    }

    /// A transaction in pieces ends; true when it was left out.
    pub(super) fn end_large(&mut self, request: &mut PipelinedRequest, commit: &Commit) -> bool {
        let left_out = self.large.is_some_and(|large| large.mode == ApplyMode::LeftOut);
        if left_out {
            dead_letter::finish(request, commit.commit_lsn, commit.end_lsn);
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
        request: &mut PipelinedRequest,
        relation: &Arc<Relation>,
        change: &Change,
    ) -> Result<(), DestinationError> {
        let (Some(winning), Some(bound)) = (&mut self.winning, self.bound.get(&relation.id)) else { return Ok(()) };
        let Some(here) = self.catalog.table(&bound.target.table) else { return Ok(()) };
        winning.write(request, &bound.target, (here, &self.conflicts), self.writer.role(), change)
    }
}
