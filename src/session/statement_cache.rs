//! The prepared statements of a session, by their texts: what is asked again is neither parsed nor planned again.
//!
//! Used by `sql` for every statement with an answer. In a new session a question to the catalog costs more to plan than to answer
//! (sql/foreign_code.sql: 9 ms to parse, 45 to plan, 8 to execute), and a start asks some of them several times, the
//! monitor for as long as it runs. Statements made at run time pass through: the least recently used is given up.
//!
//! Code that runs in a session may put another statement under such a name. It has headwater's rights then, which is why
//! `destination::foreign_code` refuses such code before it runs.
//!
//! Pure. Bound: [`STATEMENTS_MAX`]; the server holds as many plans.

use std::collections::VecDeque;

/// More than a session asks in turns, so few that their plans do not matter: the largest takes the server 2 MB.
pub(super) const STATEMENTS_MAX: usize = 32;

/// Statements of type `S` by their texts, the most recently used first.
#[derive(Debug)]
pub(super) struct StatementCache<S> {
    statements: VecDeque<(Box<str>, S)>,
}

impl<S> Default for StatementCache<S> {
    fn default() -> StatementCache<S> {
        StatementCache { statements: VecDeque::new() }
    }
}

impl<S: Clone> StatementCache<S> {
    /// The statement of this text.
    pub(super) fn get(&mut self, text: &str) -> Option<S> {
        let found = self.take(text)?;
        let statement = found.1.clone();
        self.statements.push_front(found);
        Some(statement)
    }

    /// Keeps the statement of this text, and gives up the least recently used one where there are too many.
    pub(super) fn keep(&mut self, text: &str, statement: S) {
        self.forget(text);
        self.statements.push_front((text.into(), statement));
        self.statements.truncate(STATEMENTS_MAX);
    }

    /// Gives the statement of this text up: the next one is prepared again.
    pub(super) fn forget(&mut self, text: &str) {
        drop(self.take(text));
    }

    fn take(&mut self, text: &str) -> Option<(Box<str>, S)> {
        let index = self.statements.iter().position(|(other, _)| other.as_ref() == text)?;
        self.statements.remove(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_in_use_is_kept_and_the_least_recently_used_given_up() {
        let mut cache = StatementCache::default();
        cache.keep("in use", 0);
        for number in 1..=100 {
            assert_eq!(cache.get("in use"), Some(0));
            cache.keep(&format!("statement {number}"), number);
        }
        assert_eq!(cache.statements.len(), STATEMENTS_MAX);
        assert_eq!(cache.get("statement 100"), Some(100));
        assert_eq!(cache.get("statement 68"), None, "31 have been used since, and the one in use");
        assert_eq!(cache.get("statement 70"), Some(70));
    }

    #[test]
    fn a_statement_that_was_given_up_is_prepared_again() {
        let mut cache = StatementCache::default();
        cache.keep("SELECT 1", 1);
        cache.keep("SELECT 1", 2);
        assert_eq!(cache.get("SELECT 1"), Some(2));
        cache.forget("SELECT 1");
        assert_eq!(cache.get("SELECT 1"), None);
    }
}
