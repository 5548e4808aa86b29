//! What follows from what the source says of its history: stream on, copy all tables, or neither.
//!
//! Asked by `prepare`, with what both ends have said. A copy of all tables overwrites the destination, so it needs one of two
//! things: that the source continues the stored history (then `on_slot_lost = "resnapshot"` is enough), or the operator's word
//! (`run --resnapshot`) for this very source. The word is used up by the source that it was first used for: when another one
//! answers before the copy is published, an old primary that came back say, it is asked for again.
//!
//! Nothing is read or written here; every refusal is a [`Fault`] with its cause.

use crate::config::OnSlotLost;
use crate::destination::{DestinationError, RefusedCopy, Stream};
use crate::error_policy::{Decision, Fault, Phase, decide};
use crate::pg::{ErrorReport, Lsn};
use crate::preflight::resync_requests::ResyncRequests;
use crate::session::SystemIdentification;
use crate::source::{
    LostCause, LostHistory, Slot, SourceDatabase, SourceError, StoredHistory, check_history, check_line, check_slot,
};

/// What the source is found to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FoundSource<'a> {
    pub(crate) identification: &'a SystemIdentification,
    pub(crate) database: &'a SourceDatabase,
    pub(crate) slot: Option<&'a Slot>,
}

/// What to do with a live stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Course {
    /// Stream on from the position.
    Stream,
    /// Copy all tables; the slot stays.
    Copy,
    /// Copy all tables with a new slot.
    StartOver,
}

/// What to do with a live stream at this position.
pub(crate) fn of_stream(
    found: FoundSource<'_>,
    stored: &StoredHistory<'_>,
    asked: &ResyncRequests,
    on_slot_lost: OnSlotLost,
) -> Result<Course, Fault> {
    let FoundSource { identification, database, slot } = found;
    let lost = match check_history(identification, database, slot, stored) {
        Ok(()) if asked.all => return Ok(Course::Copy),
        Ok(()) => return Ok(Course::Stream),
        Err(SourceError::LostHistory(lost)) => *lost,
        Err(error) => return Err(error.into()),
    };
    let by_itself = asked.lost && is_copied_by_itself(&lost, on_slot_lost);
    let by_word = asked.all && asked.word.holds_for(identification);
    if !by_itself && !by_word {
        return Err(refused(lost, asked));
    }
    check_replaceable(found, &lost)?;
    Ok(Course::StartOver)
}

/// Whether a copy that was begun may be made, or finished, from this source. A first copy finds nothing to overwrite.
pub(crate) fn of_copy(found: FoundSource<'_>, stream: Option<&Stream>, asked: &ResyncRequests) -> Result<(), Fault> {
    let FoundSource { identification, database, slot } = found;
    let Some(stream) = stream else { return Ok(()) };
    let stored = stored_history(stream, stream.source_lsn.unwrap_or(Lsn::INVALID));
    match check_line(identification, database, slot, &stored) {
        Err(SourceError::LostHistory(lost)) => {
            if stream.agreed && !asked.word.holds_for(identification) {
                return Err(refused(*lost, asked));
            }
            check_replaceable(found, &lost)?;
        }
        line => {
            line?;
            if let Some(slot) = slot {
                check_slot(slot, database)?;
            }
        }
    }
    match &stream.refused {
        Some(refused) if !asked.word.is_given() => {
            let RefusedCopy { tables, begun_at } = refused.clone();
            Err(DestinationError::LacksMost { tables, copy_begun_at: Some(begun_at) }.into())
        }
        Some(_) | None => Ok(()),
    }
}

/// What the bookkeeping remembers of the source, with this position.
pub(crate) fn stored_history(stream: &Stream, position: Lsn) -> StoredHistory<'_> {
    StoredHistory {
        slot: &stream.slot,
        system_identifier: &stream.system_identifier,
        timeline: &stream.timeline,
        database: &stream.source_database,
        database_id: stream.source_database_id,
        position,
        version: stream.source_version,
        xid: stream.source_xid,
    }
}

fn is_copied_by_itself(lost: &LostHistory, on_slot_lost: OnSlotLost) -> bool {
    let fault = Fault::from(SourceError::from(lost.clone()));
    decide(&fault, Phase::Running, on_slot_lost) == Decision::Resnapshot
}

/// The fault, and that a word was given which does not hold here.
fn refused(mut lost: LostHistory, asked: &ResyncRequests) -> Fault {
    if let Some(other) = asked.word.given_for() {
        let text = format!(
            "The --resnapshot that was asked for was meant for another server, or a later state of this one: {other}. To ask for it \
             here, start once without it, and then with it."
        );
        let detail = lost.report.detail.take().map_or(text.clone(), |own| format!("{own}\n{text}"));
        lost.report.detail = Some(detail);
    }
    SourceError::from(lost).into()
}

/// The slot of our name is dropped before the new one is made. What another destination may be fed through is not ours to drop.
fn check_replaceable(found: FoundSource<'_>, lost: &LostHistory) -> Result<(), Fault> {
    let FoundSource { database, slot, .. } = found;
    let Some(slot) = slot else { return Ok(()) };
    check_slot(slot, database)?;
    let elsewhere = match lost.cause {
        LostCause::OtherCluster | LostCause::OtherDatabase | LostCause::SlotTaken => true,
        LostCause::SlotMissing
        | LostCause::SlotInvalidated
        | LostCause::SlotAhead
        | LostCause::OlderTimeline
        | LostCause::ForkedTimeline
        | LostCause::LeftBefore
        | LostCause::EndsBefore
        | LostCause::XidBefore => false,
    };
    match slot.active_pid.filter(|_| elsewhere) {
        None => Ok(()),
        Some(process_id) => Err(Fault::Refused(
            ErrorReport::new(format!("replication slot {} at the source feeds somebody else", slot.name))
                .detail(format!("Process {process_id} there is using it, and it is not the slot that fed this destination."))
                .hint("Stop the other instance of headwater; or run headwater teardown and choose another name for source.slot."),
        )),
    }
}
