//! Hints on managed servers: where a provider's role exists, its own statements and settings are named, and nobody is asked for a
//! superuser that is not lent there.

use headwater::commands::demo::StopMode;

use crate::support::findings::{failed, findings, fix, hint, mended};
use crate::support::{Database, Setup, destination, new_source};

/// The role that each provider is known by, what makes a role replicate there, and what is called logical decoding.
const PROVIDERS: &[(&str, &str, &str)] = &[
    ("rds_superuser", "GRANT rds_replication TO", "rds.logical_replication"),
    ("cloudsqlsuperuser", "ALTER ROLE", "cloudsql.logical_decoding"),
    ("alloydbsuperuser", "ALTER ROLE", "alloydb.logical_decoding"),
    ("azure_pg_admin", "ALTER ROLE", "server parameter wal_level"),
    ("supabase_admin", "ALTER ROLE", "Supabase"),
    ("neon_superuser", "such roles may replicate", "logical replication in the settings"),
];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn on_a_providers_server_its_own_statements_and_settings_are_named() {
    let mut source = new_source(&[("max_replication_slots", "1")]).await;
    let schema = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'x');";
    let mut database = Database::on(&source, destination().await, "providers", &["t"], schema).await;
    let role = format!("plain_{}", database.name);
    // As on Amazon RDS, where a membership is what lets a role replicate: here the attribute stands for it.
    let roles = format!(
        "CREATE ROLE rds_replication; CREATE ROLE {role} LOGIN; GRANT SELECT ON t TO {role};
         CREATE PUBLICATION {} FOR TABLE t",
        database.name
    );
    database.at_source(&roles).await;
    let url = format!("postgresql://{role}@127.0.0.1:{}/{}", source.port(), database.name);
    let setup = Setup { source_url: url, ..Setup::of(&database) };
    let own = failed(&setup, "may not replicate").await;
    assert!(hint(&own).contains("as a superuser"), "{own}");
    for (marker, statement, _) in PROVIDERS {
        database.at_source(&format!("CREATE ROLE {marker}")).await;
        let finding = failed(&setup, "may not replicate").await;
        assert!(hint(&finding).contains(statement) && !hint(&finding).contains("superuser:"), "{finding}");
        // The service says the same.
        let log = setup.start().ends_with(1).await;
        assert!(log.contains(statement) && !log.contains("as a superuser"), "{log}");
        if hint(&finding).contains(';') {
            database.at_source(&fix(&finding)).await;
        }
        database.at_source(&format!("ALTER ROLE {role} REPLICATION")).await;
        mended(&setup).await;
        let found = findings(&setup).await;
        let room =
            found.iter().find(|finding| finding["message"].as_str().is_some_and(|text| text.contains("free: 1 slot")));
        let room = room.unwrap_or_else(|| panic!("{found:#?}"));
        assert!(hint(room).contains("max_replication_slots = 20") && !hint(room).contains("ALTER SYSTEM"), "{room}");
        database.at_source(&format!("ALTER ROLE {role} NOREPLICATION; DROP ROLE {marker}")).await;
    }
    // A superuser's own server may have a role of such a name.
    database.at_source("CREATE ROLE rds_superuser").await;
    let superuser = Setup::of(&database);
    source.set("wal_level", "replica");
    source.stop(StopMode::Fast).await.unwrap();
    source.start().await.unwrap();
    database.reconnect_source(&source).await;
    let finding =
        failed(&Setup { source_url: source.tcp_url(&database.name), ..superuser }, "wal_level is replica").await;
    assert!(hint(&finding).contains("ALTER SYSTEM SET wal_level"), "{finding}");
    database.at_source("DROP ROLE rds_superuser").await;
    for (marker, _, decoding) in PROVIDERS {
        database.at_source(&format!("CREATE ROLE {marker}")).await;
        let finding = failed(&setup, "wal_level is replica").await;
        assert!(hint(&finding).contains(decoding) && !hint(&finding).contains("ALTER SYSTEM"), "{finding}");
        database.at_source(&format!("DROP ROLE {marker}")).await;
    }
}
