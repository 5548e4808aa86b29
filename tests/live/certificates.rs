//! Certificates that are no good, on either side of the handshake, and what cannot be bound to its channel: each is refused
//! with what mends it, and then mended so.

use std::os::unix::fs::PermissionsExt;

use headwater::commands::demo::Cluster;
use rcgen::{
    CertificateParams, CertificateRevocationListParams, CertifiedIssuer, KeyIdMethod, KeyPair, PKCS_ED25519,
    RevokedCertParams, SerialNumber, date_time_ymd,
};

use crate::support::certificates::{Certificates, authority_params, with_hba};
use crate::support::findings::{failed, hint, mended};
use crate::support::{Database, Script, Setup, destination, new_source};

const ONE: &[&str] = &["t"];
const ONE_SCHEMA: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'x');";

/// How a certificate differs from a good one.
enum Flaw {
    Expired,
    NotYet,
    Revoked,
    /// Of an authority that the server does not know.
    Foreign,
    /// Of one that has the name of an authority that the server knows.
    Pretended,
}

/// Signs a certificate for `name` with this flaw and writes it beside the others, with a key of its own.
fn issue(certificates: &Certificates, file: &str, name: &str, flaw: &Flaw) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    let stranger;
    let mut issuer = &certificates.authority;
    match flaw {
        Flaw::Expired => params.not_after = date_time_ymd(2020, 1, 1),
        Flaw::NotYet => params.not_before = date_time_ymd(3020, 1, 1),
        Flaw::Revoked => params.serial_number = Some(SerialNumber::from(REVOKED)),
        Flaw::Foreign | Flaw::Pretended => {
            let mut authority = authority_params();
            if matches!(flaw, Flaw::Foreign) {
                authority.distinguished_name.push(rcgen::DnType::CommonName, "a stranger");
            }
            stranger = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
            issuer = &stranger;
        }
    }
    certificates.write(file, &params.signed_by(&key, issuer).unwrap(), &key);
}

/// The serial number that the list of revoked certificates holds.
const REVOKED: u64 = 4711;

