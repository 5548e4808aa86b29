//! Finds code in the catalog that others could have run with our rights, and refuses it before it runs.
//!
//! A role that writes into a table runs the code that is attached to it: triggers, rules, functions in checks, defaults, generated
//! columns, index expressions, partition keys, domains, casts of its types. A role that creates objects runs event triggers. The
//! code runs as the writer, so the owner of a table could use headwater's rights, which reach farther than his: the bookkeeping,
//! all other tables of the set. `SET ROLE` to the owner does not contain it, since the code can set the role back
//! (docs/decisions/0021).
//!
//! Asked by `supervisor` at every start, by its monitor while a stream runs, inside the transaction that publishes a snapshot, by
//! `headwater check` and by `replay`. sql/foreign_code.sql judges what is found; the operator's `destination.trusted_roles` says
//! what is accepted. Invariant: one statement, whatever the number of tables.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::error::DestinationError;
use super::schema::needed_types;
use super::staging_schema::is_own_schema;
use crate::catalog::schema::{ColumnDefinition, IndexDefinition, TypeDefinition, Types};
use crate::pg::{ErrorReport, Ident, QualifiedName, printable, quote_literal, toml_string};
use crate::session::{SessionError, SqlClient, fill_in};

const FOREIGN_CODE: &str =
    concat!(include_str!("../../sql/trusted_roles.sql"), include_str!("../../sql/foreign_code.sql"));

/// Lines of one report at most: the list is for a terminal.
const LISTED_MAX: usize = 20;

/// Reasons of one role at most: a role often owns all tables.
const REASONS_MAX: usize = 5;

/// What is written, and whose code may run when it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Writes {
    /// The tables.
    pub tables: Vec<QualifiedName>,
    /// The columns that are given a value: their defaults are not evaluated.
    pub supplied: Vec<(QualifiedName, Ident)>,
    /// Types of columns that do not exist yet. By name only those: a type under the name of one of the source's that no column of the
    /// destination has is anybody's.
    pub types: Vec<QualifiedName>,
    /// Collations of columns and indexes that do not exist yet.
    pub collations: Vec<QualifiedName>,
    /// Foreign keys and ordinary triggers act.
    pub foreign_keys_act: bool,
    /// Roles whose code is accepted.
    pub trusted_roles: Vec<Ident>,
    /// Roles that could attach code to the tables are named, too, whether there is any or not.
    pub names_owners: bool,
}

/// Where code is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attached {
    Trigger,
    /// Of a table of headwater's own, or of one that a foreign key leads to from there: it fires whatever role the session has.
    OwnTrigger,
    Rule,
    Check,
    Default,
    Generated,
    Index,
    Statistics,
    PartitionKey,
    Domain,
    DomainDefault,
    Range,
    ForeignTable,
    /// Of a foreign table: whose it is chooses where rows go, and as whom headwater logs in there.
    ForeignServer,
    /// Likewise; its functions are called by whatever reads or writes the table.
    ForeignDataWrapper,
    ForeignKey,
    Type,
    Cast,
    /// Of no table: it runs when objects are created, changed or dropped, or a session begins.
    EventTrigger,
    /// Under the schema and name of one by which rows are found.
    Operator,
    /// No code: whose the table is, which may attach some.
    TableOwner,
    /// Likewise: whose a table is that what is written is a partition of.
    ParentOwner,
    /// Likewise: whose a table is that has a foreign key onto what is written.
    ReferringOwner,
    /// Likewise: whose a table is that the check of a foreign key reads.
    CheckedOwner,
    /// Likewise: whose the schema is, which may put another table under the name.
    SchemaOwner,
    /// Likewise: whose the type is.
    TypeOwner,
    /// Likewise: whose the collation of a column, an index or a type is, which attaches nothing and takes columns along when it is dropped.
    CollationOwner,
    /// Likewise: whose an operator, a text search configuration or another object is that an expression, an index or a type depends on.
    ObjectOwner,
    /// Likewise: who may create triggers on the table.
    TriggerPrivilege,
    /// Likewise: who may create foreign keys onto the table.
    ReferencesPrivilege,
    /// Likewise: who may create operators under the names of those by which rows are found.
    CreatePrivilege,
}

