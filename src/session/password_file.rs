//! The password for a host: the connection string's or environment's, otherwise from the password file (~/.pgpass).
//!
//! Asked by `startup` and `sql` at every connect, so that a rotated password is found without a restart. Rules of libpq
//! (libpq-pgpass): lines of `host:port:database:user:password`, `*` matches all, `\` escapes, the first match wins; a
//! file that others can read is not used. A missing file is no error: many servers need no password. The file is bytes, in whatever
//! encoding: a comment or a line that is not UTF-8 hides no other.

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
    let content = fs::read(path).map_err(|error| unusable(error.to_string()))?;
    let (name, port) = match host {
        Host::Tcp { host, port, .. } => (host.clone(), *port),
        // In the file a socket's host is called localhost when it is the default directory; its path always works.
        Host::Unix { directory, port } => (directory.display().to_string(), *port),
    };
    let local = matches!(host, Host::Unix { .. });
    Ok(content
        .split(|byte| *byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
        .filter(|line| !line.starts_with(b"#"))
        .find_map(|line| matching_password(line, &name, local, port, settings)))
}

fn matching_password(line: &[u8], host: &str, local: bool, port: u16, settings: &ConnectionSettings) -> Option<Secret> {
    let (fields, password) = split_line(line)?;
    let [line_host, line_port, line_database, line_user] = &fields;
    let fits = |field: &[u8], value: &str| field == b"*" || field == value.as_bytes();
    let fits_host = fits(line_host, host) || (local && line_host == b"localhost");
    (fits_host
        && fits(line_port, &port.to_string())
        && fits(line_database, &settings.database)
        && fits(line_user, &settings.user))
    .then(|| Secret::new(password))
}

/// The four fields and the password, escapes resolved.
fn split_line(line: &[u8]) -> Option<([Vec<u8>; 4], Vec<u8>)> {
    let mut fields: [Vec<u8>; 4] = Default::default();
    let mut password = Vec::new();
    let mut at = 0;
    let mut bytes = line.iter();
    while let Some(byte) = bytes.next() {
        let field = fields.get_mut(at).unwrap_or(&mut password);
        match byte {
            b':' if at < 4 => at += 1,
            b'\\' => field.extend(bytes.next()),
            byte => field.push(*byte),
        }
    }
    (at == 4).then_some((fields, password))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn settings() -> ConnectionSettings {
        ConnectionSettings { user: "u:1".into(), database: "forum".into(), ..ConnectionSettings::default() }
    }

    fn found(line: &str) -> Option<String> {
        matching_password(line.as_bytes(), "db", false, 5432, &settings())
            .map(|secret| String::from_utf8(secret.reveal().to_vec()).unwrap())
    }

    #[test]
    fn bytes_that_are_no_utf8_hide_no_line_and_may_be_the_password() {
        let path = std::env::temp_dir().join(format!("headwater-pgpass-{}", std::process::id()));
        fs::write(&path, b"# caf\xe9\ndb:5432:caf\xe9:*:x\r\ndb:5432:*:*:p\xe9\r\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let settings = ConnectionSettings { password_file: Some(path.clone()), ..settings() };
        let host = Host::Tcp { host: "db".into(), address: None, port: 5432 };
        let password = password_for(&settings, &host).unwrap();
        fs::remove_file(path).unwrap();
        assert_eq!(password.as_ref().map(Secret::reveal), Some(b"p\xe9".as_slice()));
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
