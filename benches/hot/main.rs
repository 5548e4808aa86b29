//! `cargo bench --bench hot`: what one core does in a second between the read buffer and the bytes that leave.
//!
//! Decoding, assembling into one batch, folding to the net effect and writing it, each by itself, with rows of about 300
//! bytes: as one transaction of many rows, and as many of one row. No server and no socket.

#![allow(missing_docs, unreachable_pub, reason = "a program, not a library")]

mod stream;

use bytes::BytesMut;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

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

criterion_group!(benches, hot_path);
criterion_main!(benches);
