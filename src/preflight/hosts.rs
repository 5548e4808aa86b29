//! source.url with several hosts: one of them for all sessions of an attempt, or of a command.
//!
//! Called before anything is asked of the source: [`settle`] once the bookkeeping is known, [`connect_chosen`] by commands that can do
//! without it. Where source.url names one host, nothing is asked and nothing changes.

use std::sync::Arc;

use super::history::stored_history;
use crate::config::Config;
use crate::destination::{Bookkeeping, StreamState};
use crate::error_policy::Fault;
use crate::pg::Lsn;
use crate::preflight::addresses::Addresses;
use crate::session::SqlClient;
use crate::source::{ChosenHost, LostHistory, SourceError, choose_host};

/// The configuration with one host of source.url, and what is to be said of the others.
#[derive(Clone, Debug)]
pub(crate) struct Settled {
    pub(crate) config: Arc<Config>,
    /// Hosts that would do, and are not taken.
    pub(crate) passed_over: Vec<String>,
    /// Hosts that did not answer, or refuse us.
    pub(crate) out_of_reach: Vec<String>,
    /// Hosts that are not what target_session_attrs wants.
    pub(crate) unwanted: Vec<String>,
}

/// Chooses the host of source.url that everything is to lead to.
pub(crate) async fn settle(config: &Arc<Config>, bookkeeping: &Bookkeeping) -> Result<Settled, Fault> {
    if config.source.url.hosts.len() < 2 {
        return Ok(Settled::as_configured(config));
    }
    let stream = bookkeeping.stream().await?;
    let position = match &stream {
        Some(stream) => match stream.state {
            StreamState::Live { .. } => bookkeeping.position().await?,
            StreamState::Creating => stream.source_lsn,
        },
        None => None,
    };
    let stored = stream.as_ref().map(|stream| stored_history(stream, position.unwrap_or(Lsn::INVALID)));
    let purpose = format!("{} choosing", config.source.slot);
    let chosen = choose_host(&config.source.url, stored.as_ref(), &purpose, config.source.timeout).await?;
    let mut settled = Config::clone(config);
    settled.source.url = chosen.connection.clone();
    let ChosenHost { passed_over, out_of_reach, unwanted, .. } = chosen;
    Ok(Settled { config: Arc::new(settled), passed_over, out_of_reach, unwanted })
}

/// The same by the timelines alone, with a session: for commands that can do without the bookkeeping.
pub(crate) async fn connect_chosen(config: &Config) -> Result<(Config, SqlClient), SourceError> {
    let purpose = format!("{} choosing", config.source.slot);
    let chosen = choose_host(&config.source.url, None, &purpose, config.source.timeout).await?;
    let mut config = config.clone();
    config.source.url = chosen.connection;
    let client = Addresses::new(&config).source.connect().await?;
    Ok((config, client))
}

impl Settled {
    /// With nothing chosen.
    pub(crate) fn as_configured(config: &Arc<Config>) -> Settled {
        Settled { config: Arc::clone(config), passed_over: Vec::new(), out_of_reach: Vec::new(), unwanted: Vec::new() }
    }

    /// A history that is lost at this host, with what is known of the others.
    pub(crate) fn tell_of_others(&self, fault: Fault) -> Fault {
        let Fault::Source(SourceError::LostHistory(lost)) = fault else { return fault };
        let others: Vec<&str> = self.out_of_reach.iter().chain(&self.unwanted).map(String::as_str).collect();
        if others.is_empty() {
            return SourceError::LostHistory(lost).into();
        }
        let LostHistory { cause, mut report } = *lost;
        let text = format!("source.url names others, which do not answer as they should: {}.", others.join("; "));
        report.detail = Some(report.detail.map_or(text.clone(), |own| format!("{own}\n{text}")));
        SourceError::from(LostHistory { cause, report }).into()
    }
}
