//! Which requests a loopback server answers, by the host that they ask for.
//!
//! In comes a request, out go `Ok` or the words of the refusal; called by [`super::serve`] for every request of a
//! server that is bound to a loopback address. Pure.
//!
//! Why: a web page from anywhere can make a name of its own resolve to 127.0.0.1 (DNS rebinding). The browser then
//! considers our answers to be that page's own, and shows them to it. Such a request carries the page's name as its
//! host, so a loopback server answers only to loopback names and addresses. A request without any host (HTTP/1.0) is
//! answered: a browser always sends one.

use std::net::IpAddr;

use axum::http::header::HOST;
use axum::http::uri::Authority;
use axum::http::{Request, Version};

/// What a refused client reads. The host itself is not repeated.
pub(super) const REFUSAL: &str = "http.listen is a loopback address: only requests for localhost, 127.0.0.0/8 or [::1] \
                                  are answered; a proxy must send one of these as Host";

/// Whether a request asks for a loopback host, and for no other one.
pub(super) fn is_loopback<B>(request: &Request<B>) -> bool {
    let mut headers = request.headers().get_all(HOST).iter();
    let header_is_loopback = match (headers.next(), headers.next()) {
        (None, _) => request.version() < Version::HTTP_11,
        (Some(host), None) => host.to_str().is_ok_and(names_loopback),
        // Two hosts are read differently by different programs.
        (Some(_), Some(_)) => false,
    };
    header_is_loopback && request.uri().authority().is_none_or(|authority| names_loopback(authority.as_str()))
}

/// Whether `host[:port]` is a loopback name or address.
fn names_loopback(host: &str) -> bool {
    // `localhost@elsewhere` is a user of elsewhere, and no host of ours needs one.
    if host.contains('@') {
        return false;
    }
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host();
    let bracketed = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    match bracketed.unwrap_or(name).parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => name.strip_suffix('.').unwrap_or(name).eq_ignore_ascii_case("localhost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(version: Version, uri: &str, hosts: &[&[u8]]) -> Request<()> {
        let mut builder = Request::builder().version(version).uri(uri);
        for host in hosts {
            builder = builder.header(HOST, *host);
        }
        builder.body(()).unwrap()
    }

    #[test]
    fn loopback_names_and_addresses_are_answered_at_any_port() {
        let hosts = [
            "localhost",
            "localhost:9477",
            "LocalHost:1",
            "localhost.",
            "127.0.0.1",
            "127.0.0.1:80",
            "127.8.9.10:9477",
            "[::1]",
            "[::1]:9477",
            "[0:0:0:0:0:0:0:1]:9477",
            "[::ffff:127.0.0.1]:9477",
        ];
        for host in hosts {
            assert!(is_loopback(&request(Version::HTTP_11, "/status", &[host.as_bytes()])), "{host}");
        }
        assert!(is_loopback(&request(Version::HTTP_11, "http://localhost:9477/status", &[b"localhost:9477"])));
        assert!(is_loopback(&request(Version::HTTP_10, "/status", &[])), "no browser leaves it out");
    }

    #[test]
    fn any_other_host_is_refused() {
        let hosts: &[&[u8]] = &[
            b"evil.example",
            b"evil.example:9477",
            b"localhost.evil.example",
            b"127.0.0.1.evil.example",
            b"evil.example@localhost",
            b"localhost@evil.example",
            b"10.0.0.1",
            b"0.0.0.0:9477",
            b"[::]:9477",
            b"[fe80::1]:9477",
            b"::1",
            b"2130706433",
            b"0x7f.1",
            b"127.1",
            b"",
            b" ",
            b":9477",
            b"localhost..",
            b"xlocalhost",
            b"localhost/",
            b"localhost, evil.example",
            b"l\xc3\xb6calhost",
            b"\xff",
        ];
        for host in hosts {
            let asked = request(Version::HTTP_11, "/status", &[host]);
            assert!(!is_loopback(&asked), "{}", String::from_utf8_lossy(host));
        }
        assert!(!is_loopback(&request(Version::HTTP_11, "/status", &[])), "HTTP/1.1 requires one");
        assert!(!is_loopback(&request(Version::HTTP_11, "/status", &[b"localhost", b"evil.example"])));
        assert!(!is_loopback(&request(Version::HTTP_11, "http://evil.example/status", &[b"localhost"])));
        assert!(!is_loopback(&request(Version::HTTP_10, "http://evil.example/status", &[])));
    }
}
