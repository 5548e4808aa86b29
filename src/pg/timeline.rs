//! A server's timeline: its number, and where each of those before it was left.
//!
//! Comes in as the walsender's answers (IDENTIFY_SYSTEM, TIMELINE_HISTORY) and as the text that the bookkeeping keeps; goes to
//! `source::history`, which asks whether one server continues what another has sent. A number alone does not tell: two standbys
//! that are both promoted each call their timeline 2. Where they left timeline 1 tells them apart.

use std::fmt;
use std::str::FromStr;

use super::lsn::Lsn;

/// Where a timeline was left for the next one (a line of a timeline's history file).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimelineSwitch {
    /// The timeline that was left.
    pub timeline: u32,
    /// WAL up to here is common to both.
    pub at: Lsn,
}

/// Every switch that led to a timeline, oldest first; none for timeline 1. Its text form is `1@0/3000000,2@0/5000000`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TimelineHistory(pub Vec<TimelineSwitch>);

/// A timeline, with its history where that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeline {
    /// Its number.
    pub number: u32,
    /// How it came about; `None` where only the number was recorded.
    pub history: Option<TimelineHistory>,
}

/// How a server's timeline relates to a position on another timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descent {
    /// It is the same timeline, or one that left it at or behind the position: the position is part of its history.
    Continues,
    /// Its number is lower.
    Older,
    /// It came about in another way: neither of the two descends from the other.
    Forked,
    /// It descends from the timeline, but left it before the position.
    LeftBefore {
        /// Where.
        at: Lsn,
    },
}

impl Timeline {
    /// How this timeline relates to `position` on timeline `then`.
    pub fn descent(&self, then: &Timeline, position: Lsn) -> Descent {
        if self.number < then.number {
            return Descent::Older;
        }
        let known = self.history.as_ref();
        if self.number == then.number {
            return match (known, &then.history) {
                (Some(ours), Some(theirs)) if ours != theirs => Descent::Forked,
                (Some(_) | None, Some(_) | None) => Descent::Continues,
            };
        }
        let switches = known.map(|history| history.0.as_slice()).unwrap_or_default();
        let Some(index) = switches.iter().position(|switch| switch.timeline == then.number) else {
            return Descent::Forked;
        };
        let (before, after) = switches.split_at(index);
        if then.history.as_ref().is_some_and(|history| history.0 != before) {
            return Descent::Forked;
        }
        match after.first() {
            Some(left) if left.at < position => Descent::LeftBefore { at: left.at },
            Some(_) | None => Descent::Continues,
        }
    }
}

impl fmt::Display for TimelineHistory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, switch) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{}@{}", switch.timeline, switch.at)?;
        }
        Ok(())
    }
}

/// The text is not a timeline's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a timeline's history")]
pub struct ParseTimelineError;

impl FromStr for TimelineHistory {
    type Err = ParseTimelineError;

    fn from_str(text: &str) -> Result<TimelineHistory, ParseTimelineError> {
        let parts = text.split(',').filter(|part| !part.is_empty());
        let switches = parts.map(|part| {
            let (timeline, at) = part.split_once('@').ok_or(ParseTimelineError)?;
            Ok(TimelineSwitch {
                timeline: timeline.parse().map_err(|_| ParseTimelineError)?,
                at: at.parse().map_err(|_| ParseTimelineError)?,
            })
        });
        Ok(TimelineHistory(switches.collect::<Result<_, _>>()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeline(number: u32, history: Option<&str>) -> Timeline {
        Timeline { number, history: history.map(|text| text.parse().unwrap()) }
    }

    #[test]
    fn the_text_of_a_history_is_read_as_it_is_written() {
        for text in ["", "1@0/3000000", "1@0/3000000,3@1/0"] {
            assert_eq!(text.parse::<TimelineHistory>().unwrap().to_string(), text);
        }
        for text in ["1", "@0/1", "x@0/1", "1@0/1;2@0/2", "1@"] {
            assert_eq!(text.parse::<TimelineHistory>(), Err(ParseTimelineError), "{text:?}");
        }
    }

    #[test]
    fn a_timeline_continues_a_position_only_where_its_history_has_it() {
        let position = Lsn::new(0x500);
        // (the server's timeline, the stored one, how they relate)
        let cases = [
            ((1, Some("")), (1, Some("")), Descent::Continues),
            ((1, Some("")), (1, None), Descent::Continues),
            ((2, Some("1@0/600")), (1, Some("")), Descent::Continues),
            ((2, Some("1@0/500")), (1, None), Descent::Continues),
            ((3, Some("1@0/500,2@0/700")), (1, Some("")), Descent::Continues),
            ((3, Some("1@0/100,2@0/700")), (2, Some("1@0/100")), Descent::Continues),
            ((1, Some("")), (2, Some("1@0/100")), Descent::Older),
            ((2, Some("1@0/499")), (1, Some("")), Descent::LeftBefore { at: Lsn::new(0x499) }),
            // Two standbys were promoted, and both call it 2.
            ((2, Some("1@0/450")), (2, Some("1@0/100")), Descent::Forked),
            // 3 was made from 1 by another promotion than 2.
            ((3, Some("1@0/600")), (2, Some("1@0/100")), Descent::Forked),
            ((3, Some("1@0/300,2@0/700")), (2, Some("1@0/100")), Descent::Forked),
            // What is not known proves nothing.
            ((2, None), (1, Some("")), Descent::Forked),
            ((2, None), (2, Some("1@0/100")), Descent::Continues),
        ];
        for ((number, history), (then, then_history), expected) in cases {
            let (now, then) = (timeline(number, history), timeline(then, then_history));
            assert_eq!(now.descent(&then, position), expected, "{now:?} and {then:?}");
        }
    }
}
