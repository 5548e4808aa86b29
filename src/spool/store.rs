//! The store: each stream's chunks, in memory as long as it holds them, then in a file.
//!
//! Carried by the spool's thread; what it does is done when it returns. A stream is one row of bytes; its beginning may be on
//! disk, its end is in memory:
//!
//! ```text
//! 0 ────────────── memory_begins ─────────────── end
//! │ blocks in a file             │ chunks in memory │        block: [length u32][CRC-32 u32][chunk]
//! ```
//!
//! When memory is full, the stream with most of it moves its first chunks to its file, so the newest stay in memory and the
//! last ones need not be read back. A cut that falls into a block takes the block back into memory. Files are opened for
//! each operation: streams may be more than file descriptors.
//!
//! Nothing is synced: a file never outlives its process's use of it.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};

use bytes::Bytes;

use super::directory::{Directory, failed};
use crate::config::SpoolSettings;
use crate::pg::{length_u32, length_u64, usize_from};
use crate::spool::error::SpoolError;
use crate::spool::slow::DiskProgress;
use crate::telemetry::failpoint;
use crate::transaction::Records;

/// So much is written or read by one system call. The kernel takes a container's share of a core away only between two of them: one
/// that copies 200 MB takes seconds of a small share in advance, in which no thread of the process runs, nor keeps the lead.
const IO_BYTES: usize = 1 << 20;
/// Smaller chunks are joined up to this size before they are kept.
const CHUNK_BYTES: usize = 256 << 10;
/// Length and checksum.
const HEADER_BYTES: u64 = 8;

/// A chunk on disk.
#[derive(Clone, Copy, Debug)]
struct Block {
    /// Where it begins in the stream.
    begins: u64,
    /// Where its header stands in the file.
    offset: u64,
    length: u32,
}

#[derive(Debug, Default)]
struct SpooledStream {
    blocks: VecDeque<Block>,
    file_bytes: u64,
    memory_begins: u64,
    memory: VecDeque<Records>,
    /// What follows them and is not large enough for a chunk yet.
    tail: Vec<u8>,
    /// Of chunks and tail.
    memory_bytes: u64,
}

impl SpooledStream {
    fn end(&self) -> u64 {
        self.memory_begins + self.memory_bytes
    }

    /// Makes the tail a chunk, in an allocation of just its size.
    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.memory.push_back(Bytes::from(std::mem::take(&mut self.tail).into_boxed_slice()).into());
        }
    }
}

/// All streams.
#[derive(Debug)]
pub(super) struct Store {
    directory: Directory,
    memory_bytes_max: u64,
    disk_bytes_max: u64,
    streams: HashMap<u32, SpooledStream>,
    memory_bytes: u64,
    disk_bytes: u64,
    progress: DiskProgress,
}

impl Store {
    pub(super) fn new(directory: Directory, settings: &SpoolSettings, progress: DiskProgress) -> Store {
        Store {
            directory,
            memory_bytes_max: settings.memory_bytes_max,
            disk_bytes_max: settings.bytes_max,
            streams: HashMap::new(),
            memory_bytes: 0,
            disk_bytes: 0,
            progress,
        }
    }

    /// An order was carried out.
    pub(super) fn moved(&self) {
        self.progress.moved();
    }

    /// What is kept, in memory and on disk.
    pub(super) fn bytes(&self) -> u64 {
        self.memory_bytes + self.disk_bytes
    }

    /// Keeps records behind those that the stream has.
    pub(super) fn append(&mut self, xid: u32, records: Records) -> Result<(), SpoolError> {
        let stream = self.streams.entry(xid).or_default();
        let bytes = length_u64(records.len());
        if stream.tail.len() + records.len() > CHUNK_BYTES {
            stream.seal();
        }
        if records.len() >= CHUNK_BYTES / 2 {
            stream.seal();
            stream.memory.push_back(records);
        } else {
            records.parts().into_iter().for_each(|part| stream.tail.extend_from_slice(part));
        }
        stream.memory_bytes += bytes;
        self.memory_bytes += bytes;
        self.make_room()
    }

    /// Moves chunks to disk until memory holds no more than it may.
    fn make_room(&mut self) -> Result<(), SpoolError> {
        while self.memory_bytes > self.memory_bytes_max {
            let largest = self.streams.iter().max_by_key(|(_, stream)| stream.memory_bytes);
            let Some(xid) = largest.map(|(xid, _)| *xid) else { break };
            self.move_to_disk(xid)?;
        }
        Ok(())
    }

