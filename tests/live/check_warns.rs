//! What check warns of where nothing fails yet: each warning is provoked, and gone once its hint has been followed.

use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use headwater::commands::demo::{Cluster, StopMode};

use crate::support::certificates::{Certificates, with_hba};
use crate::support::clock::source_with_clock;
use crate::support::disk::Disk;
use crate::support::findings::{FAMILY, FAMILY_SCHEMA, find, findings, fix, hint, mended};
use crate::support::{
    Database, Script, Setup, bin, bin_of, destination, new_destination_of, new_source, new_source_of, parent, source,
};

/// The warning with this message; its hint is there.
async fn warned(setup: &Setup, message: &str) -> Value {
    let found = findings(setup).await;
    let finding = find(&found, "warning", message).unwrap_or_else(|| panic!("no warning {message:?} in {found:#?}"));
    assert!(finding["hint"].is_string(), "{finding}");
    finding.clone()
}

/// That there is no such warning any more, and no failure instead.
async fn gone(setup: &Setup, message: &str) {
    let found = findings(setup).await;
    assert!(find(&found, "warning", message).is_none(), "{message:?} is still there: {found:#?}");
    assert!(found.iter().all(|finding| finding["standing"] != "failed"), "{found:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn printed_settings_fix_scarce_slots_and_senders_and_an_idle_slot_timeout() {
    let newest = bin_of(18);
    let bin = newest.clone().unwrap_or_else(|| bin("SOURCE"));
    // Nothing on its command line: ALTER SYSTEM must be able to change what check complains about.
    let mut cluster = Cluster::start_new(&bin, &parent(), "source", &[("fsync", "off")], &[]).await.unwrap();
    let mut database = Database::on(&cluster, destination().await, "scarce", FAMILY, FAMILY_SCHEMA).await;
    for (name, value) in [("wal_level", "logical"), ("max_replication_slots", "1"), ("max_slot_wal_keep_size", "'1GB'")]
    {
        database.at_source(&format!("ALTER SYSTEM SET {name} = {value}")).await;
    }
    if newest.is_some() {
        database.at_source("ALTER SYSTEM SET idle_replication_slot_timeout = '1d'").await;
    }
    cluster.stop(StopMode::Fast).await.unwrap();
    cluster.start().await.unwrap();
    database.reconnect_source(&cluster).await;
    let setup = Setup::of(&database);
    let kept = warned(&setup, "max_slot_wal_keep_size is 1024 MB at the source").await;
    assert!(hint(&kept).starts_with("Watch headwater_slot_seconds_until_lost"), "{kept}");
    let mut messages = vec!["free: 1 slot, "];
    if newest.is_some() {
        messages.push("idle_replication_slot_timeout is 1d at the source");
    }
    for message in &messages {
        let finding = warned(&setup, message).await;
        for statement in fix(&finding).lines() {
            // One by one: ALTER SYSTEM cannot be part of several.
            database.at_source(statement).await;
        }
    }
    cluster.stop(StopMode::Fast).await.unwrap();
    cluster.start().await.unwrap();
    database.reconnect_source(&cluster).await;
    for message in messages {
        gone(&setup, message).await;
    }
    assert!(find(&findings(&setup).await, "ok", "free: 20 slots").is_some());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_clock_that_is_off_is_told_with_the_server_whose_it_is() {
    for offset in ["+300", "-300"] {
        let Some(source) = source_with_clock(offset).await else { return };
        let database = Database::on(&source, destination().await, "checkclock", FAMILY, FAMILY_SCHEMA).await;
        let setup = Setup::of(&database);
        // To within the seconds that a busy machine takes to ask.
        let (sign, _) = offset.split_at(1);
        let finding = warned(&setup, &format!("the source's clock is {sign}")).await;
        let message = finding["message"].as_str().unwrap();
        let told = message.trim_start_matches("the source's clock is ").trim_end_matches(" s from this machine's");
        assert!((295.0..305.0).contains(&told.parse::<f64>().unwrap().abs()), "{message}");
        assert_eq!(hint(&finding), "Let all machines follow one time server.");
    }
    let database = Database::new("oneclock", FAMILY, FAMILY_SCHEMA).await;
    assert!(find(&findings(&Setup::of(&database)).await, "ok", "they agree").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_without_room_for_the_copy_or_for_the_spool_is_told_before_it_is_full() {
    let place = parent().join(format!("small-{:08x}", fastrand::u32(..)));
    let Some(disk) = Disk::mount(&place, "150m") else { return };
    std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o755)).unwrap();
    let settings = [("fsync", "off"), ("wal_keep_size", "0"), ("max_wal_size", "32MB")];
    let here = Cluster::start_new(&bin("DESTINATION"), &place, "destination", &settings, &[]).await.unwrap();
    let schema = "CREATE TABLE parent (id int PRIMARY KEY, v text); CREATE TABLE child (id int PRIMARY KEY, parent int);
        ALTER TABLE parent ALTER v SET STORAGE EXTERNAL; INSERT INTO parent SELECT i, repeat('x', 100000) FROM generate_series(1, 700) i";
    let database = Database::on(source().await, &here, "small", FAMILY, schema).await;
    let setup = Setup::of(&database);
    let message = "MB are free where the destination keeps its data";
    let finding = warned(&setup, message).await;
    assert_eq!(hint(&finding), "Make room at the destination, or move its data directory to a larger disk.");
    disk.enlarge("1g");
    gone(&setup, message).await;
    assert!(find(&findings(&setup).await, "ok", message).is_some());

    // The spool's, on the same disk.
    let spool = |bytes_max: &str| {
        let section = format!("[spool]\ndir = {:?}\nbytes_max = {bytes_max:?}", place.join("spool"));
        setup.clone().section(&section)
    };
    let message = "less than spool.bytes_max";
    let finding = warned(&spool("8GB"), message).await;
    assert!(hint(&finding).starts_with("Make room, or lower spool.bytes_max"), "{finding}");
    gone(&spool("64MB"), message).await;
    disk.enlarge("10g");
    gone(&spool("8GB"), message).await;
    drop(database);
    drop(here);
    drop(disk);
    std::fs::remove_dir(place).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encoding_that_lacks_characters_is_told() {
    let database = Database::of_superuser("narrow", FAMILY, FAMILY_SCHEMA).await;
    let admin = destination().await.connect("postgres").await.unwrap();
    let name = format!("{}_latin1", database.name);
    let sql = format!("CREATE DATABASE {name} ENCODING LATIN1 LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
    admin.script("a database of another encoding", &sql).await.unwrap();
    let mut setup = Setup::of(&database);
    setup.destination_url = setup.destination_url.replace(&format!("/{}", database.name), &format!("/{name}"));
    let message = "the source's encoding is UTF8, the destination's LATIN1";
    let finding = warned(&setup, message).await;
    // What the hint says, in a database of that name.
    let with = hint(&finding).trim_start_matches("Use a destination database with ").trim_end_matches('.');
    admin.script("another", &format!("DROP DATABASE {name}")).await.unwrap();
    admin.script("another", &format!("CREATE DATABASE {name} {with} TEMPLATE template0")).await.unwrap();
    gone(&setup, message).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn rows_without_a_key_and_a_table_that_is_another_one_now_are_told() {
    let schema = "CREATE TABLE parent (id int PRIMARY KEY, v text); CREATE TABLE child (id int, v text);
        ALTER TABLE child REPLICA IDENTITY FULL; INSERT INTO child VALUES (1, 'secret')";
    let database = Database::new("another", FAMILY, schema).await;
    let setup = Setup::of(&database);
    let message = "table public.child has REPLICA IDENTITY FULL";
    let found = findings(&setup).await;
    let finding = find(&found, "warning", message).expect("the warning");
    assert_eq!(finding["detail"], "Without a key, each change is applied by itself.");
    database.at_source("ALTER TABLE child ADD PRIMARY KEY (id)").await;
    gone(&setup, message).await;
    let service = setup.start();
    service.streams().await;
    database.caught_up().await;
    service.stop().await;
    database
        .at_source(
            "DROP TABLE child; CREATE TABLE child (id int PRIMARY KEY, v text); INSERT INTO child VALUES (2, 'secret')",
        )
        .await;
    let found = findings(&setup).await;
    let told = find(&found, "warning", "it is copied again by itself").unwrap_or_else(|| panic!("{found:#?}"));
    assert!(told["message"].as_str().unwrap().contains("public.child"), "{told}");
    let service = setup.start();
    service.streams().await;
    crate::support::eventually("it is copied again", || async {
        let ids = database.destination_value("SELECT string_agg(id::text, ',') FROM child").await;
        (ids.as_deref() == Some("2")).then_some(())
    })
    .await;
    database.assert_catches_up().await;
    service.stop().await;
    gone(&setup, "it is copied again by itself").await;
}

/// An address of this machine that is not its loopback's. Nothing is sent for it.
fn own_address() -> Option<String> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("198.51.100.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback()).then(|| address.to_string())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_connection_that_anybody_could_read_is_told_on_either_side() {
    let Some(address) = own_address() else {
        println!("left out: this machine has no address but its loopback's");
        return;
    };
    let certificates = Certificates::new();
    let mut server = new_source(&[]).await;
    certificates.install(&server);
    for (name, value) in [("ssl_cert_file", "server.crt"), ("ssl_key_file", "server.key"), ("ssl", "on")] {
        server.set(name, value);
    }
    server.set("listen_addresses", &format!("127.0.0.1,{address}"));
    with_hba(&mut server, &format!("host all postgres {address}/32 trust")).await;
    let database = Database::on(&server, destination().await, "readable", FAMILY, FAMILY_SCHEMA).await;
    let admin = server.connect("postgres").await.unwrap();
    admin.script("a destination there", &format!("CREATE DATABASE {}_here", database.name)).await.unwrap();
    let url = |name: &str, parameters: &str| {
        format!("postgresql://postgres@localhost:{}/{name}?hostaddr={address}&{parameters}", server.port())
    };
    for (side, name) in [("source", database.name.clone()), ("destination", format!("{}_here", database.name))] {
        let with = |parameters: &str| {
            let mut setup = Setup::of(&database);
            let own = if side == "source" { &mut setup.source_url } else { &mut setup.destination_url };
            *own = url(&name, parameters);
            setup
        };
        let message = "the connection leaves this machine without TLS";
        let finding = warned(&with("sslmode=disable"), message).await;
        assert_eq!(
            (&finding["about"], hint(&finding)),
            (&side.into(), &*format!("Add sslmode=verify-full and sslrootcert to {side}.url."))
        );
        // TLS is there, but not asked for: whoever answers without it gets the password.
        let finding =
            warned(&with("password=never-asked-for"), &format!("the password for {side}.url may be sent in clear"))
                .await;
        assert_eq!(hint(&finding), format!("Add sslmode=verify-full and sslrootcert to {side}.url."));
        assert!(!finding.to_string().contains("never-asked-for"), "{finding}");
        let verified = with(&format!("sslmode=verify-full&sslrootcert={}", certificates.path("root.crt")));
        gone(&verified, message).await;
        let with_password =
            with(&format!("password=x&sslmode=verify-full&sslrootcert={}", certificates.path("root.crt")));
        gone(&with_password, "may be sent in clear").await;
        mended(&verified).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_that_may_write_every_table_are_named_until_they_are_trusted_or_may_not() {
    // A cluster of its own: its roles are everybody's.
    let here =
        Cluster::start_new(&bin("DESTINATION"), &parent(), "destination", &[("fsync", "off")], &[]).await.unwrap();
    let database = Database::on(source().await, &here, "writeall", FAMILY, FAMILY_SCHEMA).await;
    let roles = r#"CREATE ROLE "Write'all"; CREATE ROLE loader; GRANT pg_write_all_data TO "Write'all", loader"#;
    database.at_destination(roles).await;
    let setup = Setup::of(&database);
    let message = r#"roles "Write'all", loader may write headwater's bookkeeping at the destination"#;
    let finding = warned(&setup, message).await;
    let trusting = setup.clone().destination(r#"trusted_roles = ["\"Write'all\"", "loader"]"#);
    gone(&trusting, "may write headwater's bookkeeping").await;
    let (words, statement) = hint(&finding).rsplit_once(":\n").expect("a statement");
    assert!(words.contains(r#"trusted_roles = ["\"Write'all\"", "loader"]"#), "{words}");
    database.at_destination(statement).await;
    gone(&setup, "may write headwater's bookkeeping").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn servers_newer_than_all_that_were_tried_are_told_of_and_used() {
    // Servers of no such major exist: these say so of themselves, in this database.
    let disguise = "SET allow_system_table_mods = on;
        ALTER FUNCTION pg_catalog.current_setting(text) RENAME TO current_setting_of;
        CREATE FUNCTION pg_catalog.current_setting(name text) RETURNS text LANGUAGE sql STABLE STRICT PARALLEL SAFE AS
            $$SELECT CASE WHEN $1 = 'server_version_num' THEN '990001' ELSE pg_catalog.current_setting_of($1) END$$;
        RESET allow_system_table_mods;";
    let newest = bin_of(18).unwrap_or_else(|| bin("SOURCE"));
    let (from, to) = (new_source_of(&newest, &[]).await, new_destination_of(&newest, &[]).await);
    let database = Database::on(&from, &to, "newer", FAMILY, FAMILY_SCHEMA).await;
    database.at_source(disguise).await;
    database.at_destination(disguise).await;
    let setup = Setup::of(&database);
    for end in ["source", "destination"] {
        warned(&setup, &format!("PostgreSQL 99 at the {end} is newer than what headwater is tested with")).await;
    }
    setup.command(&["check"]).await.exits(0);
    let service = setup.start();
    service.streams().await;
    database.assert_catches_up().await;
    service.stop().await;
}
