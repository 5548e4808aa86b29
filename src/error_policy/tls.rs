//! What brings TLS about, for each kind of fault that a session reports.
//!
//! Called by `error_policy` with the end and the host of the failed session; out goes the report's hint. Pure.

use crate::pg::shell_word;
use crate::session::TlsProblem;

/// What brings TLS about.
pub(super) fn hint(end: &str, host: &str, problem: TlsProblem) -> String {
    match problem {
        TlsProblem::NotOffered => format!(
            "Set ssl = on at the {end}, with a certificate; or, where the network is trusted, sslmode=prefer in {end}.url."
        ),
        TlsProblem::Untrusted => format!(
            "Set sslrootcert in {end}.url to the certificate of the authority that signed the server's; or to system, for those \
             that this machine trusts."
        ),
        TlsProblem::OtherName => {
            format!(
                "Give the name in the server's certificate as host in {end}.url, and next to it hostaddr where it does not resolve."
            )
        }
        TlsProblem::Expired => format!("Renew the certificate at the {end}, then run there: SELECT pg_reload_conf();"),
        TlsProblem::NotYet => "Compare the clocks of both machines: date -u.".to_owned(),
        TlsProblem::OurCertificate => format!(
            "Give in sslcert and sslkey of {end}.url a certificate that is valid today, by an authority in ssl_ca_file at the {end}, \
             and not in ssl_crl_file there."
        ),
        TlsProblem::Unfit => format!(
            "Make the server a certificate in its data directory, set sslrootcert in {end}.url to a copy of server.crt, then run \
             SELECT pg_reload_conf(); at the {end}:\n{}",
            new_certificate(host)
        ),
        TlsProblem::NothingInCommon => format!(
            "Let the {end} speak TLS 1.2 or 1.3 (ssl_min_protocol_version, ssl_max_protocol_version) with ECDHE ciphers (ssl_ciphers), \
             and give it a key that is RSA, Ed25519, or ECDSA on P-256, P-384 or P-521:\n{}",
            new_certificate(host)
        ),
        TlsProblem::NotDirect => format!("Take sslnegotiation=direct out of {end}.url."),
        TlsProblem::Other => format!("See sslmode, sslrootcert, sslcert and sslkey in {end}.url."),
    }
}

/// The command that makes a certificate which vouches for itself, with this host's name in it.
fn new_certificate(host: &str) -> String {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name).trim_matches(['[', ']']);
    let kind = if name.parse::<std::net::IpAddr>().is_ok() { "IP" } else { "DNS" };
    format!(
        "openssl req -new -x509 -days 365 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -subj {} -addext {} \
         -keyout server.key -out server.crt",
        shell_word(&format!("/CN={name}")),
        shell_word(&format!("subjectAltName={kind}:{name}"))
    )
}