    /// Moves a stream's first chunk in memory to its file.
    fn move_to_disk(&mut self, xid: u32) -> Result<(), SpoolError> {
        let Some(stream) = self.streams.get_mut(&xid) else { return Ok(()) };
        if stream.memory.is_empty() {
            stream.seal();
        }
        let Some(chunk) = stream.memory.front() else { return Ok(()) };
        let bytes = length_u64(chunk.len());
        if self.disk_bytes + HEADER_BYTES + bytes > self.disk_bytes_max {
            let path = self.directory.parent().to_owned();
            return Err(SpoolError::Full { bytes_max: self.disk_bytes_max, path });
        }
        let path = self.directory.path(xid);
        // A chunk is a quarter of a megabyte and one row, and a row comes in a message of at most 1 GiB.
        let block_length = length_u32(chunk.len());
        let mut header = [0; 8];
        let (length, checksum) = header.split_at_mut(4);
        length.copy_from_slice(&block_length.to_be_bytes());
        let mut hasher = crc32fast::Hasher::new();
        chunk.parts().into_iter().for_each(|part| hasher.update(part));
        checksum.copy_from_slice(&hasher.finalize().to_be_bytes());
        let mut file = self.directory.append(xid)?;
        let mut written = file.write_all(&header);
        for piece in chunk.parts().into_iter().flat_map(|part| part.chunks(IO_BYTES)) {
            failpoint::reached("spool.piece");
            written = written.and_then(|()| file.write_all(piece));
            self.progress.moved();
        }
        written.map_err(failed("write", &path))?;
        stream.blocks.push_back(Block {
            begins: stream.memory_begins,
            offset: stream.file_bytes,
            length: block_length,
        });
        stream.file_bytes += HEADER_BYTES + bytes;
        stream.memory_begins += bytes;
        stream.memory_bytes -= bytes;
        stream.memory.pop_front();
        self.memory_bytes -= bytes;
        self.disk_bytes += HEADER_BYTES + bytes;
        Ok(())
    }

    /// Keeps only the first `at` bytes of a stream.
    pub(super) fn cut(&mut self, xid: u32, at: u64) -> Result<(), SpoolError> {
        let Some(stream) = self.streams.get_mut(&xid) else { return Ok(()) };
        if at >= stream.end() {
            return Ok(());
        }
        self.memory_bytes -= stream.memory_bytes;
        stream.seal();
        while stream.end() > at
            && let Some(last) = stream.memory.pop_back()
        {
            stream.memory_bytes -= length_u64(last.len());
            keep_head(stream, &last.joined(), at);
        }
        self.memory_bytes += stream.memory_bytes;
        let mut cut = None;
        while let Some(block) = stream.blocks.back().copied()
            && block.begins + u64::from(block.length) > at
        {
            stream.blocks.pop_back();
            cut = Some(block);
        }
        let Some(block) = cut else { return Ok(()) };
        let path = self.directory.path(xid);
        let mut file = self.directory.edit(xid)?;
        stream.memory_begins = block.begins;
        if block.begins < at {
            let chunk = read_block(&mut file, block, &path, &self.progress)?;
            keep_head(stream, &chunk, at);
            self.memory_bytes += stream.memory_bytes;
        }
        file.set_len(block.offset).map_err(failed("truncate", &path))?;
        self.disk_bytes -= stream.file_bytes - block.offset;
        stream.file_bytes = block.offset;
        self.make_room()
    }

    /// Forgets a stream.
    pub(super) fn discard(&mut self, xid: u32) -> Result<(), SpoolError> {
        let Some(stream) = self.streams.remove(&xid) else { return Ok(()) };
        self.memory_bytes -= stream.memory_bytes;
        if stream.file_bytes > 0 {
            self.directory.remove(xid)?;
            self.disk_bytes -= stream.file_bytes;
        }
        Ok(())
    }

    /// A copy of what a stream has from `from` on, up to `until` at most and to the end of the chunk in which it lies; the
    /// stream keeps it. Empty when there is nothing.
    pub(super) fn peek(&mut self, xid: u32, from: u64, until: u64) -> Result<Bytes, SpoolError> {
        let Some(stream) = self.streams.get(&xid) else { return Ok(Bytes::new()) };
        let part = |chunk: &Bytes, begins: u64| {
            let index =
                |at: u64| usize::try_from((at - begins).min(length(chunk))).expect("no more than the chunk's length");
            chunk.slice(index(from)..index(until.max(from)))
        };
        let holds = |begins: u64, length: u64| begins <= from && from < begins + length;
        let block = stream.blocks.partition_point(|block| block.begins <= from).checked_sub(1);
        if let Some(block) = block.and_then(|at| stream.blocks.get(at))
            && holds(block.begins, block.length.into())
        {
            let path = self.directory.path(xid);
            let mut file = self.directory.read(xid)?;
            return Ok(part(&read_block(&mut file, *block, &path, &self.progress)?, block.begins));
        }
        let mut begins = stream.memory_begins;
        for chunk in &stream.memory {
            let length = length_u64(chunk.len());
            if holds(begins, length) {
                return Ok(part(&chunk.clone().joined(), begins));
            }
            begins += length;
        }
        if from >= begins && from < stream.end() {
            return Ok(part(&Bytes::copy_from_slice(&stream.tail), begins));
        }
        Ok(Bytes::new())
    }

