//! One attempt: lead, get ready, open the stream, run it, close it.
//!
//! Made by `supervisor::run` again and again. Getting ready is: find the host, look at both ends, make a snapshot where one is
//! needed; the stream itself is [`super::opened_stream`]'s. An attempt begins with what [`CarriedOver`] says, and with nothing else of
//! earlier ones: it reads everything again from both servers.

use std::future::Future;

use super::carried_over::CarriedOver;
use super::copy_failures::FailedCopy;
use super::held_up::HeldUp;
use super::opened_stream::OpenedStream;
use super::service::{Exit, Service, while_leading};
use super::slot_watch::slot_lost;
use crate::destination::{Bookkeeping, Deletes, DestinationError, Lead, ReplicationRole, missing_roles_report};
use crate::error_policy::Fault;
use crate::pg::{ErrorReport, Lsn, QualifiedName};
use crate::preflight::hosts::{Settled, settle};
use crate::preflight::leadership::lead;
use crate::preflight::prepare::{Prepared, Start, prepare};
use crate::preflight::resync_requests::{ResyncRequests, ask_for_missing, asked};
use crate::preflight::source_identity::accept_identity;
use crate::preflight::suspended_tables::suspend;
use crate::preflight::violated_constraints::let_through;
use crate::table_sync;

/// What became of an attempt.
pub(super) struct Attempted {
    pub(super) ended: Result<Exit, Fault>,
    /// Something was stored.
    pub(super) made_progress: bool,
    /// How far the copy of all tables had come in which the attempt failed.
    pub(super) failed_copy: Option<FailedCopy>,
}

/// Why an attempt ends before it has streamed.
enum NotReady {
    Exit(Exit),
    Fault(Fault),
}

impl<E> From<E> for NotReady
where
    Fault: From<E>,
{
    fn from(error: E) -> NotReady {
        NotReady::Fault(error.into())
    }
}

/// Where a stream is to begin, with both ends open.
struct Ready {
    prepared: Prepared,
    position: Lsn,
}

/// One attempt.
pub(super) struct Attempt<'a> {
    service: &'a Service,
    carried: &'a mut CarriedOver,
    /// What the writing session writes is checked by foreign keys.
    foreign_keys_act: bool,
    made_progress: bool,
    failed_copy: Option<FailedCopy>,
}

