//! Certificates of every kind that openssl makes, in a real server: headwater takes what psql takes, and what it does not take it
//! refuses with words about the certificate, and with the command that makes a good one.

use std::path::Path;
use std::process::Command;

use headwater::commands::demo::Cluster;

use crate::support::certificates::{Certificates, with_hba};
use crate::support::findings::{failed, find, findings, hint, mended};
use crate::support::tools::program;
use crate::support::{Database, Script, Setup, destination, eventually, new_source};

const ONE: &[&str] = &["t"];
const ONE_SCHEMA: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'x');";

/// One kind of certificate.
struct Kind {
    name: &'static str,
    /// Makes root.crt, server.crt and server.key.
    script: &'static str,
    /// Part of headwater's words under verify-full, or nothing where it is taken.
    words: &'static str,
    /// The one in which headwater and psql differ, and why it is right.
    only_psql: bool,
}

/// The first lines of every script: what the documentation of PostgreSQL ("Secure TCP/IP Connections with SSL") types.
const FUNCTIONS: &str = r#"
set -e
rm -f root.* server.* inter.* ext
authority() { # name, arguments of the key: a root with extensions
  openssl req -new -x509 -days 3650 -nodes -newkey "$@" -subj /CN=root -keyout root.key -out root.crt
}
request() { # arguments of the key: asks for server.crt
  openssl req -new -nodes -newkey "$@" -subj /CN=localhost -keyout server.key -out server.csr
}
signed() { # by which authority, further arguments
  by=$1; shift
  openssl x509 -req -in server.csr -days 365 -CA $by.crt -CAkey $by.key -CAcreateserial -out server.crt "$@"
}
itself() { # further arguments: one that vouches for itself
  openssl req -new -x509 -days 365 -nodes -subj /CN=localhost -keyout server.key -out server.crt "$@"
  cp server.crt root.crt
}
"#;

