//! Labels that enums have got at the source, added at the destination.
//!
//! Called by `prepare` whenever a stream is to begin, by `snapshot` when rows are to be copied, and by `attempt` when a row
//! had a value that its column does not take. A label is added in a transaction of its own, because PostgreSQL lets nobody
//! use one before it is committed; it may come earlier than the stream's position, since nothing refers to it until then.

use std::collections::BTreeMap;

use crate::catalog::schema::{TypeDefinition, TypeKind, Types};
use crate::destination::{DestinationError, all_fingerprints};
use crate::error_policy::Fault;
use crate::pg::{ErrorReport, QualifiedName, TypeId, shown_sql};
use crate::schema_change::{KnownLabels, Labels, labels};
use crate::session::{SessionError, SqlClient, SqlState, describe_named_types, describe_types};
use crate::source::SourceError;

/// Adds the labels that the destination lacks; returns what was done, for the log.
///
/// # Errors
/// [`Fault`]: they are not to be followed, or cannot be, with the statements to run.
pub(crate) async fn follow_labels(
    destination: &SqlClient,
    source_types: &Types,
    destination_types: &Types,
    known: &[KnownLabels],
    follow: bool,
) -> Result<Vec<String>, Fault> {
    let missing = labels(source_types, destination_types, known);
    let is_complete = missing.renamed.is_empty() && missing.added.is_empty();
    if missing.presumed.is_empty() && (is_complete || follow) {
        let doing = "bringing an enum's labels to the source's";
        if !missing.renamed.is_empty() {
            // One transaction: names may change hands.
            let renamed = rename(destination, doing, &missing.renamed).await;
            renamed.map_err(|error| unadded(&missing.renamed.join(";\n"), error))?;
        }
        for statement in &missing.added {
            destination.statement(doing, statement).await.map_err(|error| unadded(statement, error))?;
        }
        return Ok(missing.told);
    }
    Err(Fault::Halted(labels_report(&missing)))
}

/// Renames in one transaction.
pub(crate) async fn rename(client: &SqlClient, doing: &'static str, statements: &[String]) -> Result<(), SessionError> {
    client.batch(doing, "BEGIN").await?;
    let renamed = client.statements(doing, statements).await;
    let ended = client.batch(doing, if renamed.is_ok() { "COMMIT" } else { "ROLLBACK" }).await;
    renamed.and(ended)
}

/// The labels of which the OIDs are remembered, where some have other names by now.
///
/// # Errors
/// [`Fault`] when one end does not answer.
pub(crate) async fn known_labels(source: &SqlClient, destination: &SqlClient) -> Result<Vec<KnownLabels>, Fault> {
    let mut before: BTreeMap<u32, String> = BTreeMap::new();
    let mut cluster = None;
    for fingerprint in all_fingerprints(destination).await? {
        cluster = Some(fingerprint.server.system_identifier);
        let labels = fingerprint.types.into_iter().flat_map(|used| used.labels);
        before.extend(labels.map(|label| (label.id, label.name)));
    }
    let Some(cluster) = cluster.filter(|_| !before.is_empty()) else { return Ok(Vec::new()) };
    let ids: Vec<u32> = before.keys().copied().collect();
    // OIDs of another cluster mean nothing.
    let sql = "SELECT e.enumtypid, e.oid, e.enumlabel::text FROM pg_catalog.pg_enum e
               WHERE e.oid = ANY ($1) AND (SELECT s.system_identifier::text FROM pg_catalog.pg_control_system() s) = $2
               ORDER BY e.enumtypid, e.enumsortorder";
    let rows = source.query("asking for enums' labels", sql, &[&ids, &cluster]).await.map_err(SourceError::Session)?;
    let mut known: Vec<KnownLabels> = Vec::new();
    for row in rows {
        let read = || Ok((TypeId(row.get(0)?), row.get::<u32>(1)?, row.get::<String>(2)?));
        let (type_id, label, now) = read().map_err(SourceError::Session)?;
        let Some(was) = before.get(&label) else { continue };
        if known.last().is_none_or(|last| last.type_id != type_id) {
            known.push(KnownLabels { type_id, before: Vec::new(), now: Vec::new() });
        }
        if let Some(last) = known.last_mut() {
            last.before.push(was.clone());
            last.now.push(now);
        }
    }
    known.retain(|labels| labels.before != labels.now);
    Ok(known)
}

/// What an operator must do about labels that are not added by themselves.
pub(crate) fn labels_report(missing: &Labels) -> ErrorReport {
    let statements: Vec<String> = missing.statements().map(|statement| format!("{};", shown_sql(statement))).collect();
    let message = if missing.renamed.is_empty() && missing.presumed.is_empty() {
        "an enum has got labels at the source, and schema_changes = \"stop\""
    } else {
        "an enum has other labels at the source than here"
    };
    ErrorReport::new(message)
        .detail(format!("{}.", missing.told.join("; ")))
        .hint(format!("Run at the destination:\n{}", statements.join("\n")))
}

