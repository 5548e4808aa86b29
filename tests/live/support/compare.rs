//! Equality by content: every row's text, in the same order, on both sides.

use std::collections::BTreeSet;

use headwater::session::SqlClient;

/// Number of rows and a hash over all of them, whatever their order in the table.
pub async fn content(client: &SqlClient, table: &str) -> (i64, Option<String>) {
    // Columns by name, because their order may differ.
    let columns = "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attname) FROM pg_attribute
                   WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped";
    let row = client.query_one("listing columns", columns, &[&table]).await.expect("the table's columns");
    let columns: Option<&str> = row.get(0).unwrap();
    let columns = columns.unwrap_or_default();
    let sql = format!(
        "SELECT count(*), md5(string_agg(line, E'\\n' ORDER BY line COLLATE \"C\"))
         FROM (SELECT ROW({columns})::text AS line FROM {table}) AS lines"
    );
    let row = client.query_one("hashing a table", &sql, &[]).await.expect("the table's rows");
    (row.get(0).unwrap(), row.get(1).unwrap())
}

/// Asserts that each table has the same rows on both sides.
pub async fn assert_equal(source: &SqlClient, destination: &SqlClient, tables: &[String]) {
    for table in tables {
        let (there, here) = (content(source, table).await, content(destination, table).await);
        if there != here {
            let difference = sample(source, destination, table).await;
            panic!("table {table} differs: {} rows at the source, {} here\n{difference}", there.0, here.0);
        }
    }
}

/// The first rows that only one side has.
async fn sample(source: &SqlClient, destination: &SqlClient, table: &str) -> String {
    let sql = format!("SELECT t::text FROM {table} AS t");
    let mut sides = Vec::new();
    for client in [source, destination] {
        let rows = client.query("reading a table", &sql, &[]).await.unwrap_or_default();
        sides.push(rows.iter().map(|row| row.get::<String>(0).unwrap()).collect::<BTreeSet<_>>());
    }
    let [there, here] = sides.as_slice() else { return String::new() };
    let first = |only: &mut dyn Iterator<Item = &String>| {
        only.take(5).map(|row| row.chars().take(200).collect::<String>()).collect::<Vec<_>>().join("\n  ")
    };
    format!(
        "only at the source:\n  {}\nonly at the destination:\n  {}",
        first(&mut there.difference(here)),
        first(&mut here.difference(there))
    )
}
