//! `cargo bench --bench hot`: what one core does in a second between the read buffer and the bytes that leave.
//!
//! Decoding, assembling into one batch, folding to the net effect and writing it, each by itself, with rows of about 300
//! bytes: as one transaction of many rows, and as many of one row. No server and no socket.
//!
//! And what the numbers on /metrics and the status page cost: the calls that the ring makes for a transaction that is received, and
//! for a batch that is applied.

#![allow(missing_docs, unreachable_pub, reason = "a program, not a library")]

mod stream;

use std::time::Duration;

use bytes::BytesMut;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use headwater::pg::{Lsn, PgTimestamp, QualifiedName};
use headwater::telemetry::{Operation, RowCount, Telemetry};

use stream::Kind;

const ROWS: i64 = 10_000;

fn hot_path(criterion: &mut Criterion) {
    let target = stream::target();
    for (shape, rows_per_transaction) in [("one transaction", ROWS), ("transactions of one row", 1)] {
        for kind in [Kind::Insert, Kind::Update] {
            let messages = stream::messages(kind, ROWS, rows_per_transaction);
            let bytes: usize = messages.iter().map(bytes::Bytes::len).sum();
            let name = format!("{kind:?}, {shape}, {} bytes a row", bytes / usize::try_from(ROWS).unwrap_or(1));
            let mut group = criterion.benchmark_group("rows");
            group.throughput(Throughput::Elements(ROWS.unsigned_abs()));
            group.bench_with_input(BenchmarkId::new("decode", &name), &messages, |bencher, messages| {
                bencher.iter(|| stream::decode(messages));
            });
            group.bench_with_input(BenchmarkId::new("decode and batch", &name), &messages, |bencher, messages| {
                bencher.iter(|| stream::batch(messages));
            });
            let batch = stream::batch(&messages);
            let mut out = BytesMut::new();
            group.bench_with_input(BenchmarkId::new("fold and write", &name), &batch, |bencher, batch| {
                bencher.iter(|| stream::write(batch, &target, &mut out));
            });
            group.finish();
        }
    }
}

fn telemetry(criterion: &mut Criterion) {
    let telemetry = Telemetry::new(Duration::from_secs(60));
    telemetry.stream_begins(Lsn::new(1), [QualifiedName::new("public", "messages")]);
    let mut at = 1_u64;
    let local = || PgTimestamp::from_unix_micros(i64::try_from(unix_micros()).unwrap_or(0));
    let mut group = criterion.benchmark_group("telemetry");
    group.bench_function("a transaction is received", |bencher| {
        bencher.iter(|| {
            at += 1;
            let sent_at = local();
            telemetry.heard(sent_at, sent_at);
            telemetry.received(Lsn::new(at), sent_at);
            // As in a backlog: one batch stores a few hundred transactions.
            if at.is_multiple_of(256) {
                telemetry.stored(Lsn::new(at));
            }
        });
    });
    group.bench_function("a batch of one row is applied", |bencher| {
        bencher.iter(|| {
            at += 1;
            telemetry.stored(Lsn::new(at));
            telemetry.confirmed(Lsn::new(at));
            let rows = [RowCount { table: "public.messages".to_owned(), operation: Operation::Insert, rows: 1 }];
            telemetry.batch_applied(1, &rows, 0, Duration::from_micros(300));
        });
    });
    group.finish();
}

fn unix_micros() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_micros()
}

criterion_group!(benches, hot_path, telemetry);
criterion_main!(benches);