impl Attached {
    /// The kind by the query's word for it.
    fn of(word: &str) -> Option<Attached> {
        Some(match word {
            "trigger" => Attached::Trigger,
            "own trigger" => Attached::OwnTrigger,
            "rule" => Attached::Rule,
            "check" => Attached::Check,
            "default" => Attached::Default,
            "generated" => Attached::Generated,
            "index" => Attached::Index,
            "statistics" => Attached::Statistics,
            "partition key" => Attached::PartitionKey,
            "domain" => Attached::Domain,
            "domain default" => Attached::DomainDefault,
            "range" => Attached::Range,
            "foreign table" => Attached::ForeignTable,
            "foreign server" => Attached::ForeignServer,
            "foreign-data wrapper" => Attached::ForeignDataWrapper,
            "foreign key" => Attached::ForeignKey,
            "type" => Attached::Type,
            "cast" => Attached::Cast,
            "event trigger" => Attached::EventTrigger,
            "table owner" => Attached::TableOwner,
            "parent owner" => Attached::ParentOwner,
            "referring owner" => Attached::ReferringOwner,
            "checked owner" => Attached::CheckedOwner,
            "schema owner" => Attached::SchemaOwner,
            "type owner" => Attached::TypeOwner,
            "collation owner" => Attached::CollationOwner,
            "object owner" => Attached::ObjectOwner,
            "trigger privilege" => Attached::TriggerPrivilege,
            "operator" => Attached::Operator,
            "references privilege" => Attached::ReferencesPrivilege,
            "create privilege" => Attached::CreatePrivilege,
            _ => return None,
        })
    }
}

/// One piece of code that somebody else can change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignCode {
    attached: Attached,
    /// The table or type; a cast's source type; nothing for an event trigger.
    object: QualifiedName,
    /// A cast's target type.
    target: Option<QualifiedName>,
    /// The trigger, rule, constraint, column or index.
    name: Ident,
    /// Of a privilege: who has granted it by a grant option; `None`: the owner.
    grantor: Option<Ident>,
    /// What is called; a rule calls nothing in particular.
    function: Option<String>,
    /// Who can change it; `None`: everybody, by a grant to PUBLIC.
    role: Option<Ident>,
}

const DOING: &str = "looking for code of others";

/// A row of sql/foreign_code.sql.
#[derive(Debug, Deserialize)]
struct FoundCode {
    attached: String,
    schema: String,
    name: String,
    part: String,
    function: Option<String>,
    role: Option<String>,
    target_schema: Option<String>,
    target_name: Option<String>,
    grantor: Option<String>,
}

impl TryFrom<FoundCode> for ForeignCode {
    type Error = SessionError;

    fn try_from(row: FoundCode) -> Result<ForeignCode, SessionError> {
        let target = row.target_schema.zip(row.target_name).map(|(schema, name)| QualifiedName::new(schema, name));
        let attached = Attached::of(&row.attached).filter(|attached| *attached != Attached::Cast || target.is_some());
        Ok(ForeignCode {
            attached: attached.ok_or_else(|| SessionError::answer(DOING, "code of a kind that was not asked for"))?,
            object: QualifiedName::new(row.schema, row.name),
            target,
            name: Ident::new(row.part),
            function: row.function,
            role: row.role.map(Ident::new),
            grantor: row.grantor.map(Ident::new),
        })
    }
}

impl Attached {
    /// Whether reading a table, and making values of its types of their texts, runs it.
    const fn is_run_by_reading(self) -> bool {
        match self {
            Attached::Cast | Attached::Domain | Attached::Range | Attached::Type => true,
            Attached::ForeignTable | Attached::ForeignServer | Attached::ForeignDataWrapper => true,
            Attached::TableOwner | Attached::SchemaOwner | Attached::TypeOwner => true,
            Attached::Operator | Attached::CreatePrivilege => true,
            // Planning a statement evaluates their constants.
            Attached::Check | Attached::Index | Attached::Statistics | Attached::PartitionKey => true,
            Attached::ParentOwner => true,
            Attached::Trigger
            | Attached::OwnTrigger
            | Attached::Rule
            | Attached::Default
            | Attached::Generated
            | Attached::DomainDefault
            | Attached::ForeignKey
            | Attached::ReferringOwner
            | Attached::CheckedOwner
            | Attached::CollationOwner
            | Attached::ObjectOwner
            | Attached::TriggerPrivilege
            | Attached::ReferencesPrivilege
            | Attached::EventTrigger => false,
        }
    }

    /// Whether somebody owns something, and has not only a privilege.
    const fn is_ownership(self) -> bool {
        matches!(
            self,
            Attached::TableOwner
                | Attached::ParentOwner
                | Attached::ReferringOwner
                | Attached::CheckedOwner
                | Attached::SchemaOwner
                | Attached::TypeOwner
                | Attached::CollationOwner
                | Attached::ObjectOwner
        )
    }

