//! The password for a host: the connection string's or environment's, otherwise from the password file (~/.pgpass).
//!
//! Asked by `startup` and `sql` at every connect, so that a rotated password is found without a restart. Rules of libpq
//! (libpq-pgpass): lines of `host:port:database:user:password`, `*` matches all, `\` escapes, the first match wins; a
//! file that others can read is not used. A missing file is no error: many servers need no password.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use super::error::SessionError;
use crate::config::{ConnectionSettings, Host, Secret};

/// Whether there is a password to use with `host`. A file that cannot be used has none.
pub fn has_password(settings: &ConnectionSettings, host: &Host) -> bool {
    password_for(settings, host).is_ok_and(|password| password.is_some())
}

/// The password to use with `host`, if there is one.
pub(super) fn password_for(settings: &ConnectionSettings, host: &Host) -> Result<Option<Secret>, SessionError> {
    if settings.password.is_some() {
        return Ok(settings.password.clone());
    }
    let Some(path) = &settings.password_file else { return Ok(None) };
    let unusable = |reason: String| SessionError::File { path: path.display().to_string(), reason };
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unusable(error.to_string())),
    };
    if !metadata.is_file() {
        return Ok(None);
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(unusable("others can read this password file; allow only yourself (chmod 0600)".to_owned()));
    }
    let text = fs::read_to_string(path).map_err(|error| unusable(error.to_string()))?;
    let (name, port) = match host {
        Host::Tcp { host, port, .. } => (host.clone(), *port),
        // In the file a socket's host is called localhost when it is the default directory; its path always works.
        Host::Unix { directory, port } => (directory.display().to_string(), *port),
    };
    let local = matches!(host, Host::Unix { .. });
    Ok(text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .find_map(|line| matching_password(line, &name, local, port, settings)))
}

fn matching_password(line: &str, host: &str, local: bool, port: u16, settings: &ConnectionSettings) -> Option<Secret> {
    let (fields, password) = split_line(line)?;
    let [line_host, line_port, line_database, line_user] = &fields;
    let fits = |field: &str, value: &str| field == "*" || field == value;
    let fits_host = fits(line_host, host) || (local && line_host == "localhost");
    (fits_host
        && fits(line_port, &port.to_string())
        && fits(line_database, &settings.database)
        && fits(line_user, &settings.user))
    .then(|| Secret::new(password))
}

/// The four fields and the password, escapes resolved.
fn split_line(line: &str) -> Option<([String; 4], String)> {
    let mut fields: [String; 4] = Default::default();
    let mut password = String::new();
    let mut at = 0;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        let field = fields.get_mut(at).unwrap_or(&mut password);
        match c {
            ':' if at < 4 => at += 1,
            '\\' => field.extend(chars.next()),
            c => field.push(c),
        }
    }
    (at == 4).then_some((fields, password))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(line: &str) -> Option<String> {
        let settings =
            ConnectionSettings { user: "u:1".into(), database: "forum".into(), ..ConnectionSettings::default() };
        matching_password(line, "db", false, 5432, &settings).map(|secret| secret.reveal().to_owned())
    }

    #[test]
    fn the_matching_line_gives_the_password() {
        assert_eq!(found("db:5432:forum:u\\:1:pa:ss\\\\w").as_deref(), Some("pa:ss\\w"));
        assert_eq!(found("*:*:*:*:x").as_deref(), Some("x"));
        assert_eq!(found("other:5432:forum:u\\:1:x"), None);
        assert_eq!(found("db:5433:forum:u\\:1:x"), None);
        assert_eq!(found("db:5432:forum"), None);
    }
}
