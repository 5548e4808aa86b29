//! One attempt: lead, prepare, snapshot if needed, stream until something ends it.
//!
//! Run by `supervisor::run` again and again. What one attempt leaves to the next is little: whether the process has ever
//! streamed, and whether the command line still asks for a snapshot. It reads everything else again from both servers.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::copy_failures::FailedCopy;
use super::held_up::HeldUp;
use super::looks::{GivenUp, LOOK_MAX};
use super::monitor::Monitor;
use crate::apply_worker::apply_loop::{ApplyLoop, Limits, LoopContext};
use crate::apply_worker::heartbeat::HEARTBEAT_PREFIX;
use crate::apply_worker::parallel_apply::{ParallelApply, Worker, worth_bytes};
use crate::apply_worker::pause::control;
use crate::apply_worker::streaming;
use crate::config::{Config, SchemaChanges, SynchronousCommit};
use crate::destination::{
    Applier, ApplierSettings, ApplyContext, Bookkeeping, ConflictPolicy, Deletes, DestinationError, Followed, Lead,
    Marking, ReplicationRole, Scope, SourceTables, TableState, Wanted, Writer, forget_passed_conflict,
    missing_roles_report, refuse_fence_requests, remember_conflict, shapes, skips,
};
use crate::error_policy::Fault;
use crate::pg::{ErrorReport, Lsn, QualifiedName};
use crate::preflight::addresses::Addresses;
use crate::preflight::enum_labels::labels_are_missing;
use crate::preflight::fingerprints::passed_indexes;
use crate::preflight::hosts::{Settled, settle};
use crate::preflight::leadership::{lead, open_writer};
use crate::preflight::prepare::{Prepared, Start, free_slot, prepare};
use crate::preflight::resync_requests::{ResyncRequests, ask_for_missing, asked};
use crate::preflight::sequences::Sequences;
use crate::preflight::source_identity::accept_identity;
use crate::preflight::suspended_tables::suspend;
use crate::preflight::violated_constraints::{explained, let_through};
use crate::preflight::watch_failures::WatchFailure;
use crate::progress::Ledger;
use crate::session::{Sql, SqlState};
use crate::source::{
    Confirmed, ParallelApplyQueue, RelationTracker, SourceError, StreamReport, StreamSettings, StreamTask,
    UnseenReport, step_channel, stream,
};
use crate::spool::Spool;
use crate::supervisor::options::RunOptions;
use crate::supervisor::stream_health::{StreamHealth, Watched};
use crate::table_sync;
use crate::telemetry::{State, Telemetry};
use crate::transaction::{Assembler, TransactionError};
use crate::verification::fence_request::NO_FENCE_HINT;
use crate::verification::service::FenceService;
use crate::wire::Decoder;

/// What comes of getting ready to stream.
enum Ready {
    /// Everything is as the stream needs it.
    Stream { prepared: Box<Prepared>, position: Lsn },
    /// The attempt ends before it has streamed.
    Not(Exit),
}

/// How an attempt ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The process is to stop.
    Stopped,
    /// Other tables are followed from now on.
    Restart,
}

/// How long the destination may take to hear of the end.
const END_MAX: Duration = Duration::from_secs(2);

/// How often a halted service looks for an operator's wish to skip the transaction: a person waits for it.
const SKIP_POLL_EVERY: Duration = Duration::from_millis(500);

/// How often a first copy that waits for an operator looks for a request, on a new session each time: it may wait for days.
const COPY_REQUEST_POLL_EVERY: Duration = Duration::from_secs(2);

