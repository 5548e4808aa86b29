//! When the monitor looks at the tables because the stream waits for it at a mark of a schema change, and what marks can be about.
//!
//! Asked by `stream_health` in its loop. In come the question that is open and a session with the source; out goes the question, once its
//! transaction is visible there and the next look is due. The look itself is the monitor's, and the same that its clock causes: what
//! it finds is judged in one place.
//!
//! Any role of the source may write marks. So their number costs little: one look covers every transaction that it saw, and there is
//! a pause behind each.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::destination::{NewFacts, RememberedTable};
use crate::pg::RelationId;
use crate::session::{SessionError, SqlClient};
use crate::source::{LookAsked, LooksAsked, VisibleTransactions};

/// Between two looks: a source that changes its schema all the time causes ten a second at most.
const APART: Duration = Duration::from_millis(100);
/// Or so many times as long as a look takes, where there are thousands of tables.
const SHARE: u32 = 4;

/// When the next look may be taken that the stream waits for, on one session.
pub(super) struct LookPace {
    next: Instant,
    /// What the last one has seen.
    seen: Option<VisibleTransactions>,
}

impl LookPace {
    /// The first look may be taken at once.
    pub(super) fn begin() -> LookPace {
        LookPace { next: Instant::now(), seen: None }
    }

    /// The look that the stream waits for, if it is to be taken now. One whose transaction the last look has seen is answered.
    pub(super) async fn due(&self, client: &SqlClient, asked: &LooksAsked) -> Result<Option<LookAsked>, SessionError> {
        let Some(open) = asked.open() else { return Ok(None) };
        if self.seen.as_ref().is_some_and(|seen| seen.contains(open.transaction)) {
            asked.answer(open);
            return Ok(None);
        }
        if Instant::now() < self.next {
            return Ok(None);
        }
        let is_visible = VisibleTransactions::read(client).await?.contains(open.transaction);
        Ok(is_visible.then_some(open))
    }

    /// One has found something, or could not be taken: the stream ends, or the destination does not answer.
    pub(super) fn later(&mut self, by: Duration) {
        self.next = Instant::now() + by;
    }

    /// A look has been taken, and found nothing that ends the stream.
    pub(super) fn looked(&mut self, seen: VisibleTransactions, took: Duration) {
        self.seen = Some(seen);
        self.next = Instant::now() + APART.max(SHARE * took);
    }
}

/// The relations and types that marks of schema changes can be about.
pub(super) fn objects(
    remembered: &HashMap<RelationId, RememberedTable>,
    new: &[NewFacts],
) -> Result<BTreeSet<u32>, SessionError> {
    let mut objects: BTreeSet<u32> = remembered.keys().map(|table| table.0).collect();
    for facts in remembered.values().filter_map(|table| table.facts.as_ref()) {
        objects.extend(facts.read()?.objects());
    }
    objects.extend(new.iter().flat_map(|new| new.now.objects()));
    Ok(objects)
}