impl Attempt<'_> {
    pub(super) fn new<'a>(service: &'a Service, carried: &'a mut CarriedOver) -> Attempt<'a> {
        Attempt { service, carried, foreign_keys_act: false, made_progress: false, failed_copy: None }
    }

    /// Runs until a request to stop, a restart or a failure ends it.
    pub(super) async fn run(mut self) -> Attempted {
        let ended = match self.lead_and_stream().await {
            Err(fault) if !self.service.is_stopping() => {
                let host = &self.carried.host;
                let fault = let_through(&host.config, &host.addresses, fault).await;
                self.suspend(fault).await.map(|()| Exit::Restart)
            }
            ended => ended,
        };
        Attempted { ended, made_progress: self.made_progress, failed_copy: self.failed_copy }
    }

    async fn lead_and_stream(&mut self) -> Result<Exit, Fault> {
        let host = &self.carried.host;
        let (bookkeeping, mut lead) = tokio::select! {
            led = lead(&host.config, &host.addresses, &self.service.telemetry) => led?,
            () = self.service.stopped() => return Ok(Exit::Stopped),
        };
        match self.get_ready(&bookkeeping, &mut lead).await {
            Ok(ready) => self.stream(bookkeeping, lead, ready).await,
            Err(NotReady::Exit(exit)) => {
                lead.close().await;
                Ok(exit)
            }
            Err(NotReady::Fault(fault)) => {
                lead.close().await;
                Err(fault)
            }
        }
    }

    /// Does what comes before the stream.
    async fn get_ready(&mut self, bookkeeping: &Bookkeeping, lead: &mut Lead) -> Result<Ready, NotReady> {
        self.foreign_keys_act = lead.role() == ReplicationRole::Origin;
        self.look_up_roles(bookkeeping, lead).await?;
        let mut asked = self.asked(bookkeeping, lead).await?;
        let settling = while_leading(lead, settle(&self.service.configured, bookkeeping));
        let settled = self.unless_stopped(settling).await?;
        self.lead_to(&settled);
        self.accept_source_identity(bookkeeping, lead).await?;
        let prepared = match self.unless_stopped(while_leading(lead, self.prepare(bookkeeping, &asked))).await {
            Err(NotReady::Fault(fault)) => return Err(settled.tell_of_others(fault).into()),
            prepared => prepared?,
        };
        let prepared = match prepared.start {
            Start::Stream { .. } => {
                self.carried.copies.slot_lost = false;
                prepared
            }
            Start::Snapshot { live } => {
                let deletes = if asked.word.is_given() { Deletes::All } else { Deletes::Half };
                let kind = table_sync::Kind { live, invocation: asked.invocation.take(), deletes };
                self.copy_all(bookkeeping, lead, prepared, &kind).await?;
                asked = ResyncRequests::default();
                while_leading(lead, self.prepare(bookkeeping, &asked)).await?
            }
        };
        let Start::Stream { position } = prepared.start else {
            let report = ErrorReport::new("the snapshot was published, but no position is stored");
            return Err(Fault::Refused(report).into());
        };
        if !prepared.changed.is_empty() {
            while_leading(lead, self.suspend_changed(&prepared.changed)).await?;
            return Err(NotReady::Exit(Exit::Restart));
        }
        while_leading(lead, ask_for_missing(bookkeeping, &asked, &prepared.added, &prepared.suspended)).await?;
        Ok(Ready { prepared, position })
    }

    /// Streams until something ends it.
    async fn stream(&mut self, bookkeeping: Bookkeeping, mut lead: Lead, ready: Ready) -> Result<Exit, Fault> {
        let Ready { prepared, position } = ready;
        let opening = OpenedStream::open(self.service, self.carried, &bookkeeping, &mut lead, prepared, position);
        let opened = opening.await?;
        // A stream lasts for weeks, and what is asked meanwhile, or at its end, has sessions of its own.
        drop(bookkeeping);
        let run = opened.run(self.service, self.carried, &mut lead).await;
        self.made_progress |= run.made_progress;
        run.close(self.service, self.carried, lead).await
    }

    async fn look_up_roles(&mut self, bookkeeping: &Bookkeeping, lead: &mut Lead) -> Result<(), Fault> {
        if !self.carried.done.roles_looked_up {
            let roles = &self.carried.host.config.destination.trusted_roles;
            let looking = missing_roles_report(bookkeeping.client(), roles);
            if let Some(report) = while_leading(lead, looking).await? {
                self.service.telemetry.warning("code", report.lines());
            }
            self.carried.done.roles_looked_up = true;
        }
        Ok(())
    }

    /// The copies that are asked for.
    async fn asked(&mut self, bookkeeping: &Bookkeeping, lead: &mut Lead) -> Result<ResyncRequests, Fault> {
        let copies = &mut self.carried.copies;
        let asking = asked(bookkeeping, &mut copies.unrecorded, &self.service.telemetry);
        let asked = while_leading(lead, asking).await?;
        copies.recorded |= asked.remembered;
        copies.requests_known.clone_from(&asked.requests);
        Ok(if copies.slot_lost { asked.lost() } else { asked })
    }

    /// From here on every session of this attempt leads to the host that was chosen.
    fn lead_to(&mut self, settled: &Settled) {
        // Said once, not with every reconnect.
        for text in self.carried.host.lead_to(settled) {
            self.service.telemetry.warning("source", text);
        }
        self.service.monitor.lead_to(&self.carried.host.config.source.url);
    }

    async fn accept_source_identity(&mut self, bookkeeping: &Bookkeeping, lead: &mut Lead) -> Result<(), NotReady> {
        if self.carried.done.accept_source_identity {
            let host = &self.carried.host;
            let accepting = accept_identity(&host.config, &host.addresses, bookkeeping, &self.service.telemetry);
            self.unless_stopped(while_leading(lead, accepting)).await?;
            self.carried.done.accept_source_identity = false;
        }
        Ok(())
    }

    async fn prepare(&self, bookkeeping: &Bookkeeping, asked: &ResyncRequests) -> Result<Prepared, Fault> {
        let host = &self.carried.host;
        prepare(&host.config, &host.addresses, bookkeeping, &self.service.telemetry, asked).await
    }

    /// Copies all tables.
    async fn copy_all(
        &mut self,
        bookkeeping: &Bookkeeping,
        lead: &mut Lead,
        prepared: Prepared,
        kind: &table_sync::Kind,
    ) -> Result<(), NotReady> {
        let host = &self.carried.host;
        let telemetry = &self.service.telemetry;
        let ends = table_sync::Ends { config: &host.config, addresses: &host.addresses, telemetry };
        let mut reads = false;
        let copying = table_sync::snapshot(ends, bookkeeping, prepared, kind, &mut reads, self.service.stopped());
        let copied = tokio::select! {
            copied = while_leading(lead, copying) => copied,
            lost = slot_lost(&host.addresses) => Err(lost),
        };
        match copied {
            Ok(table_sync::Ending::Published) => {
                self.carried.copies.published();
                self.carried.failed_stream.held_up = HeldUp::default();
                self.made_progress = true;
                Ok(())
            }
            Ok(table_sync::Ending::Stopped) => Err(NotReady::Exit(Exit::Stopped)),
            Err(fault) => {
                self.failed_copy = Some(if reads { FailedCopy::Reading } else { FailedCopy::Preparing });
                // Otherwise every start would copy everything, to refuse it again.
                if let Fault::Destination(DestinationError::LacksMost { tables, .. }) = &fault {
                    bookkeeping.set_refused(tables).await?;
                }
                Err(fault.into())
            }
        }
    }

    /// Suspends the tables whose rows may be others than the stream has told of.
    async fn suspend_changed(&self, changed: &[(QualifiedName, String)]) -> Result<(), Fault> {
        for (table, reason) in changed {
            let needs_copy = DestinationError::NeedsCopy { table: table.clone(), reason: reason.clone() };
            self.suspend(needs_copy.into()).await?;
        }
        Ok(())
    }

    /// Suspends the tables that a fault is about; the fault comes back when there are none.
    async fn suspend(&self, fault: Fault) -> Result<(), Fault> {
        let host = &self.carried.host;
        suspend(&host.config, &host.addresses, &self.service.telemetry, fault, self.foreign_keys_act).await
    }

    /// Does `work` until the process is asked to stop.
    async fn unless_stopped<T>(&self, work: impl Future<Output = Result<T, Fault>>) -> Result<T, NotReady> {
        tokio::select! {
            done = work => Ok(done?),
            () = self.service.stopped() => Err(NotReady::Exit(Exit::Stopped)),
        }
    }
}