/// What attempts share.
pub(crate) struct Attempt {
    /// As it was configured.
    configured: Arc<Config>,
    /// With the one of source.url's hosts that this attempt leads to.
    config: Arc<Config>,
    /// The source may be another cluster now, until that was looked at.
    accept_source_identity: bool,
    /// What was said last of the other hosts.
    passed_over: Vec<String>,
    /// Whether the names in destination.trusted_roles were looked up: a warning of them is said once.
    roles_looked_up: bool,
    telemetry: Arc<Telemetry>,
    stop: watch::Receiver<bool>,
    addresses: Addresses,
    monitor: Monitor,
    /// What the command line wants copied, until the bookkeeping knows of it.
    flag: Option<Scope>,
    /// The command line wants something copied, or an earlier one that was not stopped in good order did.
    flagged: bool,
    /// The command line of this process wants something copied.
    asks_for_copy: bool,
    /// The slot was found lost: where the source continues the history still, all tables are copied with a new one.
    lost: bool,
    /// What the writing session writes is checked by foreign keys.
    foreign_keys_act: bool,
    /// The spool has failed: the next stream does without.
    spool_failed: bool,
    has_streamed: bool,
    /// How far the copy of all tables had come in which the attempt failed.
    failed_copy: Option<FailedCopy>,
    /// The requests for copies that were open when the last attempt began.
    requests_known: BTreeSet<i64>,
    made_progress: bool,
    /// The commit_lsn of the last transaction that met a conflict, and whether its rows are to win now.
    conflict: Option<(Lsn, bool)>,
    /// Where attempts have failed: until that is passed, nothing is resolved.
    held_up: HeldUp,
    /// The last wait of a question about a changed table: the next attempt comes to the same transaction.
    unseen_told: Arc<Mutex<String>>,
    /// The commit_lsn of the last transaction in pieces whose sets were refused.
    in_order: Option<Lsn>,
    /// The commit_lsn of the last transaction in pieces that is to be left out by its end_lsn.
    left_out: Option<Lsn>,
}

impl Attempt {
    pub(crate) fn new(
        config: Arc<Config>,
        telemetry: Arc<Telemetry>,
        stop: watch::Receiver<bool>,
        options: RunOptions,
        monitor: Monitor,
    ) -> Attempt {
        let addresses = Addresses::new(&config);
        let RunOptions { resnapshot, accept_source_identity } = options;
        Attempt {
            configured: Arc::clone(&config),
            config,
            accept_source_identity,
            passed_over: Vec::new(),
            roles_looked_up: false,
            telemetry,
            stop,
            addresses,
            monitor,
            flagged: resnapshot.is_some(),
            asks_for_copy: resnapshot.is_some(),
            flag: resnapshot,
            lost: false,
            foreign_keys_act: false,
            spool_failed: false,
            has_streamed: false,
            failed_copy: None,
            requests_known: BTreeSet::new(),
            made_progress: false,
            conflict: None,
            held_up: HeldUp::default(),
            unseen_told: Arc::default(),
            in_order: None,
            left_out: None,
        }
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    pub(crate) fn has_streamed(&self) -> bool {
        self.has_streamed
    }

    /// How far the copy of all tables had come, where the last attempt failed in one.
    pub(super) fn failed_copy(&self) -> Option<FailedCopy> {
        self.failed_copy
    }

    pub(crate) fn made_progress(&self) -> bool {
        self.made_progress
    }

    /// For what is done between two attempts, when the fault may be that somebody else has a hand in the bookkeeping.
    async fn bookkeeping(&self) -> Result<Bookkeeping, DestinationError> {
        Bookkeeping::connect_checked(&self.addresses.destination, &self.config.destination.trusted_roles).await
    }

    pub(crate) fn is_stopping(&self) -> bool {
        *self.stop.borrow()
    }

    /// Resolves once the process is asked to stop.
    pub(crate) fn stopped(&self) -> impl Future<Output = ()> + use<> {
        let mut stop = self.stop.clone();
        async move { while !*stop.borrow_and_update() && stop.changed().await.is_ok() {} }
    }

    /// The slot is lost: the next attempt makes a new one and copies all tables, if it finds it so still.
    pub(crate) fn start_over(&mut self) {
        self.lost = true;
    }

    /// A start without --resnapshot has ended with words that ask for it: the next command line that has it is carried out, whatever
    /// an earlier one asked for.
    pub(crate) async fn ends_with(&self, fault: &Fault) {
        // Only the leader meets these, so nobody else is at work on a request.
        let is_answered_by_a_copy = matches!(
            fault,
            Fault::Source(SourceError::LostHistory(_) | SourceError::Gap { .. })
                | Fault::Destination(DestinationError::LacksMost { .. })
        );
        if self.asks_for_copy || !is_answered_by_a_copy {
            return;
        }
        let forgetting = async { self.bookkeeping().await?.forget_invocations().await };
        if let Ok(Err(error)) = tokio::time::timeout(END_MAX, forgetting).await {
            tracing::debug!("an earlier --resnapshot could not be forgotten: {error}");
        }
    }

    /// A fault about a constraint, with how the source has it.
    pub(crate) async fn explained(&self, fault: Fault) -> Fault {
        match self.is_stopping() {
            true => fault,
            false => explained(&self.config, &self.addresses, fault).await,
        }
    }

    /// Counts a conflict, once however often it is tried again, and remembers what the next attempt is to do about it.
    pub(crate) async fn note(&mut self, fault: &Fault) {
        if let Fault::Destination(DestinationError::SetsRefused { commit_lsn, .. }) = fault {
            self.in_order = Some(*commit_lsn);
            self.telemetry.batch_retried();
        }
        if let Fault::Destination(DestinationError::WantedOut { commit_lsn, .. }) = fault {
            self.left_out = Some(*commit_lsn);
        }
        let Fault::Destination(DestinationError::Conflict(conflict)) = fault else { return };
        if self.conflict.is_none_or(|(commit_lsn, _)| commit_lsn != conflict.commit_lsn) {
            let table = conflict.table.as_ref().map(QualifiedName::unquoted).unwrap_or_default();
            self.telemetry.conflict(&table, conflict.kind.as_str(), 1);
        }
        self.conflict = Some((conflict.commit_lsn, conflict.will_win));
        if conflict.will_win {
            return;
        }
        let keeping = async {
            let bookkeeping = self.bookkeeping().await?;
            remember_conflict(bookkeeping.client(), conflict).await
        };
        match tokio::time::timeout(END_MAX, keeping).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("headwater conflict show will not show this conflict: {error}"),
            Err(_) => {
                tracing::warn!("headwater conflict show will not show this conflict: the destination did not answer")
            }
        }
    }