const KINDS: &[Kind] = &[
    taken("the documentation's certificate, its own root", "itself"),
    taken(
        "the documentation's root and server certificate, of version 1",
        "openssl req -new -nodes -out root.csr -keyout root.key -subj /CN=root
         openssl x509 -req -in root.csr -days 3650 -extfile /etc/ssl/openssl.cnf -extensions v3_ca -signkey root.key -out root.crt
         request rsa:2048; signed root",
    ),
    taken(
        "the documentation's intermediate certificate, above one of version 1",
        "authority rsa:2048
         openssl req -new -nodes -newkey rsa:2048 -subj /CN=inter -keyout inter.key -out inter.csr
         openssl x509 -req -in inter.csr -days 1825 -extfile /etc/ssl/openssl.cnf -extensions v3_ca -CA root.crt -CAkey root.key \
           -CAcreateserial -out inter.crt
         request rsa:2048; signed inter; cat inter.crt >> server.crt",
    ),
    taken(
        "a root of version 1, too",
        "openssl req -new -nodes -newkey rsa:2048 -keyout root.key -out root.csr -subj /CN=root
         openssl x509 -req -in root.csr -days 3650 -signkey root.key -out root.crt
         request ec -pkeyopt ec_paramgen_curve:P-256; signed root",
    ),
    taken("a common name alone, with extensions", "authority rsa:2048; request rsa:2048; echo keyUsage=digitalSignature > ext; signed root -extfile ext"),
    taken(
        "an authority's certificate, by another authority",
        "authority rsa:2048; request rsa:2048; echo basicConstraints=CA:TRUE > ext; signed root -extfile ext",
    ),
    taken(
        "an address as the only other name",
        "authority rsa:2048; request rsa:2048; echo subjectAltName=IP:10.0.0.1 > ext; signed root -extfile ext",
    ),
    taken("P-521, its own root", "itself -newkey ec -pkeyopt ec_paramgen_curve:P-521"),
    taken(
        "P-521 by P-521",
        "authority ec -pkeyopt ec_paramgen_curve:P-521; request ec -pkeyopt ec_paramgen_curve:P-521; signed root -sha512",
    ),
    taken(
        "P-521 with SHA-256, and names",
        "authority ec -pkeyopt ec_paramgen_curve:P-521; request ec -pkeyopt ec_paramgen_curve:P-521
         echo subjectAltName=DNS:localhost > ext; signed root -sha256 -extfile ext",
    ),
    taken("RSA-PSS, its own root", "itself -newkey rsa-pss"),
    taken(
        "RSA-PSS by RSA-PSS, and names",
        "authority rsa-pss -pkeyopt rsa_keygen_bits:2048 -sigopt rsa_pss_saltlen:digest -sha256; request rsa-pss
         echo subjectAltName=DNS:localhost > ext; signed root -extfile ext -sha256 -sigopt rsa_pss_saltlen:digest",
    ),
    taken(
        "RSA-PSS of one hash",
        "authority rsa:2048
         request rsa-pss -pkeyopt rsa_pss_keygen_md:sha256 -pkeyopt rsa_pss_keygen_mgf1_md:sha256 -pkeyopt rsa_pss_keygen_saltlen:32
         signed root",
    ),
    taken("Ed25519, its own root", "itself -newkey ed25519"),
    refused("another common name", "itself -subj /CN=elsewhere", "is for another name"),
    refused(
        "other names beside a right common name",
        "authority rsa:2048; request rsa:2048; echo subjectAltName=DNS:elsewhere > ext; signed root -extfile ext",
        "it holds elsewhere",
    ),
    refused(
        "itself as a root, though another has signed it",
        "authority rsa:2048; request rsa:2048; signed root; cp server.crt root.crt",
        "is not trusted",
    ),
    refused(
        "signed by no authority",
        "authority rsa:2048
         openssl req -new -nodes -newkey rsa:2048 -subj /CN=inter -keyout inter.key -out inter.csr
         openssl x509 -req -in inter.csr -days 1825 -CA root.crt -CAkey root.key -CAcreateserial -out inter.crt
         request rsa:2048; signed inter; cat inter.crt >> server.crt",
        "is signed by CN=inter, which is not the certificate of an authority",
    ),
    refused(
        "an authority that may vouch for nobody below others",
        "openssl req -new -x509 -days 3650 -nodes -newkey rsa:2048 -subj /CN=root -keyout root.key -out root.crt \
           -addext basicConstraints=critical,CA:TRUE,pathlen:0 2>/dev/null || exit 9
         openssl req -new -nodes -newkey rsa:2048 -subj /CN=inter -keyout inter.key -out inter.csr
         openssl x509 -req -in inter.csr -days 1825 -extfile /etc/ssl/openssl.cnf -extensions v3_ca -CA root.crt -CAkey root.key \
           -CAcreateserial -out inter.crt
         request rsa:2048; signed inter; cat inter.crt >> server.crt",
        "is not the certificate of an authority",
    ),
    refused(
        "signed by a server whose certificate is among the roots",
        "authority rsa:2048; request rsa:2048; echo subjectAltName=DNS:elsewhere > ext; signed root -extfile ext
         cat server.crt >> root.crt; mv server.key inter.key; mv server.crt inter.crt
         request rsa:2048; echo subjectAltName=DNS:localhost > ext; signed inter -extfile ext",
        "which is not the certificate of an authority",
    ),
    refused(
        "an authority whose key is not for certificates",
        "authority rsa:2048
         openssl req -new -nodes -newkey rsa:2048 -subj /CN=inter -keyout inter.key -out inter.csr
         printf 'basicConstraints=CA:TRUE\\nkeyUsage=digitalSignature\\n' > ext
         openssl x509 -req -in inter.csr -days 1825 -extfile ext -CA root.crt -CAkey root.key -CAcreateserial -out inter.crt
         request rsa:2048; echo subjectAltName=DNS:localhost > ext; signed inter -extfile ext; cat inter.crt >> server.crt",
        "(keyUsage)",
    ),
    refused(
        "an authority for clients above a certificate of version 1",
        "authority rsa:2048
         openssl req -new -nodes -newkey rsa:2048 -subj /CN=inter -keyout inter.key -out inter.csr
         printf 'basicConstraints=CA:TRUE\\nextendedKeyUsage=clientAuth\\n' > ext
         openssl x509 -req -in inter.csr -days 1825 -extfile ext -CA root.crt -CAkey root.key -CAcreateserial -out inter.crt
         request rsa:2048; signed inter; cat inter.crt >> server.crt",
        "(extendedKeyUsage)",
    ),
    refused(
        "a root that has expired",
        "openssl req -new -nodes -newkey rsa:2048 -subj /CN=root -keyout root.key -out root.csr
         echo basicConstraints=CA:TRUE > ext; openssl x509 -req -in root.csr -days -1 -extfile ext -signkey root.key -out root.crt
         request rsa:2048; echo subjectAltName=DNS:localhost > ext; signed root -extfile ext",
        "has expired",
    ),
    refused(
        "an authority's key that is for certificates only",
        "itself -addext keyUsage=keyCertSign,cRLSign",
        "its keyUsage lacks digitalSignature",
    ),
    refused("for clients", "itself -addext extendedKeyUsage=clientAuth", "its extendedKeyUsage lacks serverAuth"),
    refused("expired, of version 1", "authority rsa:2048; request rsa:2048; signed root -days -1", "has expired"),
    Kind {
        name: "Ed448",
        script: "itself -newkey ed448",
        words: "no kind of key that headwater knows",
        // Neither ring nor any library without unsafe code that is looked after has it.
        only_psql: true,
    },
];