/// The role does not own the enum: somebody who does must run the statement.
fn unadded(statement: &str, error: SessionError) -> Fault {
    if error.code() != Some(SqlState::new(b"42501")) {
        return DestinationError::Session(error).into();
    }
    Fault::Halted(
        ErrorReport::new(format!("cannot add an enum's label at the destination: {error}"))
            .hint(format!("Run at the destination as the owner of the type:\n{};", shown_sql(statement))),
    )
}

/// Adds the labels that rows may have which are about to be copied, also to enums that no table of the destination uses yet.
/// Returns the source's types as they are now, and what was done, for the log.
///
/// Asked after the snapshot is taken: a label that a row of the snapshot has was committed before, so it is seen here,
/// although the catalog was read earlier.
///
/// # Errors
/// [`Fault`], as [`follow_labels`]; or one end does not answer.
pub(crate) async fn labels_for_copy(
    source: &SqlClient,
    destination: &SqlClient,
    source_types: &Types,
    follow: bool,
) -> Result<(Types, Vec<String>), Fault> {
    let mut types = source_types.clone();
    types.extend(enums_of_now(source, source_types).await?);
    let here = same_named_enums(destination, &types).await?;
    let told = follow_labels(destination, &types, &here, &[], follow).await?;
    Ok((types, told))
}

/// What the destination's enums lack for the rows that a copy would bring, without changing anything.
///
/// # Errors
/// [`Fault`] when the destination does not answer.
pub(crate) async fn lacking_labels(destination: &SqlClient, source_types: &Types) -> Result<Labels, Fault> {
    Ok(labels(source_types, &same_named_enums(destination, source_types).await?, &[]))
}

/// Those of them that our role may not add, since it does not own the enum.
///
/// # Errors
/// [`Fault`] when the destination does not answer.
pub(crate) async fn labels_of_others(destination: &SqlClient, source_types: &Types) -> Result<Labels, Fault> {
    let mut here = same_named_enums(destination, source_types).await?;
    let ids: Vec<u32> = here.keys().map(|id| id.0).collect();
    let sql = "SELECT t.oid FROM pg_catalog.pg_type t
               WHERE t.oid = ANY ($1) AND NOT pg_catalog.pg_has_role(t.typowner, 'USAGE')";
    let rows = destination.query("asking who owns the enums", sql, &[&ids]).await.map_err(DestinationError::Session)?;
    let of_others = rows.iter().map(|row| row.get(0).map(TypeId)).collect::<Result<Vec<_>, _>>();
    let of_others = of_others.map_err(DestinationError::Session)?;
    here.retain(|id, _| of_others.contains(id));
    Ok(labels(source_types, &here, &[]))
}

/// What to say of labels that only the enum's owner can add.
pub(crate) fn labels_of_others_report(missing: &Labels) -> ErrorReport {
    let statements: Vec<String> = missing.statements().map(|statement| format!("{};", shown_sql(statement))).collect();
    ErrorReport::new("an enum of another role lacks labels at the destination")
        .detail(format!("{}. headwater's role may not add them.", missing.told.join("; ")))
        .hint(format!("Run at the destination as the owner of the type:\n{}", statements.join("\n")))
}

async fn enums_of_now(source: &SqlClient, types: &Types) -> Result<Types, Fault> {
    let ids: Vec<TypeId> = enums(types).map(|definition| definition.id).collect();
    if ids.is_empty() {
        return Ok(Types::new());
    }
    Ok(describe_types(source, &ids).await.map_err(SourceError::Session)?)
}

async fn same_named_enums(destination: &SqlClient, source_types: &Types) -> Result<Types, Fault> {
    let names: Vec<QualifiedName> = enums(source_types).map(TypeDefinition::qualified_name).collect();
    if names.is_empty() {
        return Ok(Types::new());
    }
    Ok(describe_named_types(destination, &names).await.map_err(DestinationError::Session)?)
}

fn enums(types: &Types) -> impl Iterator<Item = &TypeDefinition> {
    types.values().filter(|definition| definition.kind == TypeKind::Enum)
}

/// Whether the source's enums have labels by now that the destination's lack.
pub(crate) async fn labels_are_missing(
    source: &SqlClient,
    destination: &SqlClient,
    source_ids: &[TypeId],
    destination_ids: &[TypeId],
) -> Result<bool, Fault> {
    let there = describe_types(source, source_ids).await.map_err(SourceError::Session)?;
    let here = describe_types(destination, destination_ids).await.map_err(DestinationError::Session)?;
    Ok(labels(&there, &here, &[]).statements().next().is_some())
}