    /// Resolves once an operator has asked for a copy after the last attempt began (`headwater resnapshot`), or another instance has
    /// published one: then this one stands by for it.
    pub(crate) async fn copy_requested(&self) {
        let mut failure = WatchFailure::new(Arc::clone(&self.telemetry), "requests for copies").always();
        let mut position_before = None;
        loop {
            let asked = async {
                let bookkeeping = self.bookkeeping().await?;
                Ok::<_, DestinationError>((bookkeeping.requests().await?, bookkeeping.position().await?))
            };
            match asked.await {
                Ok((requests, _)) if requests.iter().any(|request| !self.requests_known.contains(&request.id)) => {
                    return;
                }
                Ok((_, position)) if *position_before.get_or_insert(position) != position => return,
                Ok(_) => failure.works(),
                // While the destination does not answer nobody can ask there either.
                Err(error) => failure.failed(error),
            }
            tokio::time::sleep(COPY_REQUEST_POLL_EVERY).await;
        }
    }

    /// Refuses the fences that are asked for while this fault halts the service: none can be made, and somebody waits.
    pub(crate) async fn refuse_fences(&self, halted: &ErrorReport) {
        let report = ErrorReport::new("no fence can be made: the service is halted")
            .detail(format!("{halted}."))
            .hint(format!("See what to do: headwater explain\n{NO_FENCE_HINT}"));
        let refusing = async {
            let bookkeeping = self.bookkeeping().await?;
            refuse_fence_requests(bookkeeping.client(), &report).await
        };
        // The requester gives up after fence_timeout.
        if !matches!(tokio::time::timeout(END_MAX, refusing).await, Ok(Ok(()))) {
            tracing::debug!("requests for fences could not be refused");
        }
    }

    /// Resolves once an operator has asked for the transaction of this fault to be skipped; pending for other faults. Then
    /// nobody waits for the end of a back-off.
    pub(crate) async fn skip_requested(&self, fault: &Fault) {
        let Fault::Destination(DestinationError::Conflict(conflict)) = fault else {
            return std::future::pending().await;
        };
        let names = [Some(Wanted::CommitLsn(conflict.commit_lsn)), conflict.end_lsn.map(Wanted::EndLsn)];
        // Without an answer the back-off ends by itself, and the next attempt says what is wrong.
        let Ok(bookkeeping) = self.bookkeeping().await else {
            return std::future::pending().await;
        };
        loop {
            match skips(bookkeeping.client(), None).await {
                Ok(skips) if names.iter().flatten().any(|name| skips.contains(name)) => return,
                Ok(_) => tokio::time::sleep(SKIP_POLL_EVERY).await,
                Err(_) => return std::future::pending().await,
            }
        }
    }

    /// The service ends because it was asked to: what its command line asked for is done with, and the next one's wish is
    /// another.
    pub(crate) async fn stopped_in_order(&self) {
        if !self.flagged {
            return;
        }
        let ending = async { self.bookkeeping().await?.end_invocation().await };
        if !matches!(tokio::time::timeout(END_MAX, ending).await, Ok(Ok(()))) {
            tracing::warn!(
                "the destination could not be told that --resnapshot is done with: the next start with it asks for nothing"
            );
        }
    }

