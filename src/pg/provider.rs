//! Managed PostgreSQL: the providers, and the statements and settings that are available on their servers.
//!
//! `session::ask_provider` finds the provider by a role that exists there only; reports of both ends print what it says here. Nobody has
//! a superuser or ALTER SYSTEM on such servers, so a hint that asks for one leads nowhere. Pure: the one table of what each provider calls
//! logical decoding, its settings, and the right to replicate (documentation of each, 2026).

use crate::pg::ident::Ident;

/// Who runs a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// Amazon RDS and Aurora.
    Rds,
    /// Google Cloud SQL.
    CloudSql,
    /// Google AlloyDB.
    AlloyDb,
    /// Azure Database for PostgreSQL.
    Azure,
    /// Supabase.
    Supabase,
    /// Neon.
    Neon,
}

impl Provider {
    /// The role by which each is known. AlloyDB has Cloud SQL's as well, so it comes first.
    pub const ROLES: [(&'static str, Provider); 6] = [
        ("rds_superuser", Provider::Rds),
        ("alloydbsuperuser", Provider::AlloyDb),
        ("cloudsqlsuperuser", Provider::CloudSql),
        ("azure_pg_admin", Provider::Azure),
        ("supabase_admin", Provider::Supabase),
        ("neon_superuser", Provider::Neon),
    ];

    /// The provider whose role is among these.
    pub fn of_roles(roles: &[String]) -> Option<Provider> {
        Provider::ROLES.iter().find(|(role, _)| roles.iter().any(|one| one == role)).map(|(_, provider)| *provider)
    }

    /// As operators call it.
    pub fn name(self) -> &'static str {
        match self {
            Provider::Rds => "Amazon RDS or Aurora",
            Provider::CloudSql => "Google Cloud SQL",
            Provider::AlloyDb => "Google AlloyDB",
            Provider::Azure => "Azure",
            Provider::Supabase => "Supabase",
            Provider::Neon => "Neon",
        }
    }

    /// Who may do there what a superuser does elsewhere.
    pub fn administrator(self) -> &'static str {
        match self {
            Provider::Rds => "a member of rds_superuser",
            Provider::CloudSql => "a member of cloudsqlsuperuser",
            Provider::AlloyDb => "a member of alloydbsuperuser",
            Provider::Azure => "the server's administrator",
            Provider::Supabase => "postgres",
            Provider::Neon => "a member of neon_superuser",
        }
    }

    /// The statement that lets a role replicate, or nothing where the provider's console makes such roles.
    pub fn replication_statement(self, role: &Ident) -> Option<String> {
        match self {
            Provider::Rds => Some(format!("GRANT rds_replication TO {role};")),
            Provider::CloudSql | Provider::AlloyDb | Provider::Azure | Provider::Supabase => {
                Some(format!("ALTER ROLE {role} REPLICATION;"))
            }
            Provider::Neon => None,
        }
    }
}

/// What lets a role replicate at the source.
pub fn replication_hint(provider: Option<Provider>, role: &Ident) -> String {
    let Some(provider) = provider else {
        return format!("Run at the source as a superuser:\nALTER ROLE {role} REPLICATION;");
    };
    match provider.replication_statement(role) {
        Some(statement) => {
            format!("Run at the source as {} ({}):\n{statement}", provider.administrator(), provider.name())
        }
        None => format!(
            "Give source.url a role that {}'s console, CLI or API has made: such roles may replicate, those of CREATE ROLE may not.",
            provider.name()
        ),
    }
}

/// What makes wal_level logical at the source.
pub fn logical_decoding_hint(provider: Option<Provider>) -> String {
    let text = match provider {
        None => "Run at the source as a superuser, then restart it:\nALTER SYSTEM SET wal_level = logical;",
        Some(Provider::Rds) => {
            "Set rds.logical_replication to 1 in the parameter group of the source's instance (Amazon RDS) or cluster (Aurora), then \
             reboot it."
        }
        Some(Provider::CloudSql) => {
            "Set the flag cloudsql.logical_decoding of the source's instance to on (Google Cloud SQL), which restarts it."
        }
        Some(Provider::AlloyDb) => {
            "Set the flag alloydb.logical_decoding of the source's instance to on (Google AlloyDB), which restarts it."
        }
        Some(Provider::Azure) => {
            "Set the server parameter wal_level of the source to logical (Azure), then restart it."
        }
        Some(Provider::Supabase) => {
            "Ask for wal_level = logical in the source's Postgres settings (Supabase), then restart it."
        }
        Some(Provider::Neon) => {
            "Enable logical replication in the settings of the source's project (Neon), which restarts its computes."
        }
    };
    text.to_owned()
}

/// What changes settings of the source's server. `restart`: they are in force after one only.
pub fn settings_hint(provider: Option<Provider>, settings: &[(&str, String)], restart: bool) -> String {
    let list: Vec<String> = settings.iter().map(|(name, value)| format!("{name} = {value}")).collect();
    let list = list.join(" and ");
    let then = if restart { ", then restart it" } else { "" };
    match provider {
        None => {
            let mut lines: Vec<String> =
                settings.iter().map(|(name, value)| format!("ALTER SYSTEM SET {name} = {value};")).collect();
            if !restart {
                lines.push("SELECT pg_reload_conf();".to_owned());
            }
            format!("Run at the source as a superuser{then}:\n{}", lines.join("\n"))
        }
        Some(Provider::Rds) => format!("Set {list} in the parameter group of the source (Amazon RDS or Aurora){then}."),
        Some(Provider::CloudSql | Provider::AlloyDb) => {
            format!("Set the flag {list} of the source's instance (Google Cloud){then}.")
        }
        Some(Provider::Azure) => format!("Set the server parameter {list} of the source (Azure){then}."),
        Some(Provider::Supabase) => {
            format!("Set {list} with the Supabase CLI (supabase postgres-config update --config){then}.")
        }
        Some(Provider::Neon) => format!("Ask Neon's support for {list} at the source{then}."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_is_known_by_its_role_and_alloydb_before_cloud_sql() {
        let roles = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(Provider::of_roles(&roles(&["cloudsqlsuperuser", "alloydbsuperuser"])), Some(Provider::AlloyDb));
        assert_eq!(Provider::of_roles(&roles(&["rds_superuser"])), Some(Provider::Rds));
        assert_eq!(Provider::of_roles(&[]), None);
    }

    #[test]
    fn only_servers_of_ones_own_are_asked_for_a_superuser() {
        let role = Ident::new("reader");
        for provider in Provider::ROLES.map(|(_, provider)| provider) {
            let settings = [("max_wal_senders", "20".to_owned())];
            let hints = [
                replication_hint(Some(provider), &role),
                logical_decoding_hint(Some(provider)),
                settings_hint(Some(provider), &settings, true),
            ];
            for hint in hints {
                assert!(!hint.contains("as a superuser") && !hint.contains("ALTER SYSTEM"), "{hint}");
                assert!(hint.ends_with('.') || hint.ends_with(';'), "{hint}");
            }
        }
    }
}
