//! What this start owes: snapshots that its command line asks for, and those that an earlier one did not finish.
//!
//! Asked by every attempt before it prepares. The command line becomes a request in the bookkeeping as soon as there is
//! one, so that it survives us; from then on only the bookkeeping counts. A command line that was fulfilled and comes
//! again after a crash is not carried out twice.

use std::collections::BTreeSet;

use crate::destination::{
    Bookkeeping, DestinationError, Request, RequestOrigin, RequestState, Scope, Stream, StreamState,
};
use crate::pg::{Lsn, QualifiedName};
use crate::session::SystemIdentification;
use crate::telemetry::Telemetry;

/// What is owed.
#[derive(Clone, Debug, Default)]
pub(crate) struct ResyncRequests {
    /// All tables are to be copied again before anything is streamed.
    pub(crate) all: bool,
    /// Tables that are to be copied, so that what they hold, and what was missed of them, is no obstacle.
    pub(crate) scope: Option<Scope>,
    /// The command line and what it asks for, where the bookkeeping does not hold it yet.
    pub(crate) invocation: Option<(String, Scope)>,
    /// The bookkeeping remembers a command line, this one or an earlier one: it is over when the service stops in good order.
    pub(crate) remembered: bool,
    /// The stream was found lost, and all tables are copied by themselves where the source continues the history.
    pub(crate) lost: bool,
    /// What an operator has asked for, as distinct from what is copied by itself.
    pub(crate) word: Word,
    /// The numbers of the requests that were read for this. One that comes later is another reason to copy.
    pub(crate) requests: BTreeSet<i64>,
}

/// What an operator's command line has said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Word {
    /// It asks for tables to be copied.
    is_given: bool,
    /// All of them, from whatever source it finds.
    any_source: bool,
    /// The source that this was used for, once it was.
    given_for: Option<String>,
}

impl Word {
    fn of(requests: &[Request]) -> Word {
        let mut word = Word::default();
        for request in requests.iter().filter(|request| request.origin == RequestOrigin::Start) {
            word.hear(&request.scope, request.for_source.as_deref());
        }
        word
    }

    fn hear(&mut self, scope: &Scope, given_for: Option<&str>) {
        self.is_given = true;
        if *scope == Scope::All {
            self.any_source = true;
            self.given_for = given_for.map(str::to_owned);
        }
    }

    /// Whether a command line has asked for tables to be copied, so that any number of their rows may go.
    pub(crate) fn is_given(&self) -> bool {
        self.is_given
    }

    /// Whether all tables may be made equal to this source, whatever its history is.
    pub(crate) fn holds_for(&self, source: &SystemIdentification) -> bool {
        self.any_source && self.given_for.as_deref().is_none_or(|given_for| is_same(given_for, source))
    }

    /// The source that it was used for.
    pub(crate) fn given_for(&self) -> Option<&str> {
        self.given_for.as_deref().filter(|_| self.any_source)
    }
}

/// How the bookkeeping names a source that an operator's word was used for: cluster, timeline, and how far its WAL went then.
pub(crate) fn name_of(source: &SystemIdentification) -> String {
    format!("{}, WAL up to {}", line_of(source), source.flushed_lsn)
}

fn line_of(source: &SystemIdentification) -> String {
    let timeline = &source.timeline;
    let switch = timeline.history.as_ref().and_then(|history| history.0.last());
    let since = switch.map(|switch| format!(" since {}", switch.at)).unwrap_or_default();
    format!("system identifier {}, timeline {}{since}", source.system_identifier, timeline.number)
}

/// Whether this source is the one of that name, at least as far as it was then.
fn is_same(name: &str, source: &SystemIdentification) -> bool {
    let then = name.strip_prefix(&line_of(source)).and_then(|rest| rest.strip_prefix(", WAL up to "));
    then.and_then(|lsn| lsn.parse::<Lsn>().ok()).is_some_and(|then| then <= source.flushed_lsn)
}

impl ResyncRequests {
    /// The stream is lost.
    pub(crate) fn lost(self) -> ResyncRequests {
        ResyncRequests { lost: true, ..self }
    }

    /// These tables, regardless of the requester.
    pub(crate) fn these(tables: Vec<QualifiedName>) -> ResyncRequests {
        ResyncRequests { scope: Some(Scope::Tables(tables)), ..ResyncRequests::default() }
    }

    /// Whether a table is to be copied.
    pub(crate) fn covers(&self, table: &QualifiedName) -> bool {
        self.scope.as_ref().is_some_and(|scope| scope.contains(table))
    }
}

/// A command line, as the bookkeeping remembers it.
fn invocation(scope: &Scope) -> String {
    match scope {
        Scope::All => "run --resnapshot".to_owned(),
        // In one order, whatever the operator's.
        Scope::Tables(_) => format!("run --resnapshot={}", scope.clone().and(Scope::Tables(Vec::new()))),
    }
}

