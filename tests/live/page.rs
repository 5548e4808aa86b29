//! The status page in a real browser: through a snapshot, streaming, an outage and recovery.

use headwater::commands::demo::StopMode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::browser::Browser;
use crate::support::forum::{FORUM, FORUM_SCHEMA};
use crate::support::{Database, Setup, eventually, new_destination};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn the_page_tells_the_story_of_a_snapshot_an_outage_and_recovery_without_reloading() {
    let mut destination = new_destination(&[]).await;
    let source = crate::support::source().await;
    let mut database = Database::on(source, &destination, "page", FORUM, FORUM_SCHEMA).await;
    // Large enough to be seen being copied, at a rate that does not depend on the machine.
    database
        .at_source(
            "INSERT INTO messages SELECT i, 1 + i % 100, repeat(md5(i::text), 10) || 'SECRET', 1, false
             FROM generate_series(10000, 60000) i; ANALYZE",
        )
        .await;
    let setup = Setup::of(&database).source("heartbeat_every = \"500ms\"").section("[snapshot]\nmax_rate = \"4MB\"");
    let service = setup.start();
    let Some(mut browser) = Browser::open(&service.http_url()).await else { return };
    // Set once; a reload would lose it.
    browser.evaluate("window.loadedOnce = true").await;

    browser.shows("#headline", "Copying the tables").await;
    browser.shows("#tables", "%").await;
    browser.picture("snapshot-light").await;
    let bars = browser.evaluate("[...document.querySelectorAll('#tables progress')].map(b => b.value)").await;
    assert!(!bars.as_array().unwrap().is_empty(), "a bar for each table that is being copied");

    browser.shows("#headline", "The copy is fresh").await;
    browser.shows("#tables", "55,001 rows copied").await;
    database
        .at_source("UPDATE messages SET body = body || '!' WHERE id <= 300; DELETE FROM messages WHERE id = 9")
        .await;
    database.assert_catches_up().await;
    browser.shows("#tables tr:first-child", "300").await;
    browser.shows("[data-chart=heartbeat_lag_seconds] [data-now]", "ms").await;
    browser.shows("#slot", "reserved").await;
    browser.shows("#link", "live").await;
    browser.picture("streaming-light").await;
    browser.colours("dark").await;
    browser.picture("streaming-dark").await;
    browser.colours("light").await;

    destination.stop(StopMode::Fast).await.unwrap();
    database.at_source("UPDATE messages SET body = body || '?' WHERE id <= 3000").await;
    browser.shows("#headline", "Not connected: trying again").await;
    browser.shows("#reason", "destination").await;
    assert_eq!(browser.evaluate("document.querySelector('#verdict').dataset.tone").await, "bad");
    assert!(browser.evaluate("document.title").await.as_str().unwrap().starts_with('⚠'));
    for chart in ["lag_seconds", "heartbeat_lag_seconds"] {
        let now = format!("[data-chart={chart}] [data-now]");
        eventually(&format!("{chart} rises"), async || {
            let text = service.status().await?[chart].as_f64()?;
            (text > 2.0).then_some(())
        })
        .await;
        browser.text_is(&now, "seconds", |text| text.ends_with('s') && text != "0 s").await;
    }
    browser.picture("outage-light").await;
    browser.colours("dark").await;
    browser.picture("outage-dark").await;
    browser.size(360, 800).await;
    browser.picture("outage-narrow-dark").await;
    browser.colours("light").await;

    destination.start().await.unwrap();
    browser.shows("#headline", "The copy is fresh").await;
    browser.shows("#events", "destination_lost").await;
    browser.picture("recovered-narrow-light").await;
    database.destination = destination.connect(&database.name).await.unwrap();
    database.at_destination("SET search_path = public").await;
    database.assert_catches_up().await;

    // On a narrow screen nothing is wider than it.
    let wide = browser.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth").await;
    assert_eq!(wide, 0, "the page scrolls sideways");
    assert_eq!(browser.evaluate("window.loadedOnce").await, true, "the page was never loaded again");
    let text = browser.evaluate("document.documentElement.outerHTML").await;
    assert!(!text.as_str().unwrap().contains("SECRET"), "a row's value");
    browser.is_content().await;

    service.stop().await;
    browser.shows("#link", "not connected").await;
    browser.shows("#offline", "keeps trying").await;
    browser.shows("#headline", "headwater does not answer").await;
    browser.shows("#since", "Before that: the copy is fresh.").await;
    browser.size(1200, 900).await;
    browser.picture("stopped-light").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_is_shown_with_its_table_and_what_to_do_and_text_is_never_markup() {
    let hostile = "public.\"<img src=x onerror=alert(1)>\"";
    let schema =
        format!("CREATE TABLE {hostile} (id int PRIMARY KEY, body text); INSERT INTO {hostile} VALUES (1, 'one')");
    let database = Database::new("pageconflict", &[hostile], &schema).await;
    let service = Setup::of(&database).start();
    let Some(mut browser) = Browser::open(&service.http_url()).await else { return };
    service.streams().await;
    database.at_destination(&format!("DELETE FROM {hostile}")).await;
    database.at_source(&format!("UPDATE {hostile} SET body = 'SECRET'")).await;
    browser.shows("#headline", "Held up").await;
    browser.shows("#reason", "<img src=x onerror=alert(1)>").await;
    browser.shows("#hint", "source-wins").await;
    browser.shows("#events", "conflict").await;
    browser.picture("conflict-light").await;
    browser.colours("dark").await;
    browser.picture("conflict-dark").await;
    let images = browser.evaluate("document.querySelectorAll('main img').length").await;
    assert_eq!(images, 0, "a table's name is text");
    let text = browser.evaluate("document.documentElement.outerHTML").await;
    assert!(!text.as_str().unwrap().contains("SECRET"), "a row's value");
    browser.is_content().await;
    database.at_destination(&format!("INSERT INTO {hostile} VALUES (1, 'mended')")).await;
    browser.shows("#headline", "The copy is fresh").await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_can_be_read_by_a_screen_reader_and_used_by_keyboard() {
    let database = Database::new("pagereader", FORUM, FORUM_SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    let Some(mut browser) = Browser::open(&service.http_url()).await else { return };
    browser.shows("#headline", "The copy is fresh").await;
    browser.shows("[data-chart=lag_seconds] [data-now]", "s").await;
    let said = browser.accessible().await;
    let has = |role: &str, name: &str| said.iter().any(|(r, n)| r == role && n.contains(name));
    assert!(
        has("heading", "How far behind") && has("heading", "Tables") && has("heading", "Recent events"),
        "{said:?}"
    );
    assert!(has("status", "") && has("main", "") && has("banner", ""), "{said:?}");
    assert!(has("image", "Age of the oldest commit that is not here, last minute: now"), "{said:?}");
    assert!(has("rowheader", "public.messages") && has("columnheader", "Inserted"), "{said:?}");
    let nameless =
        said.iter().any(|(role, name)| ["link", "button", "image"].contains(&role.as_str()) && name.is_empty());
    assert!(!nameless, "a control without a name: {said:?}");
    // A chart is read with the arrow keys.
    browser.evaluate("document.querySelector('[data-plot]').focus()").await;
    browser.call("Input.dispatchKeyEvent", serde_json::json!({ "type": "keyDown", "key": "ArrowLeft" })).await;
    browser.shows("[data-plot] .hint", "·").await;
    browser.is_content().await;
    service.stop().await;
}

/// Everything that is answered to a request, and the connection, still open.
async fn ask(service: &crate::support::service::Service, path: &str) -> (String, TcpStream) {
    let address = service.http_url().replace("http://", "").replace('/', "");
    let mut stream = TcpStream::connect(&address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while !answer.windows(4).any(|four| four == b"\r\n\r\n") {
        let length = stream.read(&mut buffer).await.unwrap();
        assert!(length > 0, "closed before its head was sent");
        answer.extend_from_slice(&buffer[..length]);
    }
    (String::from_utf8_lossy(&answer).into_owned(), stream)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_served_can_be_changed_framed_or_made_to_run_anything_else() {
    let database = Database::new("pagepolicy", FORUM, FORUM_SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    let (head, _) = ask(&service, "/").await;
    for wanted in ["default-src 'none'", "script-src 'sha256-", "frame-ancestors 'none'", "nosniff", "no-referrer"] {
        assert!(head.contains(wanted), "no {wanted} in\n{head}");
    }
    for method in ["POST", "PUT", "DELETE"] {
        for path in ["/", "/events", "/status", "/metrics", "/readyz"] {
            let address = service.http_url().replace("http://", "").replace('/', "");
            let mut stream = TcpStream::connect(&address).await.unwrap();
            let request = format!(
                "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            );
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 405"), "{method} {path}: {answer}");
        }
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_beyond_the_bound_are_refused_and_welcome_again_when_others_go() {
    let database = Database::new("pagebound", FORUM, FORUM_SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    let mut open = Vec::new();
    for _ in 0..32 {
        let (head, stream) = ask(&service, "/events").await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        open.push(stream);
    }
    let (head, _) = ask(&service, "/events").await;
    assert!(head.starts_with("HTTP/1.1 503") && head.contains("retry-after: 10"), "{head}");
    drop(open);
    eventually("a place is free again", || async {
        ask(&service, "/events").await.0.starts_with("HTTP/1.1 200").then_some(())
    })
    .await;
    // Open streams do not keep the process from stopping.
    let (_, _still_open) = ask(&service, "/events").await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn the_page_shows_what_it_waits_for_while_it_waits() {
    let database = Database::new("pagewaits", FORUM, FORUM_SCHEMA).await;
    let service = Setup::of(&database).start();
    service.streams().await;
    let Some(mut browser) = Browser::open(&service.http_url()).await else { return };
    let holder = crate::support::destination().await.connect(&database.name).await.unwrap();
    holder.batch("holding", "BEGIN; LOCK TABLE public.messages").await.unwrap();
    database.at_source("UPDATE messages SET body = 'SECRET' WHERE id = 7").await;
    browser.shows("#waits", "waits for RowExclusiveLock on public.messages, held by process").await;
    holder.batch("letting go", "ROLLBACK").await.unwrap();
    database.assert_catches_up().await;
    eventually("nothing is shown", || async {
        service.status().await?.get("waits")?.as_array()?.is_empty().then_some(())
    })
    .await;
    let hidden = eventually_hidden(&mut browser).await;
    assert!(hidden, "what is over is not shown");
    service.stop().await;
}

async fn eventually_hidden(browser: &mut Browser) -> bool {
    for _ in 0..600 {
        if browser.evaluate("document.querySelector('#waits-shown').hidden").await == true {
            return true;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    false
}
