//! Connection strings: libpq's URIs and keyword/value strings into [`ConnectionSettings`].
//!
//! Comes in as the text of `source.url` or `destination.url` with the `PG…` environment; goes to `session`, which
//! connects. One parser serves all sessions, because tokio-postgres's own knows neither verify-full nor certificates.
//! libpq's habits hold (libpq-connect, 18): parameters win over the environment, several hosts are tried in turn, a
//! host that begins with `/` is a directory of Unix sockets, one that begins with `@` an abstract one. Not taken over: service
//! files, GSSAPI and Kerberos, and `sslcompression`; parameters that only make sense for other clients are named as unsupported, not
//! ignored, and so are variables that would make libpq stricter (PGSSLCRL, PGREQUIREAUTH).

use super::parameters::ConnectionParameters;
use crate::config::connection_parts::ConnectionSettings;
use crate::config::problem::Environment;

impl ConnectionSettings {
    /// Reads a connection string; what it leaves out comes from the `PG…` environment.
    ///
    /// # Errors
    /// One sentence per problem. None of them contains the password.
    pub fn parse(text: &str, environment: &Environment) -> Result<ConnectionSettings, Vec<String>> {
        let text = text.trim();
        let uri = text.strip_prefix("postgresql://").or_else(|| text.strip_prefix("postgres://"));
        let parameters = match uri {
            Some(rest) => ConnectionParameters::from_uri(rest),
            None if text.contains("://") => Err("is not a postgresql:// URI".to_owned()),
            None => ConnectionParameters::from_keywords(text),
        };
        let settings =
            parameters.map_err(|message| vec![message]).and_then(|parameters| parameters.into_settings(environment));
        match uri.is_some_and(|rest| splits_password(rest, settings.is_err())) {
            true => Err(vec![
                "has more than one @, or one behind its first / or ?: in a user or password write / as %2F, ? as %3F, # as %23 \
                 and @ as %40"
                    .to_owned(),
            ]),
            false => settings,
        }
    }

    /// True when both strings lead to the same database by their very text. What they really lead to is asked of the
    /// servers at start.
    pub fn names_same_database(&self, other: &ConnectionSettings) -> bool {
        self.database == other.database && self.hosts.iter().any(|host| other.hosts.contains(host))
    }

    /// The same server and role, another name in pg_stat_activity.
    pub fn with_application_suffix(&self, suffix: &str) -> ConnectionSettings {
        let application_name = format!("{} {suffix}", self.application_name);
        ConnectionSettings { application_name, ..self.clone() }
    }
}

/// Whether what stands behind the first `@`, `/` or `?` may be the rest of a login. Then no part of it is shown, not as a host, a port, a
/// database or a parameter. A parameter may hold an `@` where nothing else is wrong. libpq ends the login at the first `@`.
fn splits_password(uri: &str, is_wrong: bool) -> bool {
    let (before_query, query) = uri.split_once('?').unwrap_or((uri, ""));
    let authority = before_query.split('/').next().unwrap_or_default();
    before_query.matches('@').count() > 1
        || !authority.contains('@') && before_query.contains('@')
        || is_wrong && query.contains('@')
}

