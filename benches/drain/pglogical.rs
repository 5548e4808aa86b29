//! What pglogical needs that PostgreSQL's own subscriptions do not, as SQL: a node at either end, sets of tables, a slot of its plugin.
//!
//! A subscription makes its slot where it is created, behind the backlog. Ours gets the name of one that was made before it, as if its
//! tables had been copied up to there: with its replication origin, in the transaction that creates it.

/// Settings that a server needs for it.
pub const SERVER: &[(&str, &str)] = &[("shared_preload_libraries", "pglogical"), ("max_worker_processes", "16")];

/// The output plugin of its slots.
pub const PLUGIN: &str = "pglogical_output";

/// Makes the source's database a provider of these tables; those without a key can only be inserted into.
pub fn provider(tables: &[&str], connection: &str) -> String {
    format!(
        "CREATE EXTENSION pglogical;
         SELECT pglogical.create_node('provider', '{connection}');
         SELECT pglogical.replication_set_add_table(
             CASE WHEN EXISTS (SELECT FROM pg_index WHERE indrelid = t AND indisprimary) THEN 'default' ELSE 'default_insert_only' END, t)
         FROM unnest('{{{}}}'::regclass[]) AS t",
        tables.join(",")
    )
}

/// Makes the destination's database a subscriber, which subscribes to nothing yet.
pub fn subscriber(connection: &str) -> String {
    format!("CREATE EXTENSION pglogical; SELECT pglogical.create_node('subscriber', '{connection}')")
}

/// Goes on from this slot, at once.
pub fn subscription(slot: &str, from: &str) -> String {
    format!(
        "SELECT pglogical.create_subscription('bench', '{from}', '{{default,default_insert_only}}', false, false, '{{}}');
         UPDATE pglogical.subscription SET sub_slot_name = '{slot}';
         UPDATE pglogical.local_sync_status SET sync_status = 'r';
         SELECT pg_catalog.pg_replication_origin_create('{slot}')"
    )
}

/// Whether its supervisor runs, which keeps every DROP DATABASE waiting while it sleeps.
pub const IS_SUPERVISED: &str = "SELECT FROM pg_stat_activity WHERE backend_type = 'pglogical supervisor'";

/// Ends a subscription. The slot stays: it is dropped like everybody's.
pub const STOP: &str = "SELECT pglogical.alter_subscription_disable('bench', true)";

/// Whether its workers are gone.
pub const IS_GONE: &str = "SELECT FROM (SELECT count(*) AS n FROM pg_stat_activity
     WHERE datname = current_database() AND application_name LIKE 'pglogical apply%') AS workers WHERE n = 0";

/// Empties a database that cannot be dropped.
pub const EMPTY: &str = "DROP SCHEMA public CASCADE";

/// Removes it, so that its manager leaves the database.
pub const REMOVE: &str = "DROP EXTENSION pglogical CASCADE";
