//! A text that was made at run time is one statement, on whichever session: the server takes no second one in it.

use std::time::Duration;

use headwater::config::{ConnectionSettings, Environment};
use headwater::session::{Connection, CopyIn, CopyOut, PipelinedRequest, SessionError, Sql, SqlState, WritingSession};

use crate::support::Database;

const TIMEOUT: Duration = Duration::from_secs(60);
const SYNTAX_ERROR: SqlState = SqlState::new(b"42601");

/// Each would leave a table, were it run by the simple protocol.
const TWO_STATEMENTS: &[&str] = &[
    "CREATE TABLE second (); CREATE TABLE third ()",
    "SELECT 1; CREATE TABLE second ()",
    "COMMIT; CREATE TABLE second ()",
    "SELECT 1 /* */ ; -- ;\nCREATE TABLE second ()",
    "CREATE TABLE second (); ROLLBACK",
    ";;CREATE TABLE second ();SELECT 1",
];

fn is_syntax_error<T>(result: Result<T, SessionError>, sql: &str) {
    let code = result.err().and_then(|error| error.code());
    assert_eq!(code, Some(SYNTAX_ERROR), "{sql}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_statement_in_a_text_is_a_syntax_error() {
    let database =
        Database::new("second", &["t"], "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)").await;
    let settings = ConnectionSettings::parse(&database.source_url, &Environment::new()).expect("an address");
    let client = Sql { connection: settings.clone(), purpose: "statements", timeout: TIMEOUT }.connect().await.unwrap();
    let mut ours = Connection::open(&settings, "statements", &[]).await.unwrap();
    let mut writing = WritingSession::connect(&settings, "statements", &[]).await.unwrap();
    for sql in TWO_STATEMENTS {
        is_syntax_error(client.statement("testing", sql).await, sql);
        is_syntax_error(client.statements("testing", &["SELECT 1", sql, "CREATE TABLE third ()"]).await, sql);
        is_syntax_error(client.statement_behind("BEGIN", "testing", sql).await, sql);
        client.batch("testing", "ROLLBACK").await.unwrap();
        is_syntax_error(client.query("testing", sql, &[]).await, sql);
        is_syntax_error(client.execute("testing", sql, &[]).await, sql);
        is_syntax_error(client.copy_in("testing", sql).await, sql);
        is_syntax_error(ours.statements(&["SELECT 1", sql, "CREATE TABLE third ()"], "testing", TIMEOUT).await, sql);
        is_syntax_error(CopyIn::start(&mut ours, sql, TIMEOUT).await, sql);
        is_syntax_error(CopyOut::start(&mut ours, sql, TIMEOUT).await, sql);
        let mut request = PipelinedRequest::new();
        request.run(sql);
        is_syntax_error(writing.round_trip("testing", request, TIMEOUT).await, sql);
    }
    for copy in ["COPY public.t TO STDOUT; CREATE TABLE second ()", "COPY public.t FROM STDIN; CREATE TABLE second ()"]
    {
        is_syntax_error(client.copy_in("testing", copy).await, copy);
        is_syntax_error(CopyIn::start(&mut ours, copy, TIMEOUT).await, copy);
        is_syntax_error(CopyOut::start(&mut ours, copy, TIMEOUT).await, copy);
    }
    // After a refusal a session is in order.
    ours.statements(&["BEGIN", "INSERT INTO public.t VALUES (2)", "COMMIT"], "testing", TIMEOUT).await.unwrap();
    let copied = CopyIn::start(&mut ours, "COPY public.t FROM STDIN", TIMEOUT).await.unwrap().finish().await.unwrap();
    assert_eq!(copied, 0);
    client
        .statements("testing", &["INSERT INTO public.t VALUES (3)", "INSERT INTO public.t VALUES (4);"])
        .await
        .unwrap();
    let left = "SELECT (SELECT count(*) FROM t)::text || ' ' || (to_regclass('second') IS NULL AND to_regclass('third') IS NULL)";
    assert_eq!(database.source_value(left).await.as_deref(), Some("4 true"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_that_is_asked_again_is_neither_parsed_nor_planned_again() {
    let database = Database::new("askedagain", &["t"], "CREATE TABLE t (id int PRIMARY KEY)").await;
    let settings = ConnectionSettings::parse(&database.source_url, &Environment::new()).expect("an address");
    let client = Sql { connection: settings, purpose: "statements", timeout: TIMEOUT }.connect().await.unwrap();
    let question = "SELECT relname::text FROM pg_catalog.pg_class WHERE relname = $1";
    for _ in 0..10 {
        let row = client.query_one("asking", question, &[&"t"]).await.unwrap();
        assert_eq!(row.get::<&str>(0).unwrap(), "t");
    }
    let counts =
        "SELECT count(*), sum(generic_plans)::bigint, sum(custom_plans)::bigint FROM pg_catalog.pg_prepared_statements
                  WHERE statement = $1";
    let row = client.query_one("counting", counts, &[&question]).await.unwrap();
    let counted: [i64; 3] = [row.get(0).unwrap(), row.get(1).unwrap(), row.get(2).unwrap()];
    assert_eq!(counted, [1, 10, 0], "statements, executions of a plan that was made once, plans of their own");
    // The server refuses a statement whose answer has other columns by now, once.
    let all = "SELECT * FROM public.t";
    assert!(client.query("asking", all, &[]).await.unwrap().is_empty());
    database.at_source("ALTER TABLE t ADD COLUMN v text; INSERT INTO t VALUES (1, 'x')").await;
    let code = client.query("asking", all, &[]).await.err().and_then(|error| error.code());
    assert_eq!(code, Some(SqlState::new(b"0A000")));
    assert_eq!(client.query_one("asking", all, &[]).await.unwrap().get::<&str>(1).unwrap(), "x");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notification_wakes_who_listens_also_when_it_came_before() {
    let database = Database::new("notified", &["t"], "CREATE TABLE t (id int PRIMARY KEY)").await;
    let settings = ConnectionSettings::parse(&database.source_url, &Environment::new()).expect("an address");
    let client = Sql { connection: settings, purpose: "statements", timeout: TIMEOUT }.connect().await.unwrap();
    client.listen().await.unwrap();
    // Nobody waits for as long as this.
    let ever = Duration::from_secs(3600);
    database.at_source("NOTIFY headwater").await;
    client.notified(ever).await;
    let (notified, ()) = tokio::join!(client.notified(ever), async { database.at_source("NOTIFY headwater").await });
    notified
}
