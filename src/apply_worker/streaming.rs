//! How the source is asked to stream: which protocol, whether large transactions come before they commit, which origins.
//!
//! Asked by `attempt` before START_REPLICATION. docs/decisions/0010-streaming.md says why streaming is asked for wherever the
//! source knows it.
//!
//! | source | protocol | in-progress streams | `origin = "none"` |
//! |---|---|---|---|
//! | 14 | 2 | yes, but not with `origin = "none"` | transactions are left out here, by their Origin message |
//! | 15 | 3 | the same | the same |
//! | 16 to 18 | 4 | yes | the source leaves them out |
//!
//! Protocol 3 adds only two-phase messages, which are not asked for: a prepared transaction comes whole at its COMMIT
//! PREPARED. Protocol 4 adds only parallel streaming, whose two more fields are of no use here.

use std::sync::Arc;

use crate::catalog::fit::Transfer;
use crate::config::{Config, Origin};
use crate::error_policy::spool_report;
use crate::session::StreamOptions;
use crate::spool::Spool;
use crate::telemetry::Telemetry;
use crate::transaction::Assembler;

/// From here on the source itself leaves out transactions with an origin.
const ORIGIN_SINCE: i32 = 160_000;

/// The spool, if in-progress streams are to be asked for. Without one they are not.
pub(crate) async fn open_spool(
    config: &Config,
    telemetry: &Arc<Telemetry>,
    options: &mut StreamOptions,
) -> Option<Spool> {
    if !options.streaming {
        return None;
    }
    match Spool::open(&config.spool, &config.source.slot, Arc::clone(telemetry)).await {
        Ok(spool) => Some(spool),
        Err(error) => {
            telemetry.event("spool", spool_report(&error).lines());
            options.streaming = false;
            None
        }
    }
}

/// pgoutput's options for a source of this version.
pub(crate) fn options(config: &Config, version: i32, transfer: Transfer) -> StreamOptions {
    let origin_none = config.origin == Origin::None;
    let protocol_version = match version / 10_000 {
        ..=13 => 1,
        14 => 2,
        15 => 3,
        16.. => 4,
    };
    StreamOptions {
        protocol_version,
        publication: config.source.publication.clone(),
        binary: transfer == Transfer::Binary,
        // A stream in progress has no origin before 16: it is known only at its commit, and not sent then.
        streaming: version >= 140_000 && (!origin_none || version >= ORIGIN_SINCE),
        origin_none: origin_none && version >= ORIGIN_SINCE,
    }
}

/// The assembler for a stream that is asked for in this way.
pub(crate) fn assembler(assembler: Assembler, config: &Config, options: &StreamOptions) -> Assembler {
    let assembler = if options.streaming { assembler.with_streams() } else { assembler };
    let ours_to_leave_out = config.origin == Origin::None && !options.origin_none;
    if ours_to_leave_out { assembler.without_foreign_origins() } else { assembler }
}
