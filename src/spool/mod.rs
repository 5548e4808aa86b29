//! In-progress transactions too big for memory, to files and back.
//!
//! I/O. In come records in chunks from `source::stream`, stream by stream, with cuts and discards; out go the
//! same bytes, once, when a stream has committed; before that a [`Peeker`] may look at them. What is in them is
//! `transaction`'s matter; here they are bytes with a checksum.
//!
//! ```text
//! source::stream ══ orders, bounded ══▶ a thread of its own: Store ── memory first ─▶ files under spool.dir
//!        ▲                                      │
//!        └───────── chunks, bounded ◀───────────┘  when a stream has committed
//! ```
//!
//! A thread, because a disk may take its time while the source still wants to hear from us. Full means wait: while the
//! thread is busy the orders fill up, then nothing more is read from the source. Nothing here outlives the stream that it
//! serves: the source sends everything again that had not committed, so files of a process that died are only swept.
//!
//! A disk that answers late is reported, and one that does nothing for long is given up (`slow`).
//!
//! Bounds: [`SpoolSettings`]: so much memory, then so much disk, then [`SpoolError::Full`]; orders and chunks on their way
//! by `ORDERS_MAX` and `CHUNKS_MAX`.

mod directory;
pub mod error;
mod slow;
mod store;
mod sweep;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::config::SpoolSettings;
use crate::pg::SlotName;
use crate::telemetry::{Telemetry, failpoint};
use crate::transaction::Records;
use directory::Directory;
use slow::{DiskProgress, SlowSpool};
use store::Store;

pub use crate::spool::error::SpoolError;
pub use directory::{GateError, check_gate, resolve};

/// Orders on their way to the thread at most: chunks of a quarter of a megabyte, mostly.
const ORDERS_MAX: usize = 8;
/// Chunks on their way back at most.
const CHUNKS_MAX: usize = 4;
/// How long the directory may take to be swept and made.
const OPEN_MAX: Duration = Duration::from_secs(30);
/// How long the thread may take to remove its files when the stream ends; what it leaves is swept by the next start.
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// What the thread is to do.
#[derive(Debug)]
enum Order {
    Append { xid: u32, records: Records },
    Cut { xid: u32, at: u64 },
    Discard { xid: u32 },
    Peek { xid: u32, from: u64, until: u64, found: oneshot::Sender<Result<Bytes, SpoolError>> },
    Read { xid: u32, chunks: mpsc::Sender<ReadBackChunk> },
}

/// `None` says that the last one was sent: a channel that merely ends is not an end.
type ReadBackChunk = Result<Option<Bytes>, SpoolError>;

/// A handle on the spool of one stream from the source.
#[derive(Debug)]
pub struct Spool {
    orders: mpsc::Sender<Order>,
    slow: SlowSpool,
    failed: oneshot::Receiver<SpoolError>,
    ended: oneshot::Receiver<()>,
}

/// Looks at streams that have not committed yet; it does not keep the spool open.
#[derive(Clone, Debug)]
pub struct Peeker {
    orders: mpsc::WeakSender<Order>,
    slow: SlowSpool,
}

/// An order that found no room yet.
#[derive(Debug)]
pub struct Waiting(Order);

/// The chunks of a stream that has committed, first to last.
#[derive(Debug)]
pub struct Chunks {
    chunks: mpsc::Receiver<ReadBackChunk>,
    slow: SlowSpool,
}

impl Spool {
    /// Sweeps what dead processes left in `spool.dir`, makes a directory for this one, and starts the thread.
    ///
    /// # Errors
    /// [`SpoolError::File`] when the directory cannot be made or written.
    pub async fn open(
        settings: &SpoolSettings,
        slot: &SlotName,
        telemetry: Arc<Telemetry>,
    ) -> Result<Spool, SpoolError> {
        let (settings, slot) = (settings.clone(), slot.clone());
        let path = settings.dir.clone();
        let progress = DiskProgress::default();
        let slow = SlowSpool::new(Arc::clone(&telemetry), path.clone(), progress.clone());
        let (opened, opening) = oneshot::channel();
        let (orders, receiver) = mpsc::channel(ORDERS_MAX);
        let (failure, failed) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let thread = std::thread::Builder::new().name("spool".to_owned()).spawn(move || {
            let store = match Directory::create(&settings.dir, &slot) {
                Ok(directory) => Store::new(directory, &settings, progress),
                Err(error) => return drop(opened.send(Err(error))),
            };
            if opened.send(Ok(())).is_ok() {
                serve(store, receiver, failure, &telemetry);
            }
            telemetry.spooled(0);
            // The store and its files are gone by now.
            let _ = end.send(());
        });
        let late = || io::Error::from(io::ErrorKind::TimedOut);
        let file = |source| SpoolError::File { doing: "open the spool directory", path: path.clone(), source };
        thread.map_err(file)?;
        match tokio::time::timeout(OPEN_MAX, opening).await {
            Ok(opened) => opened.map_err(|_| SpoolError::Gone)??,
            Err(_) => return Err(file(late())),
        }
        Ok(Spool { orders, slow, failed, ended })
    }

    /// Keeps records of a stream, behind those that it has. What finds no room at once comes back.
    ///
    /// # Errors
    /// [`SpoolError`] of this or of an earlier order; the spool cannot be used any more then.
    pub fn append(&mut self, xid: u32, records: Records) -> Result<Option<Waiting>, SpoolError> {
        self.order(Order::Append { xid, records })
    }

