//! Random rows for whatever columns a table has.

use fastrand::Rng;

use super::world::{Column, Table, World};

/// An INSERT, UPDATE, DELETE, or TRUNCATE of a table. The server may refuse it.
pub fn write(world: &World, rng: &mut Rng) -> String {
    let Some(table) = rng.choice(&world.tables) else { return "SELECT 1".to_owned() };
    let id = rng.u32(..320);
    match rng.u32(..20) {
        0..8 => insert(world, table, rng),
        8..14 => {
            let columns: Vec<&Column> = table.columns.iter().filter(|c| c.is_writable && !c.is_key).collect();
            let Some(column) = rng.choice(&columns) else { return "SELECT 1".to_owned() };
            let value = value(world, &column.type_name, rng);
            format!("UPDATE {} SET {} = {value} WHERE id BETWEEN {id} AND {id} + 40", table.name, column.name)
        }
        14..16 => format!("UPDATE {0} SET id = id + 1000 WHERE id = (SELECT max(id) FROM {0})", table.name),
        16..19 => format!("DELETE FROM {} WHERE id BETWEEN {id} AND {id} + 10", table.name),
        _ => match rng.choice(&table.leaves) {
            Some(leaf) => format!("TRUNCATE {leaf}"),
            None => format!("TRUNCATE {}", table.name),
        },
    }
}

/// An INSERT of some columns. The server may refuse it.
pub fn insert(world: &World, table: &Table, rng: &mut Rng) -> String {
    insert_at(world, table, None, rng)
}

/// A row of this id, or any, with values in some of the columns.
pub fn insert_at(world: &World, table: &Table, id: Option<i64>, rng: &mut Rng) -> String {
    let columns: Vec<&Column> =
        table.columns.iter().filter(|c| c.is_writable && c.name != "id" && rng.u32(..4) > 0).collect();
    let names: String = columns.iter().map(|column| format!(", {}", column.name)).collect();
    let values: String = columns.iter().map(|column| format!(", {}", value(world, &column.type_name, rng))).collect();
    let id = id.unwrap_or_else(|| rng.u32(..2000).into());
    format!("INSERT INTO {} (id{names}) SELECT {id}{values}", table.name)
}

/// A value of a type, as SQL.
pub fn value(world: &World, type_name: &str, rng: &mut Rng) -> String {
    if rng.u32(..6) == 0 {
        return "NULL".to_owned();
    }
    if let Some(element) = type_name.strip_suffix("[]") {
        let values: Vec<String> = (0..rng.usize(..3)).map(|_| value(world, element, rng)).collect();
        return format!("ARRAY[{}]::{element}[]", values.join(", "));
    }
    let number = rng.i32(-99..1000);
    let length = rng.usize(..5);
    let word: String = std::iter::repeat_with(|| rng.alphanumeric()).take(length).collect();
    let base = type_name.split('(').next().unwrap_or(type_name).trim();
    match base {
        "integer" | "bigint" | "smallint" | "numeric" | "double precision" | "money2" => number.to_string(),
        "mood" => match rng.choice(&world.labels) {
            Some(label) => format!("'{}'::mood", label.replace('\'', "''")),
            None => "NULL".to_owned(),
        },
        // By its text, whatever attributes it has.
        "pair" => {
            let each: Vec<String> = world.attributes.iter().map(|_| rng.u32(..99).to_string()).collect();
            format!("'({})'::pair", each.join(","))
        }
        "boolean" => rng.bool().to_string(),
        "uuid" => format!("'00000000-0000-0000-0000-{:012}'", rng.u32(..9999)),
        "jsonb" => format!("'{{\"a\": {number}}}'"),
        "bytea" => format!("'\\x{:04x}'", rng.u16(..)),
        "interval" => format!("'{number} hours'"),
        "date" => format!("'2026-01-01'::date + {number}"),
        _ if base.starts_with("time") => format!("'2026-01-01 00:00:00.6'::timestamp + '{number} minutes'"),
        "int4range" => format!("int4range({number}, {number} + 5)"),
        "inet" => format!("'10.0.0.{}'", rng.u8(..)),
        "bit" => "B'10101010'".to_owned(),
        "bit varying" => "B'101'".to_owned(),
        "hstore" => format!("'a=>{number}'"),
        "xml" => format!("'<a>{word}</a>'"),
        "\"char\"" => "'x'".to_owned(),
        _ => format!("'{word}'"),
    }
}