    /// How somebody has code run by what it owns or may do; nothing of what is code already.
    const fn reason(self) -> Option<&'static str> {
        Some(match self {
            Attached::TableOwner => "A table's owner can attach triggers to it at any moment",
            Attached::ParentOwner => "Indexes and foreign keys that a table's owner makes come to its partitions",
            Attached::ReferringOwner => {
                "The check of a foreign key calls operators and casts of its columns' types in headwater's session"
            }
            Attached::CheckedOwner => {
                "The check of a foreign key reads the table in headwater's session, which calls functions of its indexes"
            }
            Attached::SchemaOwner => "A schema's owner can put other objects under the names in it",
            Attached::TypeOwner => "A type's owner can attach checks and casts to it at any moment",
            Attached::CollationOwner => {
                "A collation's owner can drop it with the columns that have it, and may have made it so that other texts are equal than \
                 at the source"
            }
            Attached::ObjectOwner => {
                "An object's owner can drop it with the columns, indexes and constraints that depend on it, and change what a text search \
                 configuration or dictionary does"
            }
            Attached::TriggerPrivilege => "TRIGGER is the right to create triggers on the table",
            Attached::ReferencesPrivilege => {
                "REFERENCES is the right to make a foreign key onto the table, whose check calls operators and casts of its \
                 columns' types in headwater's session"
            }
            Attached::CreatePrivilege => {
                "An operator under the name of one by which rows are found is preferred to it where it fits their types better"
            }
            Attached::Trigger
            | Attached::OwnTrigger
            | Attached::Rule
            | Attached::Check
            | Attached::Default
            | Attached::Generated
            | Attached::Index
            | Attached::Statistics
            | Attached::PartitionKey
            | Attached::Domain
            | Attached::DomainDefault
            | Attached::Range
            | Attached::ForeignTable
            | Attached::ForeignServer
            | Attached::ForeignDataWrapper
            | Attached::ForeignKey
            | Attached::Type
            | Attached::Cast
            | Attached::Operator
            | Attached::EventTrigger => return None,
        })
    }

    /// Whether the statement that takes it away may need more than the table's owner may do: it names objects of several owners.
    const fn needs_superuser(self) -> bool {
        matches!(self, Attached::EventTrigger | Attached::Cast | Attached::Operator)
    }

    /// Whether there is code, and not only somebody who may attach some.
    const fn is_code(self) -> bool {
        match self {
            Attached::TableOwner
            | Attached::ParentOwner
            | Attached::ReferringOwner
            | Attached::CheckedOwner
            | Attached::SchemaOwner
            | Attached::TypeOwner
            | Attached::CollationOwner
            | Attached::ObjectOwner
            | Attached::TriggerPrivilege
            | Attached::ReferencesPrivilege
            | Attached::CreatePrivilege => false,
            Attached::Trigger
            | Attached::OwnTrigger
            | Attached::Rule
            | Attached::Check
            | Attached::Default
            | Attached::Generated
            | Attached::Index
            | Attached::Statistics
            | Attached::PartitionKey
            | Attached::Domain
            | Attached::DomainDefault
            | Attached::Range
            | Attached::ForeignTable
            | Attached::ForeignServer
            | Attached::ForeignDataWrapper
            | Attached::ForeignKey
            | Attached::Type
            | Attached::Cast
            | Attached::Operator
            | Attached::EventTrigger => true,
        }
    }
}

impl ForeignCode {
    /// What it is; of somebody who may attach some, why.
    fn what(&self) -> String {
        let ForeignCode { object, name, .. } = self;
        match self.attached {
            Attached::Trigger | Attached::OwnTrigger => format!("trigger {name} of table {object}"),
            Attached::Rule => format!("rule {name} of table {object}"),
            Attached::Check => format!("check {name} of table {object}"),
            Attached::Default => format!("the default of column {name} of table {object}"),
            Attached::Generated => format!("generated column {name} of table {object}"),
            Attached::Index => format!("index {name} of table {object}"),
            Attached::Statistics => format!("statistics {name} of table {object}"),
            Attached::PartitionKey => format!("the partition key of table {object}"),
            Attached::Domain => format!("check {name} of domain {object}"),
            Attached::DomainDefault => format!("the default of domain {object}"),
            Attached::Range => format!("range type {object}"),
            Attached::ForeignTable => format!("{object}, a foreign table"),
            Attached::ForeignServer => format!("server {name} of foreign table {object}"),
            Attached::ForeignDataWrapper => format!("foreign-data wrapper {name} of foreign table {object}"),
            Attached::ForeignKey => format!("foreign key {name} of table {object}"),
            Attached::Type => format!("type {object}"),
            Attached::Cast => format!("cast {}", self.cast()),
            Attached::EventTrigger => format!("event trigger {name}"),
            Attached::TableOwner => format!("table {object} belongs to it"),
            Attached::ParentOwner => {
                format!("table {object} belongs to it, and one that is written is a partition of it")
            }
            Attached::ReferringOwner => {
                format!("table {object} belongs to it, and its foreign key {name} leads to what is written")
            }
            Attached::CheckedOwner => format!("table {object} belongs to it, and the check of a foreign key reads it"),
            Attached::SchemaOwner => format!("schema {} belongs to it", object.schema),
            Attached::TypeOwner => format!("type {object} belongs to it"),
            Attached::CollationOwner => format!("collation {object} belongs to it"),
            Attached::ObjectOwner => format!("{} belongs to it", printable(name.as_str())),
            Attached::TriggerPrivilege => format!("it has TRIGGER on table {object}"),
            Attached::ReferencesPrivilege if name.as_str().is_empty() => format!("it has REFERENCES on table {object}"),
            Attached::ReferencesPrivilege => format!("it has REFERENCES ({name}) on table {object}"),
            Attached::CreatePrivilege => format!("it may create operators in schema {}", object.schema),
            Attached::Operator => format!("operator {}", self.operator()),
        }
    }

