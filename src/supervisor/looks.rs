//! When the monitor looks at the tables because the stream waits for it at a mark of a schema change, and what marks can be about.
//!
//! Asked by `stream_health` in its loop. In come the question that is open and a session with the source; out goes the question, once its
//! transaction is visible there and the next look is due. The look itself is the monitor's, and the same that its clock causes: what
//! it finds is judged in one place. A question without an answer is a wait of the stream, which [`LookWait`] tells.
//!
//! Any role of the source may write marks. So their number costs little: one look covers every transaction that it saw, and there is
//! a pause behind each. A question stands for [`LOOK_MAX`] at most, unless looks take long themselves: then the stream ends, and the
//! next attempt finds what is wrong.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant, SystemTime};

use crate::destination::{NewFacts, RememberedTable};
use crate::pg::RelationId;
use crate::session::{SessionError, SqlClient};
use crate::source::{LookAsked, LooksAsked, VisibleTransactions, held_back_words};
use crate::telemetry::Telemetry;

/// Between two looks: a source that changes its schema all the time causes ten a second at most.
const APART: Duration = Duration::from_millis(100);
/// Or so many times as long as a look takes, where there are thousands of tables.
const SHARE: u32 = 4;

/// A wait that is over sooner is not told.
const TOLD_AFTER: Duration = Duration::from_secs(5);
/// How long the stream waits for a look that cannot be taken; as long as a transaction may take to become visible elsewhere.
pub(super) const LOOK_MAX: Duration = Duration::from_secs(30);
/// Who holds a transaction back is asked so often.
const WORDS_EVERY: Duration = Duration::from_secs(2);

/// Why a question has no answer yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unanswered {
    /// Its transaction is not visible at the source, and who holds it back.
    Unseen(String),
    /// A server does not answer the look, as this says.
    Unread(String),
    /// Looks take long, and the next one is due later.
    Paced,
}

/// A question that has stood for [`LOOK_MAX`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum GivenUp {
    /// Its transaction is not visible.
    Unseen,
    /// A server does not answer the look, as this says.
    Unread(String),
}

/// What comes of a question, for now.
pub(super) enum Due {
    /// Nobody asks, or the last look has answered it.
    Nothing,
    /// The look is to be taken.
    Look(LookAsked),
    /// Its transaction is not visible yet.
    Unseen(LookAsked),
    /// The next look is due later.
    Paced,
}

/// How long the question that is open has stood, and why.
#[derive(Default)]
pub(super) struct LookWait {
    pending: Option<PendingLook>,
    /// The transaction that was told last: a new attempt comes to the same mark.
    told: Option<u32>,
    is_shown: bool,
}

/// A question without an answer yet.
struct PendingLook {
    asked: LookAsked,
    since: Instant,
    at: SystemTime,
    reason: Option<Unanswered>,
    /// When the source was last asked who holds the transaction back.
    words_at: Option<Instant>,
}

/// Under which name the wait stands in telemetry.
const SHOWN_AS: &str = "schema change";

impl LookWait {
    /// Why the question has no answer after this try.
    pub(super) fn because(&mut self, reason: Unanswered) {
        if let Some(pending) = &mut self.pending {
            pending.reason = Some(reason);
        }
    }

    /// Its transaction is not visible: asks who holds it back, once that is worth a word.
    pub(super) async fn unseen(&mut self, client: &SqlClient, asked: LookAsked) -> Result<(), SessionError> {
        let Some(pending) = self.pending.as_mut().filter(|pending| pending.asked == asked) else { return Ok(()) };
        let is_due = pending.words_at.is_none_or(|at| at.elapsed() >= WORDS_EVERY);
        if pending.since.elapsed() >= TOLD_AFTER && is_due {
            pending.words_at = Some(Instant::now());
            pending.reason = Some(Unanswered::Unseen(held_back_words(client, asked.transaction).await?));
        }
        Ok(())
    }

    /// Looks at the question that is open now, if any: tells a wait that lasts, and returns the one that has lasted too long.
    pub(super) fn observe(&mut self, open: Option<LookAsked>, telemetry: &Telemetry) -> Option<(u32, GivenUp)> {
        self.pending = open.map(|asked| match self.pending.take() {
            Some(pending) if pending.asked == asked => pending,
            Some(_) | None => {
                PendingLook { asked, since: Instant::now(), at: SystemTime::now(), reason: None, words_at: None }
            }
        });
        let told = self.pending.as_ref().filter(|pending| pending.since.elapsed() >= TOLD_AFTER);
        let Some((pending, reason)) = told.and_then(|pending| Some((pending, pending.reason.as_ref()?))) else {
            if std::mem::take(&mut self.is_shown) {
                telemetry.waits(SHOWN_AS, Vec::new());
            }
            return None;
        };
        let transaction = pending.asked.transaction;
        let since = humantime::format_rfc3339_seconds(pending.at);
        let reason_words = match reason {
            Unanswered::Unseen(words) => words.clone(),
            Unanswered::Unread(error) => {
                format!("the tables cannot be looked at: {error}. It is tried again every second")
            }
            Unanswered::Paced => "a look takes long, and the next one follows soon".to_owned(),
        };
        let text = format!(
            "source: the stream waits at the schema change of transaction {transaction}, since {since}: {reason_words}"
        );
        if self.told.replace(transaction) != Some(transaction) {
            telemetry.warning("wait", text.clone());
        }
        telemetry.waits(SHOWN_AS, vec![text]);
        self.is_shown = true;
        if pending.since.elapsed() < LOOK_MAX {
            return None;
        }
        match reason {
            Unanswered::Unseen(_) => Some((transaction, GivenUp::Unseen)),
            Unanswered::Unread(error) => Some((transaction, GivenUp::Unread(error.clone()))),
            Unanswered::Paced => None,
        }
    }
}

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
    pub(super) async fn due(&self, client: &SqlClient, asked: &LooksAsked) -> Result<Due, SessionError> {
        let Some(open) = asked.open() else { return Ok(Due::Nothing) };
        if self.seen.as_ref().is_some_and(|seen| seen.covers(open.transaction)) {
            asked.answer(open);
            return Ok(Due::Nothing);
        }
        if Instant::now() < self.next {
            return Ok(Due::Paced);
        }
        let is_visible = VisibleTransactions::read(client).await?.contains(open.transaction);
        Ok(if is_visible { Due::Look(open) } else { Due::Unseen(open) })
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
