//! A destination whose tables belong to a role that wants to write where only headwater may.

use super::roles::{Roles, owner, writer};
use headwater::commands::demo::Cluster;

use super::{Database, destination, source};

const TABLES: &[&str] = &["t"];
const SCHEMA: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')";

/// Databases whose destination has an owner of its own, who wants to write where only headwater may.
pub async fn new(name: &str, replica: bool) -> Database {
    new_at(destination().await, name, replica).await
}

/// The same, at this destination.
pub async fn new_at(to: &Cluster, name: &str, replica: bool) -> Database {
    let roles = Roles::Least { replica };
    let database = Database::under(roles, source().await, to, name, TABLES, SCHEMA).await;
    let (owner, writer) = (owner(&database.name), writer(&database.name));
    database
        .at_destination(&format!(
            "CREATE SCHEMA only_writer; CREATE TABLE only_writer.pwned (how text); ALTER TABLE only_writer.pwned OWNER TO {writer};
             GRANT USAGE ON SCHEMA only_writer TO PUBLIC; GRANT USAGE, CREATE ON SCHEMA public TO {owner}; ALTER ROLE {owner} LOGIN;
             SET ROLE {owner};
             CREATE FUNCTION pwn_really(how text) RETURNS boolean LANGUAGE plpgsql AS $$
             BEGIN
                 IF session_user = '{writer}' THEN
                     PERFORM set_config('role', 'none', true);
                     INSERT INTO only_writer.pwned VALUES (how);
                 END IF;
                 RETURN true;
             EXCEPTION WHEN insufficient_privilege THEN RETURN true;
             END $$;
             CREATE FUNCTION pwn(how text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
             BEGIN RETURN public.pwn_really(how); END $$;
             CREATE FUNCTION pwn_trigger() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN PERFORM public.pwn(TG_NAME); RETURN COALESCE(NEW, OLD); END $$;
             RESET ROLE;"
        ))
        .await;
    database
}

/// From 15 on a role may be granted what keeps ordinary triggers from firing; before, the tests have nothing to say.
pub async fn cannot_grant_parameters() -> bool {
    let admin = destination().await.connect("postgres").await.expect("the destination answers");
    let sql = "SELECT current_setting('server_version_num')::int < 150000";
    let older = admin.query_one("asking for the version", sql, &[]).await.unwrap().get(0).unwrap();
    if older {
        println!("not run: GRANT … ON PARAMETER needs 15");
    }
    older
}

pub async fn as_owner(database: &Database, sql: &str) {
    database.at_destination(&format!("SET ROLE {}; {sql}; RESET ROLE", owner(&database.name))).await;
}

pub async fn nobody_was_pwned(database: &Database) {
    let sql = "SELECT COALESCE(string_agg(DISTINCT how, ', '), 'nobody') FROM only_writer.pwned";
    assert_eq!(database.destination_value(sql).await.as_deref(), Some("nobody"));
}