    fn sentence(&self) -> String {
        let what = self.what();
        let role = name_of(self.role.as_ref());
        match &self.function {
            Some(function) => format!("{what} calls {function} (role {role})"),
            None => format!("{what} (role {role})"),
        }
    }

    /// `(source AS target)`, the name of a cast.
    fn cast(&self) -> String {
        let target = self.target.as_ref().expect("sql/foreign_code.sql names the target of a cast");
        format!("({} AS {target})", self.object)
    }

    /// `schema.= (left, right)`, the name of an operator.
    fn operator(&self) -> String {
        let ForeignCode { object, name, .. } = self;
        format!("{}.{} ({})", object.schema, printable(object.name.as_str()), printable(name.as_str()))
    }

    /// The kind of an object, and its name as `ALTER` takes it, both as the server gives them.
    fn object_identity(&self) -> Option<(&'static str, &str)> {
        const KINDS: [&str; 7] = [
            "text search configuration ",
            "text search dictionary ",
            "operator class ",
            "operator family ",
            "operator ",
            "function ",
            "type ",
        ];
        KINDS.iter().find_map(|kind| Some((kind.trim_end(), self.name.as_str().strip_prefix(kind)?)))
    }

    /// What takes the code away, if one statement does.
    fn removal(&self, foreign_keys_act: bool) -> Option<String> {
        let ForeignCode { object, name, .. } = self;
        // Where foreign keys do not act, an ordinary trigger fires for others only.
        let off = if foreign_keys_act { "DISABLE" } else { "ENABLE" };
        Some(match self.attached {
            // Nobody but headwater has anything to attach there.
            Attached::OwnTrigger if is_own_schema(&object.schema) => format!("DROP TRIGGER {name} ON {object};"),
            Attached::OwnTrigger => format!("ALTER TABLE {object} DISABLE TRIGGER {name};"),
            Attached::Trigger => format!("ALTER TABLE {object} {off} TRIGGER {name};"),
            Attached::Rule => format!("ALTER TABLE {object} {off} RULE {name};"),
            Attached::Check | Attached::ForeignKey => format!("ALTER TABLE {object} DROP CONSTRAINT {name};"),
            Attached::Cast => format!("DROP CAST {};", self.cast()),
            Attached::EventTrigger => format!("ALTER EVENT TRIGGER {name} DISABLE;"),
            Attached::Default => format!("ALTER TABLE {object} ALTER COLUMN {name} DROP DEFAULT;"),
            Attached::Generated => format!("ALTER TABLE {object} ALTER COLUMN {name} DROP EXPRESSION;"),
            Attached::Index => {
                format!("DROP INDEX {};", QualifiedName { schema: object.schema.clone(), name: name.clone() })
            }
            Attached::Statistics => {
                let statistics = self.target.as_ref().expect("sql/foreign_code.sql names the schema of statistics");
                format!("DROP STATISTICS {statistics};")
            }
            Attached::Domain => format!("ALTER DOMAIN {object} DROP CONSTRAINT {name};"),
            Attached::DomainDefault => format!("ALTER DOMAIN {object} DROP DEFAULT;"),
            Attached::ReferringOwner => format!("ALTER TABLE {object} DROP CONSTRAINT {name};"),
            Attached::TriggerPrivilege => self.revocation(&format!("TRIGGER ON {object}")),
            // Of its columns, too.
            Attached::ReferencesPrivilege => self.revocation(&format!("REFERENCES ON {object}")),
            Attached::CreatePrivilege => self.revocation(&format!("CREATE ON SCHEMA {}", object.schema)),
            Attached::Operator => format!("DROP OPERATOR {};", self.operator()),
            // A superuser is trusted.
            Attached::CollationOwner => format!("ALTER COLLATION {object} OWNER TO CURRENT_USER;"),
            Attached::ObjectOwner => {
                let (kind, identity) = self.object_identity()?;
                let kind = kind.to_uppercase();
                // With its arguments it is no qualified name.
                let object = identity.parse::<QualifiedName>().map(|name| name.to_string());
                format!("ALTER {kind} {} OWNER TO CURRENT_USER;", object.unwrap_or_else(|_| printable(identity).into()))
            }
            Attached::PartitionKey
            | Attached::Range
            | Attached::ForeignTable
            | Attached::ForeignServer
            | Attached::ForeignDataWrapper
            | Attached::Type
            | Attached::TableOwner
            | Attached::ParentOwner
            | Attached::CheckedOwner
            | Attached::SchemaOwner
            | Attached::TypeOwner => return None,
        })
    }