    /// Runs until a request to stop, a restart or a failure ends it.
    pub(crate) async fn run(&mut self) -> Result<Exit, Fault> {
        match self.lead_and_stream().await {
            Err(fault) if !self.is_stopping() => {
                let fault = let_through(&self.config, &self.addresses, fault).await;
                let what = (fault, self.foreign_keys_act);
                suspend(&self.config, &self.addresses, &self.telemetry, what).await.map(|()| Exit::Restart)
            }
            exit => exit,
        }
    }

    async fn lead_and_stream(&mut self) -> Result<Exit, Fault> {
        if self.monitor.has_ended() {
            self.monitor = Monitor::start(Arc::clone(&self.configured), Arc::clone(&self.telemetry));
        }
        self.made_progress = false;
        self.failed_copy = None;
        let stopped = self.stopped();
        let led = tokio::select! {
            led = lead(&self.config, &self.addresses, &self.telemetry) => led?,
            () = stopped => return Ok(Exit::Stopped),
        };
        let (bookkeeping, mut lead) = led;
        match self.make_ready(&bookkeeping, &mut lead).await {
            Ok(Ready::Stream { prepared, position }) => self.stream(bookkeeping, lead, *prepared, position).await,
            Ok(Ready::Not(exit)) => {
                lead.close().await;
                Ok(exit)
            }
            Err(fault) => {
                lead.close().await;
                Err(fault)
            }
        }
    }

    /// Does what comes before the stream: looks at both ends, and makes a snapshot where one is needed.
    async fn make_ready(&mut self, bookkeeping: &Bookkeeping, lead: &mut Lead) -> Result<Ready, Fault> {
        self.foreign_keys_act = lead.role() == ReplicationRole::Origin;
        let stopped = self.stopped();
        if !self.roles_looked_up {
            let looking = missing_roles_report(bookkeeping.client(), &self.config.destination.trusted_roles);
            if let Some(report) = while_leading(lead, looking).await? {
                self.telemetry.warning("code", report.lines());
            }
            self.roles_looked_up = true;
        }
        let mut asked = while_leading(lead, asked(bookkeeping, &mut self.flag, &self.telemetry)).await?;
        self.flagged |= asked.remembered;
        self.requests_known.clone_from(&asked.requests);
        if self.lost {
            asked = asked.lost();
        }
        let settling = while_leading(lead, settle(&self.configured, bookkeeping));
        let settled = tokio::select! {
            settled = settling => settled?,
            () = self.stopped() => return Ok(Ready::Not(Exit::Stopped)),
        };
        self.lead_to(&settled);
        if self.accept_source_identity {
            let accepting = accept_identity(&self.config, &self.addresses, bookkeeping, &self.telemetry);
            tokio::select! {
                accepted = while_leading(lead, accepting) => accepted?,
                () = self.stopped() => return Ok(Ready::Not(Exit::Stopped)),
            }
            self.accept_source_identity = false;
        }
        let prepared = tokio::select! {
            prepared = while_leading(lead, self.prepare(bookkeeping, &asked)) => prepared,
            () = stopped => return Ok(Ready::Not(Exit::Stopped)),
        };
        let prepared = prepared.map_err(|fault| settled.tell_of_others(fault))?;
        let prepared = match prepared.start {
            Start::Stream { .. } => {
                self.lost = false;
                prepared
            }
            Start::Snapshot { live } => {
                let deletes = if asked.word.is_given() { Deletes::All } else { Deletes::Half };
                let kind = table_sync::Kind { live, invocation: asked.invocation.take(), deletes };
                let mut reads = false;
                let copying = table_sync::snapshot(
                    table_sync::Ends { config: &self.config, addresses: &self.addresses, telemetry: &self.telemetry },
                    bookkeeping,
                    prepared,
                    &kind,
                    &mut reads,
                    self.stopped(),
                );
                let copied = while_leading(lead, copying).await;
                self.failed_copy =
                    copied.is_err().then_some(if reads { FailedCopy::Reading } else { FailedCopy::Preparing });
                match copied {
                    Ok(table_sync::Ending::Published) => {}
                    Ok(table_sync::Ending::Stopped) => return Ok(Ready::Not(Exit::Stopped)),
                    Err(fault) => {
                        // Otherwise every start would copy everything, to refuse it again.
                        if let Fault::Destination(DestinationError::LacksMost { tables, .. }) = &fault {
                            bookkeeping.set_refused(tables).await?;
                        }
                        return Err(fault);
                    }
                }
                self.flag = None;
                self.lost = false;
                self.made_progress = true;
                self.held_up = HeldUp::default();
                asked = ResyncRequests::default();
                while_leading(lead, self.prepare(bookkeeping, &asked)).await?
            }
        };
        let Start::Stream { position } = prepared.start else {
            return Err(Fault::Refused(ErrorReport::new("the snapshot was published, but no position is stored")));
        };
        if !prepared.changed.is_empty() {
            while_leading(lead, self.suspend(&prepared.changed)).await?;
            return Ok(Ready::Not(Exit::Restart));
        }
        while_leading(lead, ask_for_missing(bookkeeping, &asked, (&prepared.added, &prepared.suspended))).await?;
        Ok(Ready::Stream { prepared: Box::new(prepared), position })
    }

