//! The last quarter of an hour, second by second, for the page's chart.
//!
//! Filled by [`crate::telemetry::facts::Telemetry::sample`] once a second, sent whole to a page that opens. Bound: [`SAMPLES_MAX`]
//! samples of a few numbers each, some 40 kB; the oldest goes when a new one comes.

use std::collections::VecDeque;

use serde::Serialize;

/// Fifteen minutes of seconds.
const SAMPLES_MAX: usize = 900;

/// One second's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Sample {
    /// Seconds since the process began.
    pub(super) at: f64,
    /// Seconds of lag; none while another instance leads.
    pub(super) lag_seconds: Option<f64>,
    /// Bytes of lag.
    pub(super) lag_bytes: Option<u64>,
    /// The heartbeat's round trip in seconds.
    pub(super) heartbeat_lag_seconds: Option<f64>,
    /// Row changes applied since the process began.
    pub(super) rows_applied: u64,
    /// Rows copied by snapshots since the process began.
    pub(super) rows_copied: u64,
}

/// The samples, oldest first.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct History(VecDeque<Sample>);

impl History {
    /// Adds the newest.
    pub(super) fn push(&mut self, sample: Sample) {
        if self.0.len() >= SAMPLES_MAX {
            self.0.pop_front();
        }
        self.0.push_back(sample);
    }

    /// The newest.
    pub(super) fn last(&self) -> Option<Sample> {
        self.0.back().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_of_an_hour_is_kept_and_no_more() {
        let mut history = History::default();
        for second in 0..2000_u32 {
            history.push(Sample {
                at: f64::from(second),
                lag_seconds: Some(0.0),
                lag_bytes: Some(0),
                heartbeat_lag_seconds: None,
                rows_applied: 0,
                rows_copied: 0,
            });
        }
        assert_eq!(history.0.len(), 900);
        assert_eq!(history.0.front().map(|sample| sample.at), Some(1100.0));
        assert_eq!(history.last().map(|sample| sample.at), Some(1999.0));
    }
}