/// Whether a URL holds a password: the server's or a key's. Where it has mistakes, whatever could be one counts.
pub(super) fn holds_password(url: &str) -> bool {
    let of_user = || {
        let authority = url.split_once("://").map(|(_, rest)| rest.split('/').next().unwrap_or(rest));
        authority.and_then(|authority| authority.rsplit_once('@')).is_some_and(|(user, _)| user.contains(':'))
    };
    match ConnectionSettings::parse(url, &Environment::new()) {
        Ok(settings) => settings.password.is_some() || url.contains("sslpassword"),
        Err(_) => url.contains("password") || of_user(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::connection_parts::Host;
    use crate::config::connection_parts::Secret;
    use crate::config::connection_parts::SslMode;
    use crate::config::connection_parts::TargetSession;
    use crate::config::parameters::{DEFAULT_SOCKET_DIRECTORY, STRICTER};
    use std::path::PathBuf;
    use std::time::Duration;

    fn parse_in(text: &str, environment: &[(&str, &str)]) -> Result<ConnectionSettings, String> {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        ConnectionSettings::parse(text, &environment).map_err(|problems| problems.join("; "))
    }

    fn parse(text: &str) -> Result<ConnectionSettings, String> {
        parse_in(text, &[("USER", "me")])
    }

    fn tcp(host: &str, port: u16) -> Host {
        Host::Tcp { host: host.to_owned(), address: None, port }
    }

    #[test]
    fn uris_are_read_as_libpq_reads_them() {
        let settings = parse("postgresql://us%40er:p%3Aw@db.example.com:6000/fo%20rum?sslmode=verify-full").unwrap();
        assert_eq!(settings.user, "us@er");
        assert_eq!(settings.password.as_ref().map(Secret::reveal), Some(b"p:w".as_slice()));
        assert_eq!(settings.hosts, [tcp("db.example.com", 6000)]);
        assert_eq!(settings.database, "fo rum");
        assert_eq!(settings.ssl_mode, SslMode::VerifyFull);
        assert_eq!(settings.to_string(), "us@er@db.example.com:6000/fo rum");
    }

    #[test]
    fn several_hosts_addresses_and_sockets() {
        let settings = parse("postgres://a:1,b,[::1]:3/x?target_session_attrs=read-write").unwrap();
        assert_eq!(settings.hosts, [tcp("a", 1), tcp("b", 5432), tcp("::1", 3)]);
        assert_eq!(settings.target_session, TargetSession::ReadWrite);
        let socket = |directory: &str, port| Host::Unix { directory: PathBuf::from(directory), port };
        assert_eq!(parse("postgresql://%2Ftmp%2Fs:77/x").unwrap().hosts, [socket("/tmp/s", 77)]);
        assert_eq!(parse("postgresql:///x?host=/tmp/s&port=5").unwrap().hosts, [socket("/tmp/s", 5)]);
        assert_eq!(parse("host='/tmp/a b' dbname=x").unwrap().hosts, [socket("/tmp/a b", 5432)]);
        assert_eq!(parse("dbname=x").unwrap().hosts, [socket(DEFAULT_SOCKET_DIRECTORY, 5432)]);
        let both = parse("host=db.example.com hostaddr=10.0.0.1 dbname=x").unwrap();
        assert_eq!(
            both.hosts,
            [Host::Tcp { host: "db.example.com".into(), address: Some("10.0.0.1".into()), port: 5432 }]
        );
    }

    #[test]
    fn numbers_and_kinds_of_session_are_read_as_libpq_reads_them() {
        let ours = ConnectionSettings::default().connect_timeout;
        for (text, seconds) in [("%203%09", Some(3)), ("%2B4", Some(4)), ("-1", None), ("0", None), ("", None)] {
            let settings = parse(&format!("postgresql://h/x?connect_timeout={text}")).unwrap();
            assert_eq!(settings.connect_timeout, seconds.map_or(ours, Duration::from_secs), "{text}");
        }
        for text in ["3s", "1.5", "%20", "99999999999"] {
            assert!(parse(&format!("postgresql://h/x?connect_timeout={text}")).unwrap_err().contains("whole number"));
        }
        for (text, target) in [
            ("any", TargetSession::Any),
            ("read-write", TargetSession::ReadWrite),
            ("read-only", TargetSession::ReadOnly),
            ("primary", TargetSession::Primary),
            ("standby", TargetSession::Standby),
            ("prefer-standby", TargetSession::PreferStandby),
        ] {
            let settings = parse(&format!("postgresql://h/x?target_session_attrs={text}")).unwrap();
            assert_eq!(settings.target_session, target, "{text}");
        }
        for text in ["postgresql:///x?host=@pg", "postgresql://%40pg/x"] {
            let socket = Host::Unix { directory: PathBuf::from("@pg"), port: 5432 };
            assert_eq!(parse(text).unwrap().hosts, [socket], "{text}");
        }
    }

    #[test]
    fn keyword_strings_may_be_quoted_and_escaped() {
        let settings = parse("host = db user=u password='it\\'s = \\\\ ok' dbname= forum").unwrap();
        assert_eq!(settings.password.as_ref().map(Secret::reveal), Some(b"it's = \\ ok".as_slice()));
        assert_eq!(settings.database, "forum");
    }

    #[test]
    fn the_environment_fills_what_the_string_leaves_out() {
        let environment = [
            ("PGHOST", "h"),
            ("PGPORT", "99"),
            ("PGUSER", "pu"),
            ("PGPASSWORD", "pw"),
            ("PGSSLMODE", "require"),
            ("HOME", "/home/me"),
        ];
        let settings = parse_in("postgresql://", &environment).unwrap();
        assert_eq!(settings.hosts, [tcp("h", 99)]);
        assert_eq!((settings.user.as_str(), settings.database.as_str()), ("pu", "pu"));
        assert_eq!(settings.password, Some(Secret::new("pw")));
        assert_eq!(settings.ssl_mode, SslMode::Require);
        assert_eq!(settings.password_file, Some(PathBuf::from("/home/me/.pgpass")));
        assert_eq!(parse_in("postgresql://x@y/z", &environment).unwrap().user, "x", "the string wins");
    }

    #[test]
    fn problems_are_told_together_and_without_the_password() {
        let problems =
            parse("postgresql://u:hunter2@h:99999/x?sslmode=on&colour=red&keepalives_idle=x&sslcert=c").unwrap_err();
        for expected in
            ["port \"99999\"", "sslmode \"on\"", "unsupported parameter: colour", "keepalives_idle \"x\"", "sslkey"]
        {
            assert!(problems.contains(expected), "no {expected:?} in {problems}");
        }
        assert!(!problems.contains("hunter2"));
        for text in ["mysql://u:hunter2@h/x", "u:hunter2@h/x", "postgresql://u:hunter2%@h/x", "password='hunter2"] {
            let problem = parse(text).unwrap_err();
            assert!(!problem.contains("hunter2"), "{problem}");
        }
        assert!(parse("postgresql://h/x?sslrootcert=system&sslmode=require").unwrap_err().contains("verify-full"));
        for stricter in
            ["sslcrl=/r.crl", "require_auth=scram-sha-256", "requirepeer=postgres", "ssl_min_protocol_version=TLSv1.3"]
        {
            let name = stricter.split('=').next().unwrap();
            let problem = parse(&format!("postgresql://h/x?{stricter}")).unwrap_err();
            assert!(problem.contains(&format!("unsupported parameter: {name}")), "{problem}");
        }
        assert!(parse("postgresql://h/x?gssencmode=require").unwrap_err().contains("no GSSAPI"));
        assert!(parse("postgresql://h/x?gssencmode=prefer&sslsni=1").is_ok());
        assert!(parse("postgresql://h/x?sslsni=0").unwrap_err().contains("unsupported parameter: sslsni"));
        for (name, harmless) in STRICTER {
            let problem = parse_in("postgresql://me@h/x", &[(name, "hunter2")]).unwrap_err();
            assert!(problem.contains(name) && !problem.contains("hunter2"), "{problem}");
            for value in harmless {
                assert!(parse_in("postgresql://me@h/x", &[(name, value)]).is_ok(), "{name}={value}");
            }
        }
        assert!(parse("postgresql://h/x?sslnegotiation=direct").unwrap_err().contains("sslmode=require"));
    }

    #[test]
    fn what_stands_behind_a_part_of_a_uri_is_refused_and_not_shown() {
        for text in [
            "postgresql://me@h/x password=hunter2",
            "postgresql://me@h/x hunter2",
            "postgresql://me@h/x&password=hunter2",
            "postgresql://me@h/x;password=hunter2",
            "postgresql://me@h/x#hunter2",
            "postgresql://me@h:5432;password=hunter2/x",
            "postgresql://me@h:5432 hunter2/x",
            "postgresql://me@h hunter2/x",
            "postgresql://me;hunter2@h/x",
            "postgresql://me:hunter2h/x",
            "postgresql://me@h/x?sslmode=require password=hunter2",
            "postgresql://me@h/x?sslmode=require;password=hunter2",
            "postgresql://me@h/x?sslrootcert=/x;password=hunter2",
            "postgresql://me@h/x?password=a&hunter=2",
            "postgresql://me@h/x?connect_timeout=3,hunter2",
            "host=h dbname=x;password=hunter2",
            "host=h dbname=x user=me&password=hunter2",
            "host=h dbname=x password=a hunter=2",
            "host=h dbname=x password=a hunter='2",
            "host=h port=1;password=hunter2 dbname=x",
            "postgresql://me:hunter2:5432/x",
            "postgresql://h/x:hunter2",
            "postgresql://h/hunter2@x",
            "host=me:hunter2@h dbname=x",
            "host='me:hunter2@h' dbname=x",
            "host=h hostaddr=hunter2 dbname=x",
            "host=h user=me:hunter2 dbname=x",
            "host=h user=me dbname=postgresql://me:hunter2@h/x",
            "host=h user=me dbname='postgresql://me:hunter2@h/x'",
        ] {
            let problem = parse(text).map(|settings| settings.to_string()).unwrap_err();
            assert!(!problem.contains("hunter"), "{text}: {problem}");
        }
        let environment = [("PGDATABASE", "postgresql://me:hunter2@h/x"), ("USER", "me")];
        assert!(!parse_in("host=h", &environment).unwrap_err().contains("hunter2"));
        for host in ["[::1]", "[fe80::1%25eth0]", "10.0.0.1", "db-1.example.com", "%2Ftmp%2Fs"] {
            parse(&format!("postgresql://{host}/x")).unwrap();
        }
        assert_eq!(parse("  host=h dbname='x=1;2' user=me").unwrap().database, "x=1;2", "quoted, it is meant");
        assert_eq!(parse("postgresql://me@h/x%3D1%202").unwrap().database, "x=1 2", "escaped, it is meant");
        assert_eq!(
            parse(" postgresql://me@h:5/x\n").unwrap().to_string(),
            "me@h:5/x",
            "blanks around it are none of it"
        );
        let password = |text: &str| parse(text).unwrap().password.unwrap().reveal().to_vec();
        assert_eq!(password("host=h dbname=x password=a=b;c&d"), b"a=b;c&d");
        assert_eq!(password("postgresql://me:a=b;c&d@h/x"), b"a=b;c&d");
        assert_eq!(password("postgresql://me@h/x?password=a=b;c"), b"a=b;c");
    }

    /// Draws a string around a password, by somebody who escapes, quotes and separates as he pleases.
    fn draw(rng: &mut fastrand::Rng) -> String {
        fn one<'a>(rng: &mut fastrand::Rng, of: &[&'a str]) -> &'a str {
            of[rng.usize(..of.len())]
        }
        let specials = [
            "", ":", "/", "?", "#", "@", "&", "=", ";", ",", " ", "\t", "\n", "'", "\"", "\\", "%", "[", "]", "|", "<",
            "+",
        ];
        let secret = || "secretive";
        let mut password = String::new();
        for _ in 0..rng.usize(1..4) {
            password += one(rng, &specials);
            password += secret();
            password += one(rng, &specials);
        }
        // One that is no host, no port, no database and no name of a parameter by chance.
        let junk = |rng: &mut fastrand::Rng| {
            let separator = one(rng, &[":", " ", "\t", "\n", ";", "&", "#", "'", "\"", "|", "<", " ; ", "&&"]);
            format!("{separator}{}{password}", one(rng, &["", "password=", "pw ", "Password="]))
        };
        let place = rng.u8(..12);
        let at = |number: u8, rng: &mut fastrand::Rng| if place == number { junk(rng) } else { String::new() };
        if rng.bool() {
            let login = match rng.u8(..3) {
                0 => format!("me:{password}@"),
                // Without a login of its own, what stands before an @ is one.
                1 if !password.contains('@') => String::new(),
                _ => "me@".to_owned(),
            };
            let query = match rng.u8(..4) {
                0 => format!("?password={password}"),
                1 => format!("?sslmode={}{}", one(rng, &["require", "wrong"]), at(1, rng)),
                2 => format!("?connect_timeout=3{}&password={password}", at(2, rng)),
                _ => String::new(),
            };
            let port = one(rng, &["", ":5432", ":99999"]);
            format!("postgresql://{login}h{}{port}{}/x{}{query}{}", at(3, rng), at(4, rng), at(5, rng), at(6, rng))
        } else {
            let quoted = match rng.u8(..3) {
                0 => format!("'{password}'"),
                1 => format!("'{}'", password.replace('\\', "\\\\").replace('\'', "\\'")),
                _ => password.clone(),
            };
            format!(
                "host=h{} dbname=x{} password={quoted} port=1{} user=me{}",
                at(1, rng),
                at(2, rng),
                at(3, rng),
                at(4, rng)
            )
        }
    }

    #[test]
    fn no_part_of_a_password_or_of_what_was_not_understood_is_shown() {
        let (mut read, mut refused) = (0, 0);
        for seed in 0..30_000 {
            let text = draw(&mut fastrand::Rng::with_seed(seed));
            let shown = match parse(&text) {
                Ok(settings) => {
                    read += 1;
                    let hosts: Vec<String> = settings.hosts.iter().map(Host::to_string).collect();
                    format!(
                        "{settings} {hosts:?} {} {} {}",
                        settings.user, settings.database, settings.application_name
                    )
                }
                Err(problems) => {
                    refused += 1;
                    problems
                }
            };
            assert!(!shown.contains("secret"), "seed {seed}: {text:?}: {shown}");
        }
        assert!(read > 1000 && refused > 1000, "{read} read, {refused} refused");
    }
}
