//! What this start owes: snapshots that its command line asks for, and those that an earlier one did not finish.
//!
//! Asked by every attempt before it prepares. The command line becomes a request in the bookkeeping as soon as there is
//! one, so that it survives us; from then on only the bookkeeping counts. A command line that was fulfilled and comes
//! again after a crash is not carried out twice.

use crate::destination::{Bookkeeping, DestinationError, Origin, RequestState, Scope, Stream, StreamState};
use crate::pg::QualifiedName;
use crate::telemetry::Telemetry;

/// What is owed.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked {
    /// All tables are to be copied anew before anything is streamed.
    pub(super) all: bool,
    /// Tables that are to be copied, so that what they hold, and what was missed of them, is no obstacle.
    pub(super) scope: Option<Scope>,
    /// The command line and what it asks for, where the bookkeeping does not hold it yet.
    pub(super) invocation: Option<(String, Scope)>,
    /// The bookkeeping remembers a command line, this one or an earlier one: it is over when the service stops in good order.
    pub(super) remembered: bool,
}

impl Asked {
    /// All tables, because the stream is lost.
    pub(super) fn everything(self) -> Asked {
        Asked { all: true, scope: Some(Scope::All), ..self }
    }

    /// These tables, whoever asked for them.
    pub(super) fn these(tables: Vec<QualifiedName>) -> Asked {
        Asked { scope: Some(Scope::Tables(tables)), ..Asked::default() }
    }

    /// Whether a table is to be copied.
    pub(super) fn covers(&self, table: &QualifiedName) -> bool {
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
pub(super) async fn asked(
    bookkeeping: &Bookkeeping,
    flag: &mut Option<Scope>,
    telemetry: &Telemetry,
) -> Result<Asked, DestinationError> {
    let stream = bookkeeping.stream().await?;
    if !matches!(stream, Some(Stream { state: StreamState::Live { .. }, .. })) {
        // The first snapshot is made of all tables; the command line only agrees to changing those that have rows.
        let invocation = flag.clone().map(|scope| (invocation(&scope), scope));
        return Ok(Asked { scope: flag.clone(), invocation, ..Asked::default() });
    }
    bookkeeping.ensure().await?;
    if let Some(scope) = flag.take() {
        let line = invocation(&scope);
        match bookkeeping.request_of(&line).await? {
            Some(RequestState::Done) => telemetry.event(
                "snapshot",
                format!(
                    "{line} was carried out before; it is not repeated until the service was stopped in good order"
                ),
            ),
            Some(RequestState::Requested(_)) => {
                telemetry.event("snapshot", format!("{line} goes on where it was interrupted"))
            }
            Some(RequestState::Failed(_)) | None => {
                bookkeeping.request(&scope, Origin::Start, Some(&line)).await?;
            }
        }
    }
    let mut asked = Asked { remembered: bookkeeping.remembers_invocation().await?, ..Asked::default() };
    for request in bookkeeping.requests().await? {
        asked.all |= request.origin == Origin::Start && request.scope == Scope::All;
        asked.scope = Some(match asked.scope.take() {
            Some(scope) => scope.and(request.scope),
            None => request.scope,
        });
    }
    Ok(asked)
}

/// Asks for tables that were added to the configuration, and for those that are suspended, unless somebody has asked for
/// them already. Each suspended table has a request of its own: one that waits for an operator is no reason for another to wait.
pub(super) async fn ask_for_missing(
    bookkeeping: &Bookkeeping,
    asked: &Asked,
    (added, aside): (&[QualifiedName], &[QualifiedName]),
) -> Result<(), DestinationError> {
    let missing = |tables: &[QualifiedName]| -> Vec<QualifiedName> {
        tables.iter().filter(|table| !asked.covers(table)).cloned().collect()
    };
    let missing_added = missing(added);
    if !missing_added.is_empty() {
        // Together, so that foreign keys among them come along.
        bookkeeping.request(&Scope::Tables(missing_added), Origin::Added, None).await?;
    }
    for table in missing(aside) {
        bookkeeping.request(&Scope::Tables(vec![table]), Origin::Changed, None).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_command_line_has_one_name_whatever_the_order_of_its_tables() {
        let scope = |names: &[&str]| Scope::Tables(names.iter().map(|n| QualifiedName::new("public", *n)).collect());
        assert_eq!(invocation(&scope(&["b", "a"])), "run --resnapshot=public.a, public.b");
        assert_eq!(invocation(&scope(&["a", "b"])), invocation(&scope(&["b", "a"])));
        assert_eq!(invocation(&Scope::All), "run --resnapshot");
    }
}
