//! The hot path allocates for a transaction, not for a row: values stay slices of the read buffer until they are written.

#[path = "../benches/hot/stream.rs"]
mod stream;

use bytes::BytesMut;
use stream::Kind;

const ROWS: i64 = 10_000;

/// Allocations of `work`, in hundredths for each row.
fn hundredths_per_row(work: impl FnOnce()) -> u64 {
    allocation_counter::measure(work).count_total * 100 / ROWS.unsigned_abs()
}

#[test]
fn rows_of_a_transaction_are_decoded_folded_and_written_without_an_allocation_each() {
    let target = stream::target();
    let mut out = BytesMut::with_capacity(16 << 20);
    for kind in [Kind::Insert, Kind::Update] {
        let messages = stream::messages(kind, ROWS, ROWS);
        let decoded = hundredths_per_row(|| assert_eq!(stream::decode(&messages), messages.len() - 1));
        let mut batch = None;
        let batched = hundredths_per_row(|| batch = Some(stream::batch(&messages)));
        let batch = batch.unwrap_or_default();
        let written = hundredths_per_row(|| assert!(stream::write(&batch, &target, &mut out) > 0));
        assert!(decoded <= 1 && batched <= 1 && written <= 1, "{kind:?}: {decoded}, {batched}, {written} for 100 rows");
    }
}

#[test]
fn a_transaction_of_one_row_costs_an_allocation_or_two() {
    let messages = stream::messages(Kind::Insert, ROWS, 1);
    let batched = hundredths_per_row(|| drop(stream::batch(&messages)));
    assert!(batched <= 210, "{batched} for 100 transactions of one row");
}