    /// Only the role that has granted a privilege can revoke it; what the grantee has granted on goes with it.
    fn revocation(&self, what: &str) -> String {
        let revoke = format!("REVOKE {what} FROM {} CASCADE;", name_of(self.role.as_ref()));
        match &self.grantor {
            Some(grantor) => format!("SET ROLE {grantor}; {revoke} RESET ROLE;"),
            None => revoke,
        }
    }

    /// Whether the privilege goes with that of its grantor, which is among those found.
    fn goes_with_another(&self, found: &[ForeignCode]) -> bool {
        let of_grantor = |other: &ForeignCode| {
            (other.attached, &other.object, &other.name) == (self.attached, &self.object, &self.name)
                && other.role == self.grantor
        };
        self.grantor.is_some() && found.iter().any(of_grantor)
    }
}

impl Writes {
    /// The code that others could have run.
    ///
    /// # Errors
    /// [`DestinationError`] when the server does not answer.
    pub async fn foreign_code(&self, client: &SqlClient) -> Result<Vec<ForeignCode>, DestinationError> {
        let schemas: Vec<&str> = self.tables.iter().map(|name| name.schema.as_str()).collect();
        let names: Vec<&str> = self.tables.iter().map(|name| name.name.as_str()).collect();
        let column_schemas: Vec<&str> = self.supplied.iter().map(|(table, _)| table.schema.as_str()).collect();
        let column_tables: Vec<&str> = self.supplied.iter().map(|(table, _)| table.name.as_str()).collect();
        let columns: Vec<&str> = self.supplied.iter().map(|(_, column)| column.as_str()).collect();
        let type_schemas: Vec<&str> = self.types.iter().map(|name| name.schema.as_str()).collect();
        let types: Vec<&str> = self.types.iter().map(|name| name.name.as_str()).collect();
        let collation_schemas: Vec<&str> = self.collations.iter().map(|name| name.schema.as_str()).collect();
        let collations: Vec<&str> = self.collations.iter().map(|name| name.name.as_str()).collect();
        let trusted: Vec<&str> = self.trusted_roles.iter().map(Ident::as_str).collect();
        let rows = client
            .query(
                DOING,
                FOREIGN_CODE,
                &[
                    &trusted,
                    &schemas,
                    &names,
                    &column_schemas,
                    &column_tables,
                    &columns,
                    &self.foreign_keys_act,
                    &type_schemas,
                    &types,
                    &self.names_owners,
                    &collation_schemas,
                    &collations,
                ],
            )
            .await?;
        rows.iter()
            .map(|row| {
                let found = FoundCode {
                    attached: row.get(0)?,
                    schema: row.get(1)?,
                    name: row.get(2)?,
                    part: row.get(3)?,
                    function: row.get(4)?,
                    role: row.get(5)?,
                    target_schema: row.get(6)?,
                    target_name: row.get(7)?,
                    grantor: row.get(8)?,
                };
                Ok(ForeignCode::try_from(found)?)
            })
            .collect()
    }

    /// What to report of it; `None` when there is none.
    ///
    /// # Errors
    /// [`DestinationError`] when the server does not answer.
    pub async fn foreign_code_report(&self, client: &SqlClient) -> Result<Option<ErrorReport>, DestinationError> {
        let found = self.foreign_code(client).await?;
        Ok((!found.is_empty()).then(|| self.report(&found, "written")))
    }

