//! The file and the environment into one value per key, unknown keys named with their nearest known one.
//!
//! Stands between the operator's text and `values`, which gives each value its type. TOML is read by the `toml` crate
//! into a table with spans, so that every problem can name its line; a file that is not TOML at all still reports each
//! syntax error that the parser can tell apart.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::settings::{SETTINGS, Setting};
use crate::config::problem::{Environment, FileText, Problem, ValueOrigin};

/// A value before it has a type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RawValue {
    /// A string, or a number as it was written.
    Text(String),
    /// A list of strings.
    List(Vec<String>),
}

/// The value of every key, with its place. A key that is missing here has no default and was not given.
pub(super) type RawValues = BTreeMap<&'static str, (RawValue, ValueOrigin)>;

/// Gathers defaults, file and environment.
pub(super) fn collect(file: Option<FileText<'_>>, environment: &Environment) -> (RawValues, Vec<Problem>) {
    let mut values = RawValues::new();
    let mut problems = Vec::new();
    for setting in SETTINGS {
        if let Some(default) = setting.default {
            values.insert(setting.key, (RawValue::Text(default.to_owned()), ValueOrigin::Default));
        }
    }
    if let Some(file) = file {
        read_file(file, &mut values, &mut problems);
    }
    for setting in SETTINGS {
        let variable = setting.variable();
        if let Some(text) = environment.get(&variable) {
            values.insert(setting.key, (RawValue::Text(text.clone()), ValueOrigin::Environment { variable }));
        }
    }
    (values, problems)
}

fn read_file(file: FileText<'_>, values: &mut RawValues, problems: &mut Vec<Problem>) {
    let place = |span: Range<usize>| {
        let before = file.text.get(..span.start).unwrap_or(file.text);
        ValueOrigin::File { name: file.name.to_owned(), line: before.matches('\n').count() + 1 }
    };
    let (table, errors) = DeTable::parse_recoverable(file.text);
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        problems.push(Problem { place: place(span), key: String::new(), message: error.message().to_owned() });
    }
    let mut take = |key: String, span: Range<usize>, value: &DeValue<'_>| {
        let problem = |message: String| Problem { place: place(span.clone()), key: key.clone(), message };
        let Some(setting) = SETTINGS.iter().find(|setting| setting.key == key) else {
            let message = match nearest(&key, SETTINGS.iter().map(|setting| setting.key)) {
                Some(known) => format!("unknown key; did you mean {known}?"),
                None => "unknown key".to_owned(),
            };
            problems.push(problem(message));
            return;
        };
        match raw(setting, value) {
            Ok(raw) => {
                values.insert(setting.key, (raw, place(span)));
            }
            Err(message) => problems.push(problem(message)),
        }
    };
    for (name, value) in table.get_ref() {
        let section = name.get_ref();
        match value.get_ref() {
            DeValue::Table(table) if !SETTINGS.iter().any(|setting| setting.key == *section) => {
                if table.is_empty() && !has_section(section) {
                    take(section.to_string(), name.span(), value.get_ref());
                }
                for (name, value) in table {
                    take(format!("{section}.{}", name.get_ref()), name.span(), value.get_ref());
                }
            }
            DeValue::String(_)
            | DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_)
            | DeValue::Array(_)
            | DeValue::Table(_) => take(section.to_string(), name.span(), value.get_ref()),
        }
    }
}

fn has_section(section: &str) -> bool {
    SETTINGS.iter().any(|setting| setting.key.split_once('.').is_some_and(|(known, _)| known == section))
}

/// The value, or why it is of a wrong type.
fn raw(setting: &Setting, value: &DeValue<'_>) -> Result<RawValue, String> {
    match value {
        DeValue::String(text) => Ok(RawValue::Text(text.to_string())),
        DeValue::Integer(number) if setting.is_number() => match number.radix() {
            10 => Ok(RawValue::Text(number.as_str().to_owned())),
            _ => Err("write the number in decimal".to_owned()),
        },
        DeValue::Array(items) => {
            let items: Option<Vec<String>> =
                items.iter().map(|item| item.get_ref().as_str().map(str::to_owned)).collect();
            items.map(RawValue::List).ok_or_else(|| "expected a list of strings".to_owned())
        }
        // A name of digits, say, is a string: in quotes.
        DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_) | DeValue::Datetime(_) | DeValue::Table(_) => {
            let found = value.type_str();
            let article = if found.starts_with('i') { "an" } else { "a" };
            Err(format!("expected {}, not {article} {found}", setting.values))
        }
    }
}

/// See [`super::misspelt_variables`].
pub(super) fn misspelt_variables(environment: &Environment) -> Vec<(String, String)> {
    let known: Vec<String> = SETTINGS.iter().map(Setting::variable).collect();
    environment
        .keys()
        .filter(|name| name.starts_with("HEADWATER_") && !known.contains(name))
        .filter_map(|name| Some((name.clone(), nearest(name, known.iter().map(String::as_str))?.to_owned())))
        .collect()
}

/// The known name that differs least, when it differs little enough to have been meant.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // A third of the name may be wrong: more, and the suggestion would be a guess.
    let tolerated = (name.len() / 3).clamp(1, 6);
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    known
        .map(|candidate| {
            // A right key in a wrong section is nearer than its letters say.
            let moved = last(candidate) == last(name);
            (if moved { 1 } else { edit_distance(name, candidate) }, candidate)
        })
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, _)| *distance <= tolerated)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance, in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, to) in row.iter_mut().skip(1).zip(&b) {
            let substituted = diagonal + usize::from(from != *to);
            diagonal = *cell;
            left = substituted.min(diagonal + 1).min(left + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_edits() {
        for (a, b, expected) in [("slot", "slot", 0), ("slto", "slot", 2), ("", "abc", 3), ("kitten", "sitting", 3)] {
            assert_eq!(edit_distance(a, b), expected, "{a} {b}");
        }
    }

    #[test]
    fn the_nearest_name_is_offered_only_when_it_is_near() {
        let known = || SETTINGS.iter().map(|setting| setting.key);
        assert_eq!(nearest("source.slto", known()), Some("source.slot"));
        assert_eq!(nearest("on_conflct", known()), Some("on_conflict"));
        assert_eq!(nearest("destination.slot", known()), Some("source.slot"), "right key, wrong section");
        assert_eq!(nearest("colour", known()), None);
    }
}
