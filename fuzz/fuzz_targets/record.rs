//! Records of the spool: whatever the bytes are, they are changes or an error, and what is accepted writes back to changes that
//! are equal.

#![no_main]

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use headwater::pg::{Column, Ident, QualifiedName, Relation, RelationId, ReplicaIdentity, TypeId};
use headwater::transaction::{read_changes, write_change};
use libfuzzer_sys::fuzz_target;

fn relation(id: u32) -> Arc<Relation> {
    let column = |n: u32| Column {
        name: Ident::new(format!("c{n}")),
        in_identity: n == 0,
        type_id: TypeId(25),
        type_modifier: -1,
    };
    Arc::new(Relation {
        leaves: Default::default(),
        id: RelationId(id),
        name: QualifiedName::new("public", "t"),
        replica_identity: ReplicaIdentity::Default,
        columns: (0..id).map(column).collect(),
    })
}

fuzz_target!(|data: &[u8]| {
    // The relation with the number n has n columns.
    let relations: Vec<_> = (0..4).map(relation).collect();
    let Ok(changes) = read_changes(&Bytes::copy_from_slice(data), &relations) else { return };
    let mut written = BytesMut::new();
    for change in &changes {
        write_change(change, |relation| relation.id.0, &mut written);
    }
    assert_eq!(read_changes(&written.freeze(), &relations), Ok(changes));
});