    /// The question for a session that takes no parameters; the answer is a row of one text, for [`Writes::refuse`].
    pub(super) fn ask(&self) -> String {
        let list = |texts: Vec<&str>| {
            let quoted: Vec<String> = texts.into_iter().map(quote_literal).collect();
            format!("ARRAY[{}]::text[]", quoted.join(", "))
        };
        let schemas = |names: &[QualifiedName]| list(names.iter().map(|name| name.schema.as_str()).collect());
        let names = |names: &[QualifiedName]| list(names.iter().map(|name| name.name.as_str()).collect());
        let supplied: Vec<QualifiedName> = self.supplied.iter().map(|(table, _)| table.clone()).collect();
        let question = fill_in(
            FOREIGN_CODE,
            &[
                list(self.trusted_roles.iter().map(Ident::as_str).collect()),
                schemas(&self.tables),
                names(&self.tables),
                schemas(&supplied),
                names(&supplied),
                list(self.supplied.iter().map(|(_, column)| column.as_str()).collect()),
                self.foreign_keys_act.to_string(),
                schemas(&self.types),
                names(&self.types),
                self.names_owners.to_string(),
                schemas(&self.collations),
                names(&self.collations),
            ],
        );
        format!(
            "SELECT pg_catalog.json_agg(found)::pg_catalog.text FROM ({question}) AS found \
             (attached, schema, name, part, function, role, target_schema, target_name, grantor)"
        )
    }

    /// Refuses to write where the answer to [`Writes::ask`] names any code.
    ///
    /// # Errors
    /// [`DestinationError::Refused`], or the answer is none.
    pub(super) fn refuse(&self, answer: Option<&str>) -> Result<(), DestinationError> {
        let Some(answer) = answer else { return Ok(()) };
        let rows: Vec<FoundCode> =
            serde_json::from_str(answer).map_err(|error| SessionError::from_json(DOING, &error))?;
        let found = rows.into_iter().map(ForeignCode::try_from).collect::<Result<Vec<_>, _>>()?;
        Err(DestinationError::Refused(self.report(&found, "written")))
    }

    /// Refuses to compare rows while that could call code of others: casts, and the functions of types that texts are made into again.
    /// Reading a table runs nothing else of theirs; what is not a table is not read (`sql::table_guard`).
    ///
    /// # Errors
    /// As [`Writes::refuse_foreign_code`].
    pub async fn refuse_code_of_types(&self, client: &SqlClient) -> Result<(), DestinationError> {
        let mut found = self.foreign_code(client).await?;
        found.retain(|code| code.attached.is_run_by_reading());
        match found.is_empty() {
            true => Ok(()),
            false => Err(DestinationError::Refused(self.report(&found, "compared"))),
        }
    }

    /// Refuses to write while there is any.
    ///
    /// # Errors
    /// [`DestinationError::Refused`], or the server does not answer.
    pub async fn refuse_foreign_code(&self, client: &SqlClient) -> Result<(), DestinationError> {
        match self.foreign_code_report(client).await? {
            Some(report) => Err(DestinationError::Refused(report)),
            None => Ok(()),
        }
    }

    /// Refuses to write while there is any, and keeps others from attaching more until this transaction ends. What is not a
    /// table's, the check of a domain, can still change.
    ///
    /// # Errors
    /// As [`Writes::refuse_foreign_code`].
    pub async fn lock_and_refuse_foreign_code(&self, client: &SqlClient) -> Result<(), DestinationError> {
        if self.tables.is_empty() {
            return Ok(());
        }
        client.statement("locking the tables that are written", &self.lock()).await?;
        self.refuse_foreign_code(client).await
    }

    /// Takes the lock that writing takes anyway: CREATE TRIGGER, CREATE RULE and ALTER TABLE wait for it.
    pub(super) fn lock(&self) -> String {
        let tables: Vec<String> = self.tables.iter().map(QualifiedName::sql).collect();
        format!("LOCK TABLE {} IN ROW EXCLUSIVE MODE", tables.join(", "))
    }

    fn report(&self, found: &[ForeignCode], when_rows_are: &str) -> ErrorReport {
        if !found.iter().any(|code| code.attached.is_code()) {
            return self.owners_report(found);
        }
        let code: Vec<ForeignCode> = found.iter().filter(|code| code.attached.is_code()).cloned().collect();
        self.code_report(&code, when_rows_are)
    }