    /// Keeps only the first `at` bytes of a stream.
    ///
    /// # Errors
    /// As for [`Spool::append`].
    pub fn cut(&mut self, xid: u32, at: u64) -> Result<Option<Waiting>, SpoolError> {
        self.order(Order::Cut { xid, at })
    }

    /// Forgets a stream.
    ///
    /// # Errors
    /// As for [`Spool::append`].
    pub fn discard(&mut self, xid: u32) -> Result<Option<Waiting>, SpoolError> {
        self.order(Order::Discard { xid })
    }

    /// Gives a stream back, and forgets it.
    ///
    /// # Errors
    /// As for [`Spool::append`].
    pub fn read(&mut self, xid: u32) -> Result<(Chunks, Option<Waiting>), SpoolError> {
        let (chunks, receiver) = mpsc::channel(CHUNKS_MAX);
        let waiting = self.order(Order::Read { xid, chunks })?;
        let slow = self.slow.another("spool, transaction");
        Ok((Chunks { chunks: receiver, slow }, waiting))
    }

    /// A second way in, for somebody who only looks.
    pub fn peeker(&self) -> Peeker {
        Peeker { orders: self.orders.downgrade(), slow: self.slow.another("spool, parallel apply") }
    }

    fn order(&mut self, order: Order) -> Result<Option<Waiting>, SpoolError> {
        match self.orders.try_send(order) {
            Ok(()) => Ok(None),
            Err(mpsc::error::TrySendError::Full(order)) => Ok(Some(Waiting(order))),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(self.failure()),
        }
    }

    /// Waits for room for an order, and gives it. Cancel-safe: `waiting` is `None` once it was given.
    ///
    /// # Errors
    /// As for [`Spool::append`].
    pub async fn give(&mut self, waiting: &mut Option<Waiting>) -> Result<(), SpoolError> {
        let Ok(room) = self.slow.wait(self.orders.reserve()).await? else { return Err(self.failure()) };
        if let Some(Waiting(order)) = waiting.take() {
            room.send(order);
        }
        Ok(())
    }

    /// Why the thread has ended.
    pub fn failure(&mut self) -> SpoolError {
        self.failed.try_recv().unwrap_or(SpoolError::Gone)
    }

    /// Ends the thread, which removes its files.
    pub async fn close(self) {
        let Spool { orders, slow, failed, ended } = self;
        drop((orders, slow, failed));
        let _ = tokio::time::timeout(CLOSE_MAX, ended).await;
    }
}

impl Peeker {
    /// A copy of what a stream has from `from` on, up to `until` and to the end of a chunk at most: whole records, if these
    /// places stand between records. Empty when it has nothing there yet.
    ///
    /// # Errors
    /// [`SpoolError`] when the place cannot be read or is damaged; [`SpoolError::Gone`] when the spool is closed or has failed.
    pub async fn peek(&self, xid: u32, from: u64, until: u64) -> Result<Bytes, SpoolError> {
        let (found, finding) = oneshot::channel();
        let orders = self.orders.upgrade().ok_or(SpoolError::Gone)?;
        let asking = async {
            orders.send(Order::Peek { xid, from, until, found }).await.map_err(|_| SpoolError::Gone)?;
            drop(orders);
            finding.await.map_err(|_| SpoolError::Gone)?
        };
        self.slow.clone().wait(asking).await?
    }
}

impl Chunks {
    /// The next chunk; `None` after the last. Cancel-safe.
    ///
    /// # Errors
    /// [`SpoolError`]: the file cannot be read, or is damaged; [`SpoolError::Gone`] when the thread has ended, and
    /// [`Spool::failure`] then tells why.
    pub async fn next(&mut self) -> Result<Option<Bytes>, SpoolError> {
        self.slow.wait(self.chunks.recv()).await?.unwrap_or(Err(SpoolError::Gone))
    }
}

/// The thread: carries out orders until there are no more, or one fails.
fn serve(
    mut store: Store,
    mut orders: mpsc::Receiver<Order>,
    failure: oneshot::Sender<SpoolError>,
    telemetry: &Telemetry,
) {
    while let Some(order) = orders.blocking_recv() {
        failpoint::reached("spool.order");
        let done = match order {
            Order::Append { xid, records } => store.append(xid, records),
            Order::Cut { xid, at } => store.cut(xid, at),
            Order::Discard { xid } => store.discard(xid),
            // A failed peek is reported to its reader only; the spool has failed only for the reader that takes the stream.
            Order::Peek { xid, from, until, found } => {
                let _ = found.send(store.peek(xid, from, until));
                Ok(())
            }
            Order::Read { xid, chunks } => {
                give_back(&mut store, xid, &chunks, telemetry);
                Ok(())
            }
        };
        telemetry.spooled(store.bytes());
        store.moved();
        if let Err(error) = done {
            let _ = failure.send(error);
            // Only now may the handle find the orders closed.
            drop(orders);
            return;
        }
    }
}

/// Sends a stream's chunks; an error ends them. A receiver that is gone wants no more.
fn give_back(store: &mut Store, xid: u32, chunks: &mpsc::Sender<ReadBackChunk>, telemetry: &Telemetry) {
    loop {
        let chunk = store.next(xid);
        let more = matches!(chunk, Ok(Some(_)));
        telemetry.spooled(store.bytes());
        if chunks.blocking_send(chunk).is_err() || !more {
            return;
        }
    }
}

/// Whether a start could use this directory, for the tests of `check`.
#[cfg(test)]
pub(crate) fn can_be_opened(directory: &std::path::Path) -> bool {
    Directory::create(directory, &"s".parse().expect("a slot name")).is_ok()
}

#[cfg(test)]
mod tests;
