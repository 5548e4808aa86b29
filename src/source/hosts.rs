//! Which of several hosts is the source.
//!
//! Asked by `supervisor` at the beginning of every attempt and command where source.url names more than one host; from then on all
//! sessions lead to the host that was chosen, because a slot, its snapshot and its stream are one server's. All hosts are asked
//! at once, and all answers are waited for: a server alone does not know that another one was promoted.
//!
//! ```text
//! each host ─ connect, as target_session_attrs says ─ IDENTIFY_SYSTEM ─┐
//!                                                                      ├─▶ highest timeline ─▶ that host, and what to say of the others
//! what the bookkeeping remembers ──────────────────────────────────────┘
//! ```
//!
//! The highest timeline wins, even where it does not continue the stored position: then `history` stops with the cause, and an
//! old primary next to it is no way out. Two servers of one timeline number that came about in different ways are both
//! refused, unless the bookkeeping knows one of them. Commands that only look have no bookkeeping at hand and go by the
//! timeline alone.
//!
//! Bounds: all hosts together take as long as the slowest: `connect_timeout` to connect, and again for each of two questions. Where
//! source.url names one host, nothing is opened.

use std::cmp::Reverse;
use std::time::Duration;

use futures_util::future::join_all;

use super::error::{LostCause, LostHistory, SourceError};
use super::history::continues;
use crate::config::{ConnectionSettings, Host, TargetSession};
use crate::pg::{ErrorReport, TimelineHistory};
use crate::session::{ReplicationSession, SessionError, SystemIdentification};
use crate::source::stored_history::StoredHistory;

/// The host that was chosen, and what is to be said of the others.
#[derive(Clone, Debug)]
pub struct ChosenHost {
    /// The settings with that host alone.
    pub connection: ConnectionSettings,
    /// Hosts that would do, and are not taken: an old primary that came back, say.
    pub passed_over: Vec<String>,
    /// Hosts that did not answer, or refuse us.
    pub out_of_reach: Vec<String>,
    /// Hosts that are not what target_session_attrs wants: a standby, say.
    pub unwanted: Vec<String>,
}

/// Chooses the host that all sessions are to lead to.
///
/// # Errors
/// [`SourceError::LostHistory`] where two servers were promoted, and nothing tells which of them is the source;
/// [`SourceError::Session`] where no host will do: the refusal of one that answered, or the reasons of all.
pub async fn choose_host(
    settings: &ConnectionSettings,
    stored: Option<&StoredHistory<'_>>,
    purpose: &str,
    timeout: Duration,
) -> Result<ChosenHost, SourceError> {
    let mut choice = ChosenHost {
        connection: settings.clone(),
        passed_over: Vec::new(),
        out_of_reach: Vec::new(),
        unwanted: Vec::new(),
    };
    if settings.hosts.len() < 2 {
        return Ok(choice);
    }
    let answers = join_all(settings.hosts.iter().map(|host| ask(settings, host, purpose, timeout))).await;
    let mut found = Vec::new();
    let mut refusal = None;
    for (host, answer) in settings.hosts.iter().zip(answers) {
        match answer {
            Ok(identification) => found.push(identification),
            Err(SessionError::Unreachable { reasons, .. }) => choice.out_of_reach.push(reasons),
            Err(SessionError::Unwanted { reasons, .. }) => choice.unwanted.push(reasons),
            Err(error) => {
                choice.out_of_reach.push(format!("{host}: {error}"));
                refusal = Some(error);
            }
        }
    }
    let prefers_standby = settings.target_session == TargetSession::PreferStandby;
    let Some(chosen) = choose(&found, stored, prefers_standby)? else {
        // As when hosts are tried in turn: a refusal says more than silence.
        let target = settings.to_string();
        let error = match refusal {
            Some(refusal) => refusal,
            None if choice.out_of_reach.is_empty() => {
                SessionError::Unwanted { target, reasons: choice.unwanted.join("; ") }
            }
            None => SessionError::Unreachable {
                target,
                reasons: [choice.out_of_reach, choice.unwanted].concat().join("; "),
            },
        };
        return Err(error.into());
    };
    choice.passed_over = found.iter().filter_map(|other| passed_over(other, chosen)).collect();
    choice.connection.hosts = vec![chosen.host.clone()];
    Ok(choice)
}

async fn ask(
    settings: &ConnectionSettings,
    host: &Host,
    purpose: &str,
    timeout: Duration,
) -> Result<SystemIdentification, SessionError> {
    let settings = ConnectionSettings { hosts: vec![host.clone()], ..settings.clone() };
    let answer_max = timeout.min(settings.connect_timeout);
    let mut session = ReplicationSession::connect(&settings, purpose, timeout, answer_max).await?;
    let identified = session.identify_system().await;
    // The attempt's own walsender may need the place of this one.
    session.close_and_wait().await;
    identified
}

/// The best of these; `None` where there are none.
fn choose<'a>(
    found: &'a [SystemIdentification],
    stored: Option<&StoredHistory<'_>>,
    prefers_standby: bool,
) -> Result<Option<&'a SystemIdentification>, LostHistory> {
    let Some(first) = found.first() else { return Ok(None) };
    // Timelines of different clusters cannot be compared.
    let cluster = stored.map_or(first.system_identifier.as_str(), |stored| stored.system_identifier);
    let continues = |server: &SystemIdentification| stored.is_none_or(|stored| continues(server, stored).is_ok());
    let key = |(index, server): &(usize, &'a SystemIdentification)| {
        (
            server.system_identifier == cluster,
            server.timeline.number,
            continues(server),
            prefers_standby && server.in_recovery,
            Reverse(*index),
        )
    };
    let Some((_, best)) = found.iter().enumerate().max_by_key(key) else { return Ok(None) };
    let rivals = |other: &&SystemIdentification| {
        other.system_identifier == best.system_identifier
            && other.timeline.number == best.timeline.number
            && is_another(&other.timeline.history, &best.timeline.history)
            && continues(other) == continues(best)
    };
    match found.iter().find(rivals) {
        None => Ok(Some(best)),
        Some(rival) => Err(two_were_promoted(best, rival)),
    }
}