    fn code_report(&self, found: &[ForeignCode], when_rows_are: &str) -> ErrorReport {
        let mut roles: Vec<Option<&Ident>> = found.iter().map(|code| code.role.as_ref()).collect();
        roles.sort_unstable();
        roles.dedup();
        let named: Vec<String> = roles.iter().copied().map(name_of).collect();
        let mut lines: Vec<String> = found.iter().take(LISTED_MAX).map(ForeignCode::sentence).collect();
        if found.len() > LISTED_MAX {
            lines.push(format!("and {} more", found.len() - LISTED_MAX));
        }
        let by_event = found.iter().any(|code| code.attached == Attached::EventTrigger);
        let or_else = if by_event { ", objects are created, changed or dropped, or a session begins" } else { "" };
        let mut detail = format!("It would run when rows are {when_rows_are}{or_else}: {}.", lines.join("; "));
        if self.foreign_keys_act && found.iter().any(|code| code.attached == Attached::Trigger) {
            detail.push_str(" Ordinary triggers fire because headwater's role may not set session_replication_role.");
        }
        let removals: Vec<String> = found.iter().filter_map(|code| code.removal(self.foreign_keys_act)).collect();
        let remove = |first: String| match removals.is_empty() {
            true => first,
            false => {
                let by =
                    if found.iter().any(|code| code.attached.needs_superuser()) { "a superuser" } else { "the owner" };
                format!("{first}un at the destination as {by}:\n{}", removals.join("\n"))
            }
        };
        let hint = match accepting(&self.trusted_roles, &roles) {
            Some(accept) if removals.is_empty() => accept,
            Some(accept) => remove(format!("{accept}. Otherwise r")),
            None => remove("R".to_owned()),
        };
        let whose = format!("{} {}", if named.len() == 1 { "role" } else { "roles" }, named.join(", "));
        ErrorReport::new(format!("code of {whose} would run with headwater's rights at the destination"))
            .detail(detail)
            .hint(hint)
    }

    fn owners_report(&self, found: &[ForeignCode]) -> ErrorReport {
        let mut roles: Vec<Option<&Ident>> = found.iter().map(|found| found.role.as_ref()).collect();
        roles.sort_unstable();
        roles.dedup();
        let of_role = |role: &Option<&Ident>| {
            let of_it: Vec<&ForeignCode> = found.iter().filter(|found| found.role.as_ref() == *role).collect();
            let mut reasons: Vec<String> = of_it.iter().take(REASONS_MAX).map(|found| found.what()).collect();
            if of_it.len() > REASONS_MAX {
                reasons.push(format!("{} more", of_it.len() - REASONS_MAX));
            }
            format!("{}: {}", name_of(*role), reasons.join(", "))
        };
        let reasons: Vec<String> = roles.iter().map(of_role).collect();
        let named: Vec<String> = roles.iter().copied().map(name_of).collect();
        let whose = format!("{} {}", if named.len() == 1 { "role" } else { "roles" }, named.join(", "));
        let mut ways = Vec::new();
        let is_of_collation = |found: &ForeignCode| found.attached == Attached::CollationOwner;
        let is_of_object = |found: &ForeignCode| is_of_collation(found) || found.attached == Attached::ObjectOwner;
        if found.iter().any(|found| found.attached.is_ownership() && !is_of_object(found)) {
            ways.push(
                "Give the tables, their schemas and types to a role that is trusted, headwater's own for example"
                    .to_owned(),
            );
        }
        ways.extend(accepting(&self.trusted_roles, &roles));
        ways.push("Or set untrusted_owners = \"watch\" there: code is then refused where it is found".to_owned());
        let removals = self.removals_of_privileges(found);
        if !removals.is_empty() {
            let what = match found.iter().any(is_of_object) {
                true => {
                    "Collations and other objects are taken over, once they have been compared with the source's, and privileges and \
                     foreign keys taken away,"
                }
                false => "Privileges and foreign keys are taken away",
            };
            ways.push(format!("{what} at the destination, as a superuser, by:\n{}", removals.join("\n")));
        }
        let mut why: Vec<&str> = found.iter().filter_map(|found| found.attached.reason()).collect();
        why.sort_unstable();
        why.dedup();
        let report = match found.iter().all(is_of_collation) {
            true => ErrorReport::new(format!(
                "{whose} could drop or exchange collations of what is written at the destination"
            )),
            false if found.iter().all(is_of_object) => ErrorReport::new(format!(
                "{whose} could drop or change objects that tables at the destination depend on"
            )),
            false => {
                ErrorReport::new(format!("{whose} could have code run with headwater's rights at the destination"))
            }
        };
        report.detail(format!("{}. {}.", reasons.join("; "), why.join(". "))).hint(ways.join(". "))
    }

    /// The statements that take away what is granted, and foreign keys; what a grantee has granted on of a column before the grantee's own.
    fn removals_of_privileges(&self, found: &[ForeignCode]) -> Vec<String> {
        let granted = found.iter().filter(|code| !code.goes_with_another(found));
        let (granted_on, granted): (Vec<&ForeignCode>, Vec<&ForeignCode>) =
            granted.partition(|code| code.grantor.is_some());
        let mut removals: Vec<String> = Vec::new();
        for removal in granted_on.into_iter().chain(granted).filter_map(|code| code.removal(self.foreign_keys_act)) {
            if !removals.contains(&removal) {
                removals.push(removal);
            }
        }
        removals
    }