const fn taken(name: &'static str, script: &'static str) -> Kind {
    Kind { name, script, words: "", only_psql: false }
}

const fn refused(name: &'static str, script: &'static str, words: &'static str) -> Kind {
    Kind { name, script, words, only_psql: false }
}

/// Runs a script in the directory of the certificates.
fn make(certificates: &Certificates, script: &str) {
    let dir = certificates.path("");
    let text = format!("{FUNCTIONS}\n{script}\n");
    let output = Command::new("sh").args(["-c", &text]).current_dir(dir).output().expect("sh");
    assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// The certificate that the server shows to whoever begins TLS.
fn shown(port: u16) -> String {
    let connect = format!("127.0.0.1:{port}");
    let arguments = ["s_client", "-starttls", "postgres", "-cipher", "DEFAULT@SECLEVEL=0", "-connect", &connect];
    let output = Command::new("openssl").args(arguments).stdin(std::process::Stdio::null()).output().expect("openssl");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Installs the pair and waits until new connections see it.
async fn install(name: &str, certificates: &Certificates, source: &Cluster, database: &Database) {
    for file in ["server.crt", "server.key"] {
        certificates.copy(source, file, file);
    }
    database.at_source("SELECT pg_reload_conf()").await;
    let pem = std::fs::read_to_string(certificates.path("server.crt")).unwrap();
    let begin = pem.find("-----BEGIN").expect("a certificate");
    let end = pem[begin..].find("-----END").expect("a certificate");
    let first = &pem[begin..begin + end];
    let what = format!("the server shows the certificate: {name}");
    eventually(&what, || async { shown(source.port()).contains(first).then_some(()) }).await;
}

/// Whether psql connects.
fn psql_connects(psql: &Path, url: &str) -> bool {
    let output = Command::new(psql).args(["-d", url, "-Atc", "SELECT 1"]).output().expect("psql");
    output.status.success()
}

/// A source with TLS that takes weak keys, so that refusing them is the client's doing.
async fn source_with(certificates: &Certificates) -> Cluster {
    let mut source = new_source(&[]).await;
    certificates.install(&source);
    let settings = [
        ("ssl_cert_file", "server.crt"),
        ("ssl_key_file", "server.key"),
        ("ssl_ca_file", "root.crt"),
        ("ssl_ciphers", "DEFAULT@SECLEVEL=0"),
        ("ssl", "on"),
    ];
    for (name, value) in settings {
        source.set(name, value);
    }
    let admin = source.connect("postgres").await.unwrap();
    let roles = "CREATE ROLE ordinary LOGIN REPLICATION SUPERUSER; CREATE ROLE shown LOGIN REPLICATION SUPERUSER";
    admin.script("roles", roles).await.unwrap();
    drop(admin);
    with_hba(&mut source, "hostssl all ordinary 127.0.0.1/32 trust\nhostssl all shown 127.0.0.1/32 cert").await;
    source
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn certificates_that_psql_accepts_are_accepted_and_others_refused_with_a_reason() {
    let (Some(psql), Some(_)) = (program("psql"), program("openssl")) else { return };
    let certificates = Certificates::new();
    let source = source_with(&certificates).await;
    let database = Database::on(&source, destination().await, "kinds", ONE, ONE_SCHEMA).await;
    let root = certificates.path("root.crt");
    let url = |parameters: &str| {
        let port = source.port();
        format!("postgresql://ordinary@localhost:{port}/{}?hostaddr=127.0.0.1&{parameters}", database.name)
    };
    let with = |url: String| Setup { source_url: url, ..Setup::of(&database) };
    for kind in KINDS {
        make(&certificates, kind.script);
        install(kind.name, &certificates, &source, &database).await;
        for mode in ["sslmode=require", "sslmode=verify-ca", "sslmode=verify-full"] {
            let parameters = match mode {
                "sslmode=require" => mode.to_owned(),
                _ => format!("{mode}&sslrootcert={root}"),
            };
            let by_psql = psql_connects(&psql, &url(&parameters));
            let found = findings(&with(url(&parameters))).await;
            let refusal = find(&found, "failed", "TLS with");
            let ours = refusal.is_none();
            if kind.only_psql {
                assert!(!ours, "{}, {mode}: {found:#?}", kind.name);
            } else {
                assert_eq!(ours, by_psql, "{}, {mode}: {refusal:#?}", kind.name);
            }
            if let Some(refusal) = refusal {
                let message = refusal["message"].as_str().unwrap();
                assert!(!kind.words.is_empty() && message.contains(kind.words), "{}, {mode}: {message}", kind.name);
                assert!(!hint(refusal).starts_with("See "), "{}, {mode}: {refusal}", kind.name);
            } else if mode == "sslmode=verify-full" {
                assert_eq!(kind.words, "", "{}", kind.name);
            }
        }
    }
    // The last kind's way out, as printed.
    let strict = format!("sslmode=verify-full&sslrootcert={root}");
    let finding = failed(&with(url(&strict)), "no kind of key that headwater knows").await;
    let (_, command) = hint(&finding).split_once('\n').expect("a command");
    make(&certificates, &format!("{command}\ncp server.crt root.crt"));
    install("printed", &certificates, &source, &database).await;
    mended(&with(url(&strict))).await;
    assert!(psql_connects(&psql, &url(&strict)));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn our_own_certificate_may_be_of_every_kind_that_psql_shows() {
    let (Some(psql), Some(_)) = (program("psql"), program("openssl")) else { return };
    let certificates = Certificates::new();
    let source = source_with(&certificates).await;
    let database = Database::on(&source, destination().await, "shownkinds", ONE, ONE_SCHEMA).await;
    let kinds = [
        ("version 1", "request rsa:2048"),
        ("P-521", "request ec -pkeyopt ec_paramgen_curve:P-521"),
        (
            "P-521 in SEC 1",
            "request ec -pkeyopt ec_paramgen_curve:P-521; openssl ec -in server.key -out sec1 && cp sec1 server.key",
        ),
        ("RSA-PSS", "request rsa-pss"),
    ];
    make(&certificates, "authority rsa:2048");
    certificates.copy(&source, "root.crt", "root.crt");
    std::fs::copy(certificates.path("root.crt"), certificates.path("clients.crt")).unwrap();
    std::fs::copy(certificates.path("root.key"), certificates.path("clients.key")).unwrap();
    database.at_source("SELECT pg_reload_conf()").await;
    let (certificate, key) = (certificates.path("server.crt"), certificates.path("server.key"));
    let url = format!(
        "postgresql://shown@localhost:{}/{}?hostaddr=127.0.0.1&sslmode=require&sslcert={certificate}&sslkey={key}",
        source.port(),
        database.name
    );
    let setup = Setup { source_url: url.clone(), ..Setup::of(&database) };
    for (name, script) in kinds {
        make(
            &certificates,
            &format!(
                "{script}; openssl req -in server.csr -key server.key -subj /CN=shown -new -out server.csr\nsigned clients"
            ),
        );
        eventually("psql is let in", || async { psql_connects(&psql, &url).then_some(()) }).await;
        let found = findings(&setup).await;
        assert!(found.iter().all(|finding| finding["standing"] != "failed"), "{name}: {found:#?}");
    }
    // Another key than the certificate's, and one that is encrypted.
    make(&certificates, "request rsa:2048; cp server.key other; request rsa:2048; signed clients; cp other server.key");
    let finding = failed(&setup, "is not the certificate of the key").await;
    assert!(hint(&finding).contains("sslcert"), "{finding}");
    make(
        &certificates,
        "request rsa:2048; signed clients; openssl pkcs8 -topk8 -in server.key -passout pass:x -out locked; cp locked server.key",
    );
    failed(&setup, "the key is encrypted").await;
}
