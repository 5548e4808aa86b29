//! The event triggers by which a source marks its schema changes.

use super::headwater;

/// What init prints: the statements that install marks, and those that take them away.
pub async fn printed_marks() -> (String, String) {
    let output = tokio::process::Command::new(headwater()).args(["init", "--ddl-marks"]).output().await.expect("init");
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let drops: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("-- DROP")).collect();
    let drops = drops.iter().map(|drop| format!("DROP{drop}")).collect::<Vec<_>>().join("\n");
    (text, drops)
}