/// The authority's list of what it revoked, for `ssl_crl_file`.
fn revocations(certificates: &Certificates) {
    let revoked = RevokedCertParams {
        serial_number: SerialNumber::from(REVOKED),
        revocation_time: date_time_ymd(2020, 1, 1),
        reason_code: None,
        invalidity_date: None,
    };
    let list = CertificateRevocationListParams {
        this_update: date_time_ymd(2020, 1, 1),
        next_update: date_time_ymd(3020, 1, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: vec![revoked],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let list = list.signed_by(&certificates.authority).unwrap();
    std::fs::write(certificates.path("root.crl"), list.pem().unwrap()).unwrap();
}

/// A source with TLS, where `replicator` logs in by certificate, `ordinary` by SCRAM and `old` by a plain password.
async fn source_with(certificates: &Certificates) -> Cluster {
    let mut source = new_source(&[]).await;
    certificates.install(&source);
    certificates.copy(&source, "root.crl", "root.crl");
    for (name, file) in [
        ("ssl_cert_file", "server.crt"),
        ("ssl_key_file", "server.key"),
        ("ssl_ca_file", "root.crt"),
        ("ssl_crl_file", "root.crl"),
        ("ssl", "on"),
    ] {
        source.set(name, file);
    }
    let admin = source.connect("postgres").await.unwrap();
    let roles = "CREATE ROLE replicator LOGIN REPLICATION SUPERUSER; CREATE ROLE other LOGIN REPLICATION SUPERUSER;
        CREATE ROLE ordinary LOGIN REPLICATION SUPERUSER PASSWORD 'hunter2'; CREATE ROLE old LOGIN REPLICATION SUPERUSER PASSWORD 'hunter2'";
    admin.script("roles", roles).await.unwrap();
    drop(admin);
    with_hba(
        &mut source,
        "hostssl all replicator,other 127.0.0.1/32 cert\nhost all ordinary 127.0.0.1/32 scram-sha-256\nhost all old 127.0.0.1/32 password",
    )
    .await;
    source
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unusable_client_certificate_is_named_and_the_printed_fix_works() {
    let certificates = Certificates::new();
    revocations(&certificates);
    let source = source_with(&certificates).await;
    let database = Database::on(&source, destination().await, "clients", ONE, ONE_SCHEMA).await;
    let root = certificates.path("root.crt");
    let with = |role: &str, certificate: &str, key: &str| Setup {
        source_url: format!(
            "postgresql://{role}@localhost:{}/{}?sslmode=verify-full&sslrootcert={root}&sslcert={}&sslkey={}",
            source.port(),
            database.name,
            certificates.path(certificate),
            certificates.path(key)
        ),
        ..Setup::of(&database)
    };
    for (flaw, why) in [
        (Flaw::Expired, "it has expired"),
        (Flaw::NotYet, "it is not valid"),
        (Flaw::Revoked, "it has been revoked"),
        (Flaw::Foreign, "no authority that the server trusts vouches for it"),
        (Flaw::Pretended, "no authority that the server trusts vouches for it"),
    ] {
        issue(&certificates, "bad", "replicator", &flaw);
        let setup = with("replicator", "bad.crt", "bad.key");
        let message = format!("the server refuses the certificate that we show: {why}");
        let finding = failed(&setup, &message).await;
        let says = "Give in sslcert and sslkey of source.url a certificate that is valid today, by an authority in ssl_ca_file at";
        assert!(hint(&finding).starts_with(says), "{finding}");
        assert!(hint(&finding).contains("ssl_crl_file"), "{finding}");
        // The service does not wait for what will not get better.
        let log = setup.start().ends_with(1).await;
        assert!(log.contains(&message) && log.contains(says), "{log}");
    }
    // A good one, of somebody else; one with another's key.
    let finding = failed(&with("other", "client.crt", "client.key"), "certificate authentication failed").await;
    assert!(hint(&finding).contains("sslcert and sslkey"), "{finding}");
    let finding = failed(&with("replicator", "client.crt", "server.key"), "client.crt").await;
    assert!(hint(&finding).starts_with("See sslrootcert, sslcert, sslkey"), "{finding}");
    let good = with("replicator", "client.crt", "client.key");
    // A key that everybody may use: libpq refuses it.
    let key = certificates.path("client.key");
    let allow = |mode: u32| std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
    allow(0o644);
    failed(&good, "others can use this private key").await;
    allow(0o600);
    mended(&good).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_server_certificate_out_of_its_time_is_refused_and_mended_by_what_is_printed() {
    let certificates = Certificates::new();
    revocations(&certificates);
    let source = source_with(&certificates).await;
    let database = Database::on(&source, destination().await, "outoftime", ONE, ONE_SCHEMA).await;
    let root = certificates.path("root.crt");
    let with = |parameters: &str| Setup {
        source_url: format!("postgresql://ordinary:hunter2@localhost:{}/{}?{parameters}", source.port(), database.name),
        ..Setup::of(&database)
    };
    for (flaw, message, says) in [
        (Flaw::Expired, "the server's certificate has expired", "Renew the certificate at the source, then run there"),
        (Flaw::NotYet, "the server's certificate is not valid yet", "Compare the clocks of both machines: date -u."),
    ] {
        issue(&certificates, "bad", "localhost", &flaw);
        for file in ["crt", "key"] {
            certificates.copy(&source, &format!("bad.{file}"), &format!("server.{file}"));
        }
        database.at_source("SELECT pg_reload_conf()").await;
        for mode in ["require", "verify-ca", "verify-full"] {
            let setup = with(&format!("sslmode={mode}&sslrootcert={root}"));
            crate::support::eventually("the server shows it", || async {
                let found = crate::support::findings::findings(&setup).await;
                crate::support::findings::find(&found, "failed", message).is_some().then_some(())
            })
            .await;
            let finding = failed(&setup, message).await;
            assert!(hint(&finding).starts_with(says), "{finding}");
        }
        // Who asks for no verification gets none, as in libpq.
        mended(&with("sslmode=require")).await;
    }
    let log = with(&format!("sslmode=verify-full&sslrootcert={root}")).start().ends_with(1).await;
    assert!(log.contains("not valid yet") && !log.contains("hunter2"), "{log}");
    certificates.install(&source);
    database.at_source("SELECT pg_reload_conf()").await;
    let good = with(&format!("sslmode=verify-full&sslrootcert={root}"));
    crate::support::eventually("the renewed certificate is shown", || async {
        let found = crate::support::findings::findings(&good).await;
        found.iter().all(|finding| finding["standing"] != "failed").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: make test-long"]
async fn a_channel_that_cannot_be_bound_is_refused_only_where_binding_is_required() {
    let certificates = Certificates::new();
    revocations(&certificates);
    let source = source_with(&certificates).await;
    let database = Database::on(&source, destination().await, "unbound", ONE, ONE_SCHEMA).await;
    let with = |role: &str, parameters: &str| Setup {
        source_url: format!("postgresql://{role}:hunter2@localhost:{}/{}?{parameters}", source.port(), database.name),
        ..Setup::of(&database)
    };
    let refused = async |role: &str, parameters: &str| {
        let setup = with(role, &format!("{parameters}&channel_binding=require"));
        let finding = failed(&setup, "channel_binding=require").await;
        let says = "Let this role log in by scram-sha-256 over TLS (hostssl) in pg_hba.conf at the source";
        assert!(hint(&finding).starts_with(says), "{finding}");
        let log = setup.start().ends_with(1).await;
        assert!(log.contains("channel_binding=require") && log.contains(says) && !log.contains("hunter2"), "{log}");
        mended(&with(role, &format!("{parameters}&channel_binding=prefer"))).await;
    };
    mended(&with("ordinary", "sslmode=require&channel_binding=require")).await;
    // Without TLS; by a password that the server is given; with a certificate for which RFC 5929 leaves the hash open.
    refused("ordinary", "sslmode=disable").await;
    refused("old", "sslmode=require").await;
    let key = KeyPair::generate().unwrap();
    let authority = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let authority = CertifiedIssuer::self_signed(authority_params(), authority).unwrap();
    let certificate =
        CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    certificates.write("ed25519", &certificate, &key);
    for file in ["crt", "key"] {
        certificates.copy(&source, &format!("ed25519.{file}"), &format!("server.{file}"));
    }
    database.at_source("SELECT pg_reload_conf()").await;
    crate::support::eventually("the server shows it", || async {
        let found =
            crate::support::findings::findings(&with("ordinary", "sslmode=require&channel_binding=require")).await;
        crate::support::findings::find(&found, "failed", "channel_binding").is_some().then_some(())
    })
    .await;
    refused("ordinary", "sslmode=require").await;
}