    /// Roles that own what is written and are not trusted.
    ///
    /// # Errors
    /// [`DestinationError`] when the server does not answer.
    pub async fn untrusted_owners(&self, client: &SqlClient) -> Result<Vec<Ident>, DestinationError> {
        let mut roles: Vec<Ident> = self
            .foreign_code(client)
            .await?
            .into_iter()
            .filter(|found| found.attached.is_ownership())
            .filter_map(|found| found.role)
            .collect();
        roles.sort_unstable();
        roles.dedup();
        Ok(roles)
    }
}

/// Those of the source's types that these columns have, and what they are made of.
///
/// # Errors
/// [`DestinationError`]: a type is not among `types`.
pub(crate) fn types_of<'a>(
    types: &Types,
    columns: impl Iterator<Item = &'a ColumnDefinition>,
) -> Result<Types, DestinationError> {
    let needed = needed_types(types, columns.map(|column| column.type_id))?;
    Ok(needed.into_iter().filter_map(|id| Some((id, types.get(&id)?.clone()))).collect())
}

/// The types of the source that are no server's own: the destination has them under the same names.
pub(crate) fn named_types(types: &Types) -> Vec<QualifiedName> {
    let named = types.values().filter(|definition| !definition.id.is_built_in());
    named.map(TypeDefinition::qualified_name).collect()
}

/// The collations that columns, indexes and types made as these have: the destination has them under the same names.
pub(crate) fn named_collations<'a>(
    columns: impl Iterator<Item = &'a ColumnDefinition>,
    indexes: impl Iterator<Item = &'a IndexDefinition>,
    types: &Types,
) -> Vec<QualifiedName> {
    let mut named: BTreeSet<QualifiedName> = columns.filter_map(|column| column.collation.clone()).collect();
    named.extend(indexes.flat_map(|index| &index.parts).filter_map(|part| part.collation.clone()));
    named.extend(types.values().flat_map(TypeDefinition::collations).cloned());
    named.into_iter().filter(|name| name.schema.as_str() != "pg_catalog").collect()
}

/// Refuses to create or drop anything while event triggers of others would run, or code on headwater's own tables.
///
/// # Errors
/// As [`Writes::refuse_foreign_code`].
pub async fn refuse_foreign_event_triggers(
    client: &SqlClient,
    trusted_roles: &[Ident],
) -> Result<(), DestinationError> {
    let writes = Writes { trusted_roles: trusted_roles.to_vec(), ..Writes::default() };
    writes.refuse_foreign_code(client).await
}

/// Says which of the trusted roles do not exist: a role that is created with such a name is trusted.
///
/// # Errors
/// [`DestinationError`] when the server does not answer.
pub async fn missing_roles_report(
    client: &SqlClient,
    trusted_roles: &[Ident],
) -> Result<Option<ErrorReport>, DestinationError> {
    let names: Vec<&str> = trusted_roles.iter().map(Ident::as_str).collect();
    let sql = "SELECT name FROM pg_catalog.unnest($1::text[]) AS name
               WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.rolname = name) ORDER BY 1";
    let mut missing = Vec::new();
    for row in client.query("looking for roles", sql, &[&names]).await? {
        missing.push(Ident::new(row.get::<&str>(0)?).to_string());
    }
    Ok((!missing.is_empty()).then(|| {
        ErrorReport::new(format!("destination.trusted_roles names roles that do not exist: {}", missing.join(", ")))
            .detail("A role that is created later under such a name is trusted.")
            .hint("Correct the name in trusted_roles, or take it out.")
    }))
}

/// The role's name as people read it; `None` is everybody.
pub(super) fn name_of(role: Option<&Ident>) -> String {
    role.map_or("PUBLIC".to_owned(), ToString::to_string)
}

/// The setting that accepts the code of `roles`, besides that of the roles that are trusted already. None accepts everybody's.
pub(super) fn accepting(trusted: &[Ident], roles: &[Option<&Ident>]) -> Option<String> {
    let roles: Option<Vec<&Ident>> = roles.iter().copied().collect();
    let roles: Vec<String> = trusted.iter().chain(roles?).map(|role| toml_string(&role.to_string())).collect();
    let roles = roles.join(", ");
    Some(format!(
        "If all that they may write there may run with headwater's rights, set in [destination]: trusted_roles = [{roles}]"
    ))
}