    /// From here on every session of this attempt leads to the host that was chosen.
    fn lead_to(&mut self, settled: &Settled) {
        self.config = Arc::clone(&settled.config);
        self.addresses = Addresses::new(&self.config);
        self.monitor.lead_to(&self.config.source.url);
        // Said once, not with every reconnect.
        for text in settled.passed_over.iter().filter(|text| !self.passed_over.contains(text)) {
            self.telemetry.warning("source", text);
        }
        self.passed_over.clone_from(&settled.passed_over);
    }

    async fn prepare(&self, bookkeeping: &Bookkeeping, asked: &ResyncRequests) -> Result<Prepared, Fault> {
        prepare(&self.config, &self.addresses, bookkeeping, &self.telemetry, asked).await
    }

    /// Suspends the tables whose rows may be others than the stream has told of.
    async fn suspend(&self, changed: &[(QualifiedName, String)]) -> Result<(), Fault> {
        for (table, reason) in changed {
            let fault = DestinationError::NeedsCopy { table: table.clone(), reason: reason.clone() };
            let what = (fault.into(), self.foreign_keys_act);
            suspend(&self.config, &self.addresses, &self.telemetry, what).await?;
        }
        Ok(())
    }

    /// Who applies large transactions in parallel; nobody where foreign keys and triggers act.
    fn parallel_apply(&self, spool: &Spool, writer: &Writer, position: Lsn) -> Option<ParallelApply> {
        if writer.role() == ReplicationRole::Origin {
            return None;
        }
        Some(ParallelApply::start(Worker {
            queue: ParallelApplyQueue::new(position, worth_bytes(self.config.spool.memory_bytes_max)),
            peeker: spool.peeker(),
            settings: writer.settings().clone(),
            marked: matches!(writer.marking(), Marking::Origin(_)),
            piece_bytes_max: self.config.apply.batch_bytes_max,
            telemetry: Arc::clone(&self.telemetry),
        }))
    }

    /// Tells which transaction a question about a changed table waits for.
    fn told_unseen(&self) -> UnseenReport {
        let (telemetry, told) = (Arc::clone(&self.telemetry), Arc::clone(&self.unseen_told));
        Arc::new(move |wait: Option<&str>| {
            let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(text) = wait.filter(|text| **text != **told) {
                telemetry.warning("wait", text);
                text.clone_into(&mut told);
            }
            telemetry.waits("describing", wait.map(str::to_owned).into_iter().collect());
        })
    }

