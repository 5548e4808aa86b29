//! Waiting until no table is suspended any more.

use super::{Database, eventually};

/// Waits until every table is followed, and no copy is asked for.
pub async fn all_live(database: &Database) {
    eventually("every table is followed", || async {
        let sql = "SELECT (NOT EXISTS (SELECT FROM headwater.tables WHERE state <> 'live')
                   AND NOT EXISTS (SELECT FROM headwater.resnapshots WHERE state = 'requested'))::text";
        (database.destination_value(sql).await.as_deref() == Some("true")).then_some(())
    })
    .await;
}

/// What headwater has copied by itself is an hour ago: the next copies need not wait.
pub async fn an_hour_passes(database: &Database) {
    let sql = "UPDATE headwater.resnapshots SET finished_at = finished_at - interval '1 hour'
               WHERE finished_at > pg_catalog.now() - interval '1 hour'";
    database.at_destination(sql).await;
}

/// Waits until the change has been met and the copy is there, then compares.
pub async fn copied_again(database: &Database) {
    database.caught_up().await;
    all_live(database).await;
    database.assert_catches_up().await;
}