fn is_another(one: &Option<TimelineHistory>, other: &Option<TimelineHistory>) -> bool {
    matches!((one, other), (Some(one), Some(other)) if one != other)
}

fn two_were_promoted(one: &SystemIdentification, other: &SystemIdentification) -> LostHistory {
    let number = one.timeline.number;
    LostHistory {
        cause: LostCause::ForkedTimeline,
        report: ErrorReport::new(format!("two hosts of source.url are on a timeline {number} of their own"))
            .detail(format!(
                "{} and {} were both promoted, from different positions. Which of them is the source cannot be known.",
                one.host, other.host
            ))
            .hint("Stop the one that is not the primary, or take it out of source.url; headwater then continues by itself."),
    }
}

/// What to say of a host that would do and is not taken. Nothing, where it is as good: a standby, say.
fn passed_over(other: &SystemIdentification, chosen: &SystemIdentification) -> Option<String> {
    let (theirs, ours) = (other.timeline.number, chosen.timeline.number);
    if other.system_identifier != chosen.system_identifier {
        Some(format!("{} is passed over: it belongs to another cluster than {}", other.host, chosen.host))
    } else if theirs < ours {
        Some(format!(
            "{} is passed over: it is on timeline {theirs}, and {} on timeline {ours}. It may be an old primary that came back",
            other.host, chosen.host
        ))
    } else if is_another(&other.timeline.history, &chosen.timeline.history) {
        Some(format!(
            "{} is passed over: its timeline {theirs} is not the one that fed the destination, and that of {} is",
            other.host, chosen.host
        ))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::{Lsn, Timeline};

    fn timeline(number: u32, history: &str) -> Timeline {
        Timeline { number, history: Some(history.parse().unwrap()) }
    }

    fn server(name: &str, number: u32, history: &str, end: u64) -> SystemIdentification {
        SystemIdentification {
            host: Host::Tcp { host: name.into(), address: None, port: 5432 },
            system_identifier: "1".into(),
            timeline: timeline(number, history),
            flushed_lsn: Lsn::new(end),
            in_recovery: false,
            database: "forum".into(),
        }
    }

    /// The host that is chosen with a stored position of 0x500 on this timeline; an error's message in its place.
    fn chosen(found: &[SystemIdentification], then: Option<(u32, &str)>) -> String {
        let slot = "hw".parse().unwrap();
        let then = then.map(|(number, history)| timeline(number, history));
        let stored = then.as_ref().map(|timeline| StoredHistory {
            slot: &slot,
            system_identifier: "1",
            timeline,
            database: "forum",
            database_id: None,
            position: Lsn::new(0x500),
            version: None,
            xid: None,
        });
        match choose(found, stored.as_ref(), false) {
            Ok(Some(server)) => server.host.to_string(),
            Ok(None) => "none".to_owned(),
            Err(lost) => lost.report.message,
        }
    }

    #[test]
    fn the_highest_timeline_is_chosen_whatever_the_order() {
        let (old, new) = (server("old", 1, "", 0x900), server("new", 2, "1@0/600", 0x700));
        for then in [None, Some((1, "")), Some((2, "1@0/600"))] {
            assert_eq!(chosen(&[old.clone(), new.clone()], then), "new:5432");
            assert_eq!(chosen(&[new.clone(), old.clone()], then), "new:5432");
        }
        assert_eq!(chosen(&[], None), "none");
        let words = passed_over(&old, &new).unwrap();
        assert!(words.contains("old:5432") && words.contains("old primary that came back"), "{words}");
        assert_eq!(passed_over(&old, &server("standby", 1, "", 0x900)), None);
    }

    #[test]
    fn a_promoted_server_that_lacks_the_position_does_not_keep_the_old_one_in_use() {
        let (old, new) = (server("old", 1, "", 0x900), server("new", 2, "1@0/499", 0x700));
        assert_eq!(chosen(&[old, new], Some((1, ""))), "new:5432");
    }

    #[test]
    fn of_two_that_were_promoted_only_the_known_one_is_chosen() {
        let (one, two) = (server("one", 2, "1@0/600", 0x900), server("two", 2, "1@0/700", 0x900));
        let both = [one, two];
        assert!(chosen(&both, None).contains("two hosts of source.url"));
        assert!(chosen(&both, Some((1, ""))).contains("two hosts of source.url"));
        assert_eq!(chosen(&both, Some((2, "1@0/700"))), "two:5432");
        assert_eq!(chosen(&both, Some((2, "1@0/600"))), "one:5432");
    }

    #[test]
    fn of_equal_hosts_the_first_that_reaches_the_position_is_chosen() {
        let (behind, first, second) =
            (server("behind", 1, "", 0x499), server("first", 1, "", 0x500), server("second", 1, "", 0x900));
        assert_eq!(chosen(&[behind, first.clone(), second.clone()], Some((1, ""))), "first:5432");
        assert_eq!(chosen(&[second, first], Some((1, ""))), "second:5432");
    }

    #[test]
    fn another_cluster_is_passed_over_whatever_its_timeline() {
        let other = SystemIdentification { system_identifier: "2".into(), ..server("other", 9, "", 0x900) };
        let here = server("here", 1, "", 0x900);
        assert_eq!(chosen(&[other, here], Some((1, ""))), "here:5432");
    }
}