    /// Takes a stream's next chunk; after the last one the stream is forgotten.
    pub(super) fn next(&mut self, xid: u32) -> Result<Option<Bytes>, SpoolError> {
        let Some(stream) = self.streams.get_mut(&xid) else { return Ok(None) };
        if let Some(block) = stream.blocks.pop_front() {
            let path = self.directory.path(xid);
            let mut file = self.directory.read(xid)?;
            return read_block(&mut file, block, &path, &self.progress).map(Some);
        }
        if stream.memory.is_empty() {
            stream.seal();
        }
        if let Some(chunk) = stream.memory.pop_front() {
            let length = length_u64(chunk.len());
            stream.memory_begins += length;
            stream.memory_bytes -= length;
            self.memory_bytes -= length;
            return Ok(Some(chunk.joined()));
        }
        self.discard(xid)?;
        Ok(None)
    }
}

/// Of a chunk that was taken off a stream's end, keeps what stands before `at`, as its tail.
fn keep_head(stream: &mut SpooledStream, chunk: &Bytes, at: u64) {
    let head =
        usize::try_from(at.saturating_sub(stream.end()).min(length(chunk))).expect("no more than the chunk's length");
    stream.tail = chunk[..head].to_vec();
    stream.memory_bytes += length_u64(head);
}

/// Reads a block and checks that it is what was written.
fn read_block(
    file: &mut File,
    block: Block,
    path: &std::path::Path,
    progress: &DiskProgress,
) -> Result<Bytes, SpoolError> {
    let reading = failed("read", path);
    file.seek(SeekFrom::Start(block.offset)).map_err(&reading)?;
    let mut header = [0; 8];
    file.read_exact(&mut header).map_err(&reading)?;
    let (length, checksum) = header.split_at(4);
    let mut chunk = vec![0; usize_from(block.length)];
    for piece in chunk.chunks_mut(IO_BYTES) {
        file.read_exact(piece).map_err(&reading)?;
        progress.moved();
    }
    if length != block.length.to_be_bytes() || checksum != crc32fast::hash(&chunk).to_be_bytes() {
        return Err(SpoolError::Damaged { path: path.to_owned(), offset: block.offset });
    }
    Ok(Bytes::from(chunk))
}

fn length(chunk: &Bytes) -> u64 {
    length_u64(chunk.len())
}

#[cfg(test)]
mod tests {
    use super::super::tests::Scratch;
    use super::*;

    fn store(scratch: &Scratch, memory_bytes_max: u64, bytes_max: u64) -> Store {
        let settings = SpoolSettings { dir: scratch.0.clone(), memory_bytes_max, bytes_max };
        Store::new(Directory::create(&scratch.0, &"test".parse().unwrap()).unwrap(), &settings, DiskProgress::default())
    }

    fn take(store: &mut Store, xid: u32) -> Vec<u8> {
        let mut taken = Vec::new();
        while let Some(chunk) = store.next(xid).unwrap() {
            taken.extend_from_slice(&chunk);
        }
        taken
    }

