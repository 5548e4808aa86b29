//! Who is in the way: sessions that hold something, and servers whose standby does not come.

use headwater::commands::demo::Cluster;
use headwater::session::SqlClient;

use super::{Database, Script, eventually};

/// The process of a session.
pub async fn process_of(session: &SqlClient) -> String {
    session.query_one("asking", "SELECT pg_backend_pid()::text", &[]).await.unwrap().get(0).unwrap()
}

/// A session that says who it is and holds what this takes, in a transaction that it leaves open.
pub async fn holding(cluster: &Cluster, database: &Database, sql: &str) -> (SqlClient, String) {
    let session = cluster.connect(&database.name).await.unwrap();
    let process = process_of(&session).await;
    let begin = format!("SET application_name = 'night job'; SET search_path = public; BEGIN; {sql}");
    session.script("holding", &begin).await.unwrap();
    (session, process)
}

/// From now on each COMMIT there waits for a standby that does not come.
pub async fn waits_for_standby(cluster: &Cluster, database: &Database) {
    let admin = cluster.connect(&database.name).await.unwrap();
    admin.batch("naming a standby", "ALTER SYSTEM SET synchronous_standby_names = 'nobody'").await.unwrap();
    admin.batch("reloading", "SELECT pg_reload_conf()").await.unwrap();
    // It counts once the checkpointer has seen it: a commit that waits tells.
    let probe = cluster.connect(&database.name).await.unwrap();
    let probing = tokio::spawn(async move {
        while probe.batch("a probe", "SELECT pg_logical_emit_message(true, 'probe', '')").await.is_ok() {}
    });
    eventually("a commit waits for the standby", || async {
        let waiting = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        let row = admin.query_one("asking", waiting, &[]).await.unwrap();
        row.get::<bool>(0).unwrap().then_some(())
    })
    .await;
    probing.abort();
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    eventually("the probe has ended", || async {
        admin.query("ending the probe", end, &[]).await.unwrap().is_empty().then_some(())
    })
    .await;
}