    /// Streams until something ends it.
    async fn stream(
        &mut self,
        bookkeeping: Bookkeeping,
        mut lead: Lead,
        mut prepared: Prepared,
        position: Lsn,
    ) -> Result<Exit, Fault> {
        let config = Arc::clone(&self.config);
        let telemetry = Arc::clone(&self.telemetry);
        while_leading(&mut lead, free_slot(&prepared, &config, &telemetry)).await?;
        // The position is read under the lock, by the session that will advance it.
        let mut writer = open_writer(&config, &bookkeeping, &lead).await?;
        let held = writer.read_position().await?;
        if held != position {
            return Err(DestinationError::PositionMoved { expected: position, found: held }.into());
        }
        let confirmed_before = prepared.slot.as_ref().and_then(|slot| slot.confirmed_flush_lsn).unwrap_or_default();
        prepared.remember_source(&bookkeeping, &telemetry).await?;
        let ledger = Ledger::resume(position, confirmed_before, writer.wal_block_bytes());
        let followed = followed(&bookkeeping).await?;
        let shapes = shapes(bookkeeping.client()).await?;
        let follow = config.schema_changes == SchemaChanges::Follow;
        for told in prepared.remember(&shapes, (bookkeeping.client(), follow)).await? {
            telemetry.event("schema", told);
        }
        let enums = (
            prepared.source_catalog.types.keys().copied().collect::<Vec<_>>(),
            prepared.destination_catalog.types.keys().copied().collect::<Vec<_>>(),
        );
        let watched = Watched::new(&prepared, config.source.publication.clone());

        let source_tables = prepared.source_catalog.tables.iter().map(|table| table.definition.clone());
        let indexes = passed_indexes(&bookkeeping).await?;
        let source_tables = SourceTables::of_stream(source_tables.collect(), indexes);
        let policy = ConflictPolicy {
            on_conflict: config.on_conflict,
            skips: skips(bookkeeping.client(), self.left_out).await?,
            overwriting: self.conflict.and_then(|(commit_lsn, wins)| wins.then_some(commit_lsn)),
            row_by_row: self.in_order,
        };

        let mut options = streaming::options(&config, prepared.server.version, prepared.transfer);
        options.streaming &= !std::mem::take(&mut self.spool_failed);
        let spool = streaming::open_spool(&config, &telemetry, &mut options).await;
        let started = prepared.replication.start(&config.source.slot, position, &options).await;
        started.map_err(SourceError::Session)?;

        telemetry.suspended(&prepared.suspended);
        telemetry.stream_begins(position, prepared.source_catalog.tables.iter().map(|t| t.definition.name()));
        if !telemetry.is_held_up() {
            telemetry.set_state(State::CatchingUp, None);
        }
        self.has_streamed = true;
        let piece_bytes_max = config.apply.batch_bytes_max;
        let tables = prepared.source_catalog.table_set();
        let tables = tables.passing_over(prepared.added.iter().chain(&prepared.suspended).cloned());
        let assembler = Assembler::new(tables, piece_bytes_max, HEARTBEAT_PREFIX, position);
        let assembler = streaming::assembler(assembler, &config, &options);
        // As much again as the batch being filled: the source is read on while the destination is busy.
        let (steps, receiver) = step_channel(2 * piece_bytes_max);
        let (confirmed, confirmed_receiver) = watch::channel(Confirmed { stored: position, flushed: ledger.flushed() });
        let (stop_stream, stream_stop) = watch::channel(false);
        let passed = confirmed_receiver.clone();
        let halted_at = self.conflict.map(|(commit_lsn, _)| commit_lsn);
        self.held_up.source_ends_at(prepared.identification.flushed_lsn);
        let copies_may_begin = passed_by(passed.clone(), self.held_up.copies_wait_for(halted_at));
        let begun = Arc::new(AtomicU64::new(0));
        let begins = Arc::clone(&begun);
        let reporting = Arc::clone(&telemetry);
        let parallel_apply = spool.as_ref().and_then(|spool| self.parallel_apply(spool, &writer, position));
        let queue = parallel_apply.as_ref().map(ParallelApply::handle);
        let task = StreamTask {
            session: prepared.replication,
            decoder: Decoder::new(false),
            assembler,
            tracker: RelationTracker::new(Sql { purpose: "describing", ..self.addresses.source.clone() }, shapes)
                .with_waits(self.told_unseen()),
            steps,
            spool,
            queue,
            looks: Some(self.monitor.looks()),
            confirmed: confirmed_receiver,
            settings: StreamSettings { timeout: config.source.timeout, sender_timeout: config.source.timeout },
            stop: stream_stop,
        };
        let truncations = self.monitor.truncations();
        let reading = tokio::spawn(stream(task, move |report| match report {
            StreamReport::Heard { source, local } => reporting.heard(source, local),
            StreamReport::Received { final_lsn, committed_at } => {
                begins.store(final_lsn.as_u64(), Ordering::Relaxed);
                reporting.received(final_lsn, committed_at);
            }
            StreamReport::Truncated { table, truncation } => truncations.note(table, truncation),
        }));
        let context = ApplyContext {
            settings: ApplierSettings {
                truncate: config.truncate,
                commits_are_durable: config.destination.synchronous_commit != SynchronousCommit::Off,
                transfer: prepared.transfer,
                follow_schema_changes: config.schema_changes == SchemaChanges::Follow,
                trusted_roles: config.destination.trusted_roles.clone(),
                names_owners: config.destination.names_owners(),
                timeout: config.destination.answer_max(),
            },
            catalog: prepared.destination_catalog,
            source_types: prepared.source_catalog.types,
            source_tables,
            followed,
        };
        let applier = Applier::new(writer, position, context, policy);
        let limits = Limits {
            batch_rows_max: config.apply.batch_rows_max,
            batch_bytes_max: config.apply.batch_bytes_max,
            leader_timeout: config.leader_timeout,
            commits_are_durable: config.destination.synchronous_commit != SynchronousCommit::Off,
            catch_up_to: prepared.identification.flushed_lsn,
            held_up_at: self.held_up.up_to(),
        };
        let followed = prepared.source_catalog.tables.iter().map(|table| table.definition.name()).collect();
        let sequences =
            Sequences::start(self.addresses.clone(), followed, config.schema_changes, Arc::clone(&telemetry));
        let mut health = self.monitor.watch(watched);
        // A task that needs apply to pause takes a turn through this.
        let (control, apply_pause) = control();
        let ends = table_sync::Ends { config: &config, addresses: &self.addresses, telemetry: &telemetry };
        let generation = prepared.stream.as_ref().map(|stream| stream.generation.clone()).unwrap_or_default();
        let context = LoopContext { apply_pause, instance: self.monitor.instance(), parallel_apply };
        let mut applying = ApplyLoop::new(applier, receiver, ledger, confirmed, &telemetry, limits, context);
        let fences = FenceService {
            config: &config,
            addresses: &self.addresses,
            control: control.clone(),
            telemetry: &telemetry,
        };
        let applied = tokio::select! {
            applied = applying.run(self.stopped()) => applied.map_err(Fault::from).map(|()| Exit::Stopped),
            lost = lead.lost() => Err(lost.into()),
            lost = stream_health_lost(&mut health) => Err(lost),
            ended = self.monitor.ended() => Err(ended),
            // It holds until the loop runs no more.
            _held = table_sync::handover::serve(ends, &control, &generation, copies_may_begin) => Ok(Exit::Restart),
            () = fences.run() => Ok(Exit::Stopped),
            () = forget_conflict(&bookkeeping, passed, halted_at) => Ok(Exit::Stopped),
        };
        self.made_progress |= applying.made_progress();
        let submitted_up_to = applying.submitted_up_to();
        // Closes the way back: task 1 then confirms what was stored, and ends the stream in good order.
        applying.close().await;
        self.monitor.unwatch();
        let _ = stop_stream.send(true);
        // The lock comes last: who takes it finds no writing session of ours.
        let (read, ()) = tokio::join!(tokio::time::timeout(STREAM_END_MAX, reading), lead.close());
        telemetry.stream_ends();
        let read_error = read.as_ref().ok().and_then(|read| read.as_ref().ok()?.as_ref().err());
        let failed = [applied.as_ref().err().map(is_unseen), read_error.map(is_unseen_there)];
        // The stream waits at the transaction that came last, and reads no other.
        match failed.into_iter().flatten().max() {
            Some(true) => self.held_up.unseen(submitted_up_to.max(Lsn::new(begun.load(Ordering::Relaxed)))),
            Some(false) => self.held_up.failed(submitted_up_to),
            None => {}
        }
        if self.is_stopping() {
            sequences.finish().await;
        }
        if let Err(Fault::Source(SourceError::Gap { remembered, .. })) = &applied {
            bookkeeping.set_gap(remembered).await?;
        }
        if let Err(Fault::Destination(DestinationError::Conflict(conflict))) = &applied
            && conflict.code == SqlState::new(INVALID_TEXT)
            && labels_are_missing(&prepared.source, bookkeeping.client(), (&enums.0, &enums.1)).await?
        {
            return Err(DestinationError::LabelMissing.into());
        }
        if applied? == Exit::Restart {
            return Ok(Exit::Restart);
        }
        match read {
            Ok(Ok(Err(error))) if !self.is_stopping() => {
                self.spool_failed = matches!(error, SourceError::Spool(_));
                Err(error.into())
            }
            Ok(Ok(Err(_) | Ok(()))) | Err(_) if self.is_stopping() => Ok(Exit::Stopped),
            // The steps ended, but the stream says that nothing is wrong with it: it was asked to stop.
            Ok(Ok(_)) | Err(_) => Err(SourceError::Ended.into()),
            Ok(Err(panicked)) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }
}

/// A stream that has not come to what an earlier attempt failed at after this time has a long way to go to it, or another timeline,
/// which may not have it.
const CONFLICT_MET_MAX: Duration = Duration::from_secs(60);

/// Resolves once the stored position has passed what an earlier attempt failed at, and without that at once.
async fn passed_by(mut stored: watch::Receiver<Confirmed>, halted_at: Option<Lsn>) {
    if let Some(halted_at) = halted_at {
        let passing = stored.wait_for(|confirmed| confirmed.stored > halted_at);
        // Without a sender the stream has ended, and nobody waits for this.
        let _ = tokio::time::timeout(CONFLICT_MET_MAX, passing).await;
    }
}

/// Removes the conflict that an earlier attempt met, with its values, once the stored position has passed it; then pending.
async fn forget_conflict(bookkeeping: &Bookkeeping, mut passed: watch::Receiver<Confirmed>, halted_at: Option<Lsn>) {
    let halted_at = halted_at.unwrap_or(Lsn::INVALID);
    if passed.wait_for(|confirmed| confirmed.stored > halted_at).await.is_ok()
        && let Err(error) = forget_passed_conflict(bookkeeping.client()).await
    {
        // The next start does it.
        tracing::debug!("a passed conflict could not be cleared: {error}");
    }
    std::future::pending().await
}

/// Whether a stream ended because a transaction that it has brought is not visible at the source, or its tables cannot be looked at.
fn is_unseen(fault: &Fault) -> bool {
    matches!(fault, Fault::Source(error) if is_unseen_there(error))
}

fn is_unseen_there(error: &SourceError) -> bool {
    matches!(error, SourceError::Unseen { .. } | SourceError::NotLooked { .. })
}

/// invalid_text_representation: what a value that is no label of its enum raises, in either format.
const INVALID_TEXT: &[u8; 5] = b"22P02";

/// How long the stream may take to end once nobody listens.
const STREAM_END_MAX: Duration = Duration::from_secs(4);

/// Does `work` for as long as this instance leads.
async fn while_leading<T, E>(lead: &mut Lead, work: impl Future<Output = Result<T, E>>) -> Result<T, Fault>
where
    Fault: From<E>,
{
    tokio::select! {
        done = work => Ok(done?),
        lost = lead.lost() => Err(lost.into()),
    }
}

/// Resolves when the monitor finds the stream's health lost.
async fn stream_health_lost(health: &mut watch::Receiver<StreamHealth>) -> Fault {
    loop {
        match &*health.borrow_and_update() {
            StreamHealth::Healthy => {}
            StreamHealth::Gone { report, gap: None } => return Fault::Halted(report.clone()),
            StreamHealth::Gone { report, gap: Some(remembered) } => {
                return SourceError::Gap { report: report.clone(), remembered: remembered.clone() }.into();
            }
            StreamHealth::Unpublished { publication, tables } => {
                let (publication, tables) = (publication.clone(), tables.clone());
                return Fault::Source(SourceError::Unpublished { publication, tables });
            }
            StreamHealth::Replaced { table, old, new } => {
                let replaced = TransactionError::Replaced { table: table.clone(), old: *old, new: *new };
                return Fault::Source(SourceError::Transaction(replaced));
            }
            StreamHealth::ForeignCode(report) | StreamHealth::Cascades(report) => {
                return Fault::Destination(DestinationError::Refused(report.clone()));
            }
            StreamHealth::Changed { table, reason } => {
                return Fault::Destination(DestinationError::NeedsCopy {
                    table: table.clone(),
                    reason: reason.clone(),
                });
            }
            StreamHealth::OtherTables(others) => {
                return Fault::Destination(DestinationError::OtherTables(others.clone()));
            }
            StreamHealth::Misunderstood { doing, what } => {
                let error = crate::session::SessionError::Answer { doing, what: what.clone() };
                return Fault::Source(SourceError::Session(error));
            }
            StreamHealth::NotLooked { transaction, reason } => {
                let (transaction, within) = (*transaction, LOOK_MAX);
                return Fault::Source(match reason {
                    GivenUp::Unseen => SourceError::Unseen { transaction, within },
                    GivenUp::Unread(reason) => SourceError::NotLooked { transaction, within, reason: reason.clone() },
                });
            }
            StreamHealth::DestinationSilent(silent) => return DestinationError::Silent(silent.clone()).into(),
        }
        if health.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

async fn followed(bookkeeping: &Bookkeeping) -> Result<HashMap<crate::pg::RelationId, Followed>, DestinationError> {
    let tables = bookkeeping.tables().await?;
    Ok(tables
        .into_iter()
        .filter_map(|table| match table.state {
            TableState::Live { snapshot_position } => {
                let destination_id = Some(table.destination_id);
                Some((table.source_id, Followed { name: table.name, destination_id, snapshot_position }))
            }
            TableState::Staging => None,
        })
        .collect())
}
