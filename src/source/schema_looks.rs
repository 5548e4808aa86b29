//! Makes the stream wait at a mark of a schema change until a look at the catalog.
//!
//! [`stream`](super::stream()) asks through [`SchemaLooks`]. The task that compares the tables with what is remembered of them answers
//! through [`LooksAsked`], and ends the stream where rows may be others. Until the answer the stream reads nothing and hands on nothing,
//! so no row behind a mark is applied to a table that has yet to be judged, nor any other table's row of that commit or a later one.
//!
//! Bounds: one question is out at a time; one answer covers every transaction that was visible when the look began.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::transaction::SchemaMark;

const ASK_AGAIN: Duration = Duration::from_millis(20);

/// A question: look at the tables as they are once this transaction is visible.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LookAsked {
    number: u64,
    /// By its xid in the stream.
    pub transaction: u32,
    /// The stream that asked has ended.
    is_withdrawn: bool,
}

/// What marks can be about; `None` as long as that is not known.
type FollowedIds = Arc<Mutex<Option<BTreeSet<u32>>>>;

/// Asks for looks. All clones ask the same.
#[derive(Clone, Debug)]
pub struct SchemaLooks {
    asked: Arc<watch::Sender<LookAsked>>,
    answered: watch::Receiver<u64>,
    followed: FollowedIds,
}

/// Answers.
#[derive(Debug)]
pub struct LooksAsked {
    asked: watch::Receiver<LookAsked>,
    answered: watch::Sender<u64>,
    followed: FollowedIds,
}

/// Both ends.
pub fn schema_looks() -> (SchemaLooks, LooksAsked) {
    let (asking, asked) = watch::channel(LookAsked::default());
    let (answering, answered) = watch::channel(0);
    let followed = FollowedIds::default();
    let looks = SchemaLooks { asked: Arc::new(asking), answered, followed: Arc::clone(&followed) };
    (looks, LooksAsked { asked, answered: answering, followed })
}

impl SchemaLooks {
    /// Asks for a look if a mark concerns anything that is followed; out goes the question's number.
    pub(crate) fn ask(&self, mark: &SchemaMark) -> Option<u64> {
        let followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        if !followed.as_ref().is_none_or(|followed| mark.objects.concern(followed)) {
            return None;
        }
        let number = self.asked.borrow().number + 1;
        self.asked.send_replace(LookAsked { number, transaction: mark.transaction, is_withdrawn: false });
        Some(number)
    }

    /// Waits for the answer to a question; pending without one, and when nobody answers any more. Cancel-safe.
    pub(crate) async fn answered(&mut self, number: Option<u64>) {
        let Some(number) = number else { return std::future::pending().await };
        if self.answered.wait_for(|answered| *answered >= number).await.is_err() {
            std::future::pending().await
        }
    }

    /// Nobody waits for this answer any more. Another stream may have asked the next question already.
    pub(crate) fn withdraw(&self, number: u64) {
        self.asked.send_if_modified(|asked| {
            asked.is_withdrawn |= asked.number == number;
            false
        });
    }

    /// From now on another set of tables is followed.
    pub fn forget_followed(&self) {
        *self.followed.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl LooksAsked {
    /// The question that has no answer yet, and for which a stream waits.
    pub fn open(&self) -> Option<LookAsked> {
        let asked = *self.asked.borrow();
        (asked.number > *self.answered.borrow() && !asked.is_withdrawn).then_some(asked)
    }

    /// Answers a question.
    pub fn answer(&self, asked: LookAsked) {
        self.answered.send_replace(asked.number);
    }

    /// Whether marks are asked about at all, and it is not known what they can be about.
    pub fn wants_followed(&self) -> bool {
        self.asked.borrow().number > 0 && self.followed.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// From now on only marks of these relations and types are asked about.
    pub fn follow(&self, followed: BTreeSet<u32>) {
        *self.followed.lock().unwrap_or_else(PoisonError::into_inner) = Some(followed);
    }

    /// Sleeps until the next question comes; for a moment while one is open, since its transaction becomes visible soon. Without a
    /// stream nobody waits for an answer.
    pub async fn sleep(&mut self, at_most: Duration, is_streaming: bool) {
        if !is_streaming {
            return tokio::time::sleep(at_most).await;
        }
        if self.open().is_some() {
            return tokio::time::sleep(at_most.min(ASK_AGAIN)).await;
        }
        let asked = tokio::time::timeout(at_most, self.asked.changed()).await;
        if matches!(asked, Ok(Err(_))) {
            tokio::time::sleep(at_most).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transaction::Objects;

    fn mark(transaction: u32, id: u32) -> SchemaMark {
        SchemaMark { transaction, objects: Objects::These(BTreeSet::from([id])) }
    }

    #[tokio::test]
    async fn a_schema_look_stays_open_until_answered_and_covers_followed_tables_alone() {
        let (mut looks, asked) = schema_looks();
        assert_eq!(asked.open(), None);
        assert!(!asked.wants_followed(), "nobody has asked");
        let number = looks.ask(&mark(7, 1));
        let open = asked.open().expect("a question");
        assert_eq!(open.transaction, 7);
        assert!(asked.wants_followed());
        asked.follow(BTreeSet::from([1]));
        asked.answer(open);
        looks.answered(number).await;
        assert_eq!(asked.open(), None);
        assert_eq!(looks.ask(&mark(8, 2)), None, "nobody follows it");
        looks.forget_followed();
        let number = looks.ask(&mark(9, 2)).expect("a question");
        looks.withdraw(number - 1);
        assert!(asked.open().is_some(), "a later one");
        looks.withdraw(number);
        assert_eq!(asked.open(), None);
    }
}
