//! The bytes that real servers send: decoded whole, and with HEADWATER_RECORD=DIR kept as the corpus of tests/wire.rs.
//!
//! `make golden` records them for every server major. The file's form: for each CopyData payload its length (four bytes,
//! big-endian) and the payload.

use std::time::Duration;

use headwater::config::{ConnectionSettings, Environment};
use headwater::pg::{Ident, Lsn};
use headwater::session::{ReplicationSession, SlotSnapshot, StreamOptions, StreamedMessage};
use headwater::wire::{Decoder, Message, ReplicationMessage};

use crate::support::{Database, new_destination, new_source};

const SCHEMA: &str = "
    CREATE TYPE mood AS ENUM ('calm', 'cross');
    CREATE TABLE plain (id int PRIMARY KEY, body text, n numeric, m mood, at timestamptz, a int[], big text);
    CREATE TABLE whole (a int, b text); ALTER TABLE whole REPLICA IDENTITY FULL;
    CREATE TABLE bulk (id int PRIMARY KEY, v text);";

const CHANGES: &[&str] = &[
    "INSERT INTO plain VALUES (1, 'one', 1.50, 'calm', '2020-01-02 03:04:05+00', '{1,NULL,3}',
         (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 300) i))",
    "UPDATE plain SET body = 'uno' WHERE id = 1",
    "UPDATE plain SET id = 2, body = NULL WHERE id = 1",
    "DELETE FROM plain WHERE id = 2",
    "INSERT INTO whole VALUES (1, 'x'), (NULL, NULL)",
    "UPDATE whole SET b = 'y' WHERE a = 1",
    "DELETE FROM whole WHERE a IS NULL",
    "SELECT pg_logical_emit_message(true, 'headwater', 'in a transaction'), pg_logical_emit_message(false, 'headwater', 'outside')",
    "ALTER TABLE plain ADD COLUMN extra text DEFAULT 'd'",
    "INSERT INTO plain (id, extra) VALUES (3, 'e')",
    "BEGIN; INSERT INTO bulk SELECT i, 'v' FROM generate_series(1, 550) i; SAVEPOINT s;
     INSERT INTO bulk SELECT i, 'w' FROM generate_series(1001, 1550) i; ROLLBACK TO SAVEPOINT s;
     UPDATE bulk SET v = 'short' WHERE id < 5; COMMIT",
    "BEGIN; INSERT INTO bulk SELECT i, 'x' FROM generate_series(2001, 2550) i; ROLLBACK",
    "TRUNCATE plain, whole RESTART IDENTITY CASCADE",
    "SELECT pg_logical_emit_message(true, 'headwater', 'the end')",
];

#[tokio::test(flavor = "multi_thread")]
async fn every_protocol_and_format_of_this_server_is_decoded_to_the_last_byte() {
    let source = new_source(&[("logical_decoding_work_mem", "64kB")]).await;
    let destination = new_destination(&[]).await;
    let database = Database::on(&source, &destination, "golden", &[], SCHEMA).await;
    database.at_source("CREATE PUBLICATION golden FOR ALL TABLES").await;
    let version: u32 =
        database.source_value("SELECT current_setting('server_version_num')").await.unwrap().parse().unwrap();
    let major = version / 10_000;
    let protocols: &[u8] = match major {
        14 => &[1, 2],
        15 => &[1, 2, 3],
        _ => &[1, 2, 3, 4],
    };
    let connection = ConnectionSettings::parse(&source.url(&database.name), &Environment::new()).unwrap();
    let timeout = Duration::from_secs(30);
    let connect = || ReplicationSession::connect(&connection, "golden", timeout, timeout);
    let mut variants = Vec::new();
    for protocol in protocols {
        for binary in [false, true] {
            let slot = format!("golden_{protocol}_{binary}").parse().unwrap();
            let mut session = connect().await.unwrap();
            session.create_slot(&slot, SlotSnapshot::ExportPermanent, timeout).await.unwrap();
            session.close().await;
            variants.push((*protocol, binary, slot));
        }
    }
    for change in CHANGES {
        database.at_source(change).await;
    }
    for (protocol, binary, slot) in variants {
        let options = StreamOptions {
            protocol_version: protocol,
            publication: Ident::new("golden"),
            binary,
            streaming: protocol > 1,
            origin_none: false,
        };
        let mut session = connect().await.unwrap();
        session.start(&slot, Lsn::INVALID, &options).await.unwrap();
        let mut decoder = Decoder::new(false);
        let mut recorded = Vec::new();
        let mut kinds = std::collections::BTreeSet::new();
        loop {
            let StreamedMessage::Message(ReplicationMessage::XLogData(data)) = session.next().await.unwrap() else {
                continue;
            };
            recorded.extend_from_slice(&u32::try_from(data.data.len()).unwrap().to_be_bytes());
            recorded.extend_from_slice(&data.data);
            kinds.insert(char::from(data.data[0]));
            let message = decoder.read(&data.data).unwrap();
            if matches!(&message, Message::Logical { message, .. } if message.content == "the end") {
                break;
            }
        }
        let expected = if protocol == 1 { "BCDIMRTUY" } else { "ABCDEIMRSTUYc" };
        assert_eq!(kinds.iter().collect::<String>(), expected, "protocol {protocol}, binary {binary}");
        // The protocols between the first and the newest differ in nothing but their numbers: text is enough of them.
        let kept = !binary || protocol == 1 || Some(&protocol) == protocols.last();
        if let Some(dir) = std::env::var_os("HEADWATER_RECORD").filter(|_| kept) {
            let format = if binary { "binary" } else { "text" };
            let name = format!("pg{major}-protocol{protocol}-{format}.bin");
            std::fs::write(std::path::Path::new(&dir).join(name), &recorded).unwrap();
        }
    }
}