    #[test]
    fn whatever_is_appended_cut_and_discarded_comes_back_exactly() {
        // Against a plain Vec per stream, with memory for a fraction of it.
        for seed in 0..40 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let scratch = Scratch::new();
            let mut store = store(&scratch, rng.u64(0..600_000), u64::MAX);
            let mut model: HashMap<u32, Vec<u8>> = HashMap::new();
            for _ in 0..200 {
                let xid = rng.u32(1..6);
                match rng.u8(..20) {
                    0 => {
                        let taken = take(&mut store, xid);
                        assert_eq!(taken, model.remove(&xid).unwrap_or_default(), "seed {seed}");
                    }
                    1 => {
                        store.discard(xid).unwrap();
                        model.remove(&xid);
                    }
                    2..6 => {
                        let bytes = model.entry(xid).or_default();
                        let at = rng.usize(..=bytes.len());
                        bytes.truncate(at);
                        store.cut(xid, at as u64).unwrap();
                    }
                    _ => {
                        let most = if rng.u8(..4) == 0 { 300_000 } else { 2_000 };
                        let mut records = vec![0; rng.usize(1..most)];
                        rng.fill(&mut records);
                        model.entry(xid).or_default().extend_from_slice(&records);
                        // A large row comes in a part of its own.
                        let at = if records.len() > CHUNK_BYTES { rng.usize(..1000) } else { records.len() };
                        let (head, large) = records.split_at(at);
                        let (head, large) = (Bytes::copy_from_slice(head), Bytes::copy_from_slice(large));
                        store.append(xid, Records { head, large }).unwrap();
                    }
                }
                assert!(store.memory_bytes <= store.memory_bytes_max, "seed {seed}: {}", store.memory_bytes);
            }
            for xid in 1..6 {
                assert_eq!(take(&mut store, xid), model.remove(&xid).unwrap_or_default(), "seed {seed}, stream {xid}");
            }
            assert_eq!((store.memory_bytes, store.disk_bytes), (0, 0), "seed {seed}");
        }
    }

    #[test]
    fn what_is_looked_at_is_what_will_be_taken_and_stays_there() {
        for seed in 0..20 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let scratch = Scratch::new();
            let mut store = store(&scratch, rng.u64(0..900_000), u64::MAX);
            let mut model = Vec::new();
            for _ in 0..60 {
                let most = if rng.bool() { 200_000 } else { 2_000 };
                let mut records = vec![0; rng.usize(1..most)];
                rng.fill(&mut records);
                model.extend_from_slice(&records);
                store.append(1, Bytes::from(records).into()).unwrap();
                if rng.u8(..10) == 0 {
                    model.truncate(rng.usize(..=model.len()));
                    store.cut(1, model.len() as u64).unwrap();
                }
                let until = rng.usize(..=model.len());
                let mut looked = rng.usize(..=until);
                while looked < until {
                    let part = store.peek(1, looked as u64, until as u64).unwrap();
                    assert!(!part.is_empty(), "seed {seed}");
                    assert_eq!(part, model[looked..looked + part.len()], "seed {seed}");
                    looked += part.len();
                }
                assert!(store.peek(1, model.len() as u64, u64::MAX).unwrap().is_empty());
            }
            assert_eq!(take(&mut store, 1), model, "seed {seed}");
        }
    }

    #[test]
    fn the_spool_writes_only_what_exceeds_memory_to_a_file_that_ends_with_its_stream() {
        let scratch = Scratch::new();
        let mut store = store(&scratch, 1 << 20, u64::MAX);
        store.append(7, Bytes::from(vec![1; 1 << 20]).into()).unwrap();
        assert!(!store.directory.path(7).exists());
        store.append(7, Bytes::from(vec![2; 300 << 10]).into()).unwrap();
        assert!(store.directory.path(7).exists());
        assert!(store.memory_bytes <= 1 << 20);
        assert_eq!(take(&mut store, 7).len(), (1 << 20) + (300 << 10));
        assert!(!store.directory.path(7).exists());
    }

    #[test]
    fn a_full_spool_is_an_error_that_names_the_setting() {
        let scratch = Scratch::new();
        let mut store = store(&scratch, 100_000, 1_000_000);
        let full = (0..).find_map(|_| store.append(1, Bytes::from(vec![0; 300_000]).into()).err()).unwrap();
        assert!(matches!(full, SpoolError::Full { bytes_max: 1_000_000, .. }), "{full}");
        assert!(full.to_string().contains("spool.bytes_max"), "{full}");
        assert!(store.disk_bytes <= 1_000_000);
    }

    #[test]
    fn a_damaged_file_is_noticed() {
        for damaged in [0, 5, 100] {
            let scratch = Scratch::new();
            let mut store = store(&scratch, 0, u64::MAX);
            store.append(1, Bytes::from(vec![7; 300_000]).into()).unwrap();
            let path = store.directory.path(1);
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[damaged] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            let error = store.next(1).unwrap_err();
            assert!(matches!(error, SpoolError::Damaged { offset: 0, .. }), "{error}");
        }
        let scratch = Scratch::new();
        let mut store = store(&scratch, 0, u64::MAX);
        store.append(1, Bytes::from(vec![7; 300_000]).into()).unwrap();
        File::options().write(true).open(store.directory.path(1)).unwrap().set_len(1000).unwrap();
        assert!(matches!(store.next(1), Err(SpoolError::File { doing: "read", .. })), "a file that was cut short");
    }
}