/// Reads what is owed. `flag` is what the command line asks for; it is taken once the bookkeeping holds it.
pub(crate) async fn asked(
    bookkeeping: &Bookkeeping,
    flag: &mut Option<Scope>,
    telemetry: &Telemetry,
) -> Result<ResyncRequests, DestinationError> {
    let stream = bookkeeping.stream().await?;
    if !matches!(stream, Some(Stream { state: StreamState::Live { .. }, .. })) {
        return asked_before_the_first_copy(bookkeeping, flag.as_ref()).await;
    }
    bookkeeping.ensure().await?;
    if let Some(scope) = flag.take() {
        let line = invocation(&scope);
        match bookkeeping.request_of(&line).await? {
            Some(RequestState::Done) => telemetry.event(
                "snapshot",
                format!(
                    "{line} was carried out before; it is not repeated until the service was stopped in good order, or was started \
                     once without it"
                ),
            ),
            Some(RequestState::Requested(_)) => {
                telemetry.event("snapshot", format!("{line} continues where it was interrupted"))
            }
            Some(RequestState::Failed(_)) | None => {
                bookkeeping.request(&scope, RequestOrigin::Start, Some(&line)).await?;
            }
        }
    }
    let requests = bookkeeping.requests().await?;
    let remembered = bookkeeping.remembers_invocation().await?;
    let mut asked = ResyncRequests {
        remembered,
        word: Word::of(&requests),
        requests: numbers(&requests),
        ..ResyncRequests::default()
    };
    for request in requests {
        asked.all |= request.origin == RequestOrigin::Start && request.scope == Scope::All;
        asked.scope = Some(match asked.scope.take() {
            Some(scope) => scope.and(request.scope),
            None => request.scope,
        });
    }
    Ok(asked)
}

/// What is owed where nothing is published yet. A copy is made of all tables anyway; a command line agrees to changing those that
/// have rows, and to a source that is another one than when the copy was begun.
async fn asked_before_the_first_copy(
    bookkeeping: &Bookkeeping,
    flag: Option<&Scope>,
) -> Result<ResyncRequests, DestinationError> {
    let known = bookkeeping.takes_requests().await?;
    let open = if known { bookkeeping.requests().await? } else { Vec::new() };
    let (mut word, requests) = (Word::of(&open), numbers(&open));
    let Some(scope) = flag else { return Ok(ResyncRequests { word, requests, ..ResyncRequests::default() }) };
    let line = invocation(scope);
    let before = if known { bookkeeping.request_of(&line).await? } else { None };
    match before {
        // Its word is among the requests, with the source that it was used for; or it is used up.
        Some(RequestState::Requested(_) | RequestState::Done) => {}
        Some(RequestState::Failed(_)) | None => word.hear(scope, None),
    }
    let (invocation, scope) = (Some((line, scope.clone())), Some(scope.clone()));
    Ok(ResyncRequests { scope, invocation, word, requests, ..ResyncRequests::default() })
}

fn numbers(requests: &[Request]) -> BTreeSet<i64> {
    requests.iter().map(|request| request.id).collect()
}

/// Asks for tables that were added to the configuration, and for those that are suspended, unless somebody has asked for
/// them already. Each suspended table has a request of its own: one that waits for an operator is no reason for another to wait.
pub(crate) async fn ask_for_missing(
    bookkeeping: &Bookkeeping,
    asked: &ResyncRequests,
    added: &[QualifiedName],
    suspended: &[QualifiedName],
) -> Result<(), DestinationError> {
    let missing = |tables: &[QualifiedName]| -> Vec<QualifiedName> {
        tables.iter().filter(|table| !asked.covers(table)).cloned().collect()
    };
    let missing_added = missing(added);
    if !missing_added.is_empty() {
        // Together, so that foreign keys among them come along.
        bookkeeping.request(&Scope::Tables(missing_added), RequestOrigin::Added, None).await?;
    }
    for table in missing(suspended) {
        bookkeeping.request(&Scope::Tables(vec![table]), RequestOrigin::Changed, None).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Host;
    use crate::pg::Timeline;

    #[test]
    fn an_operators_word_holds_for_the_source_that_it_was_used_for_and_no_other() {
        let source = |system: &str, number, history: &str, end| SystemIdentification {
            host: Host::Tcp { host: "db1".into(), address: None, port: 5432 },
            system_identifier: system.into(),
            timeline: Timeline { number, history: Some(history.parse().unwrap()) },
            flushed_lsn: Lsn::new(end),
            in_recovery: false,
            database: "forum".into(),
        };
        let here = source("1", 2, "1@0/100", 0x500);
        let mut word = Word::default();
        assert!(!word.holds_for(&here));
        word.hear(&Scope::Tables(Vec::new()), None);
        assert!(word.is_given() && !word.holds_for(&here), "some tables are not all");
        word.hear(&Scope::All, None);
        assert!(word.holds_for(&here), "it was not used yet");
        word.hear(&Scope::All, Some(&name_of(&here)));
        assert!(word.holds_for(&here) && word.holds_for(&source("1", 2, "1@0/100", 0x600)));
        for other in [
            source("2", 2, "1@0/100", 0x500),
            source("1", 1, "", 0x500),
            source("1", 22, "1@0/100", 0x500),
            source("1", 2, "1@0/1000", 0x500),
            source("1", 2, "1@0/100", 0x499),
        ] {
            assert!(!word.holds_for(&other), "{other:?}");
        }
    }

    #[test]
    fn one_command_line_has_one_name_whatever_the_order_of_its_tables() {
        let scope = |names: &[&str]| Scope::Tables(names.iter().map(|n| QualifiedName::new("public", *n)).collect());
        assert_eq!(invocation(&scope(&["b", "a"])), "run --resnapshot=public.a, public.b");
        assert_eq!(invocation(&scope(&["a", "b"])), invocation(&scope(&["b", "a"])));
        assert_eq!(invocation(&Scope::All), "run --resnapshot");
    }
}
