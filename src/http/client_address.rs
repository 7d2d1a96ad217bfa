//! The client's address: the peer address of the connection, or the address that a trusted proxy reports in a header.

use std::net::{IpAddr, SocketAddr};

use axum::http::{HeaderMap, HeaderName, header};
use ipnet::IpNet;

/// The peer address of a connection. Each request carries it as an extension.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

/// The header in which proxies report the client's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardedHeader {
    /// `Forwarded`, RFC 7239.
    Forwarded,
    /// `X-Forwarded-For`.
    XForwardedFor,
}

/// The proxies in front of a listener whose headers are trusted.
#[derive(Clone, Debug)]
pub struct TrustedProxies {
    /// The networks of the proxies.
    pub networks: Vec<IpNet>,
    /// The header that the proxies set. The other header is ignored, because clients can forge it.
    pub header: ForwardedHeader,
}

impl TrustedProxies {
    /// Whether a connection comes from a trusted proxy.
    pub fn includes(&self, Peer(peer): Peer) -> bool {
        self.contains(peer.to_canonical())
    }

    fn contains(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(&address))
    }

    /// The client's address: the rightmost address in the header that is not a trusted proxy, or the leftmost address
    /// if all are trusted. Returns the peer address if the peer is not trusted or an address to be examined is
    /// malformed.
    pub fn client_address(&self, Peer(peer): Peer, headers: &HeaderMap) -> IpAddr {
        let peer = peer.to_canonical();
        if !self.contains(peer) {
            return peer;
        }
        let (name, parse): (_, fn(&str) -> Option<IpAddr>) = match self.header {
            ForwardedHeader::XForwardedFor => (HeaderName::from_static("x-forwarded-for"), parse_address),
            ForwardedHeader::Forwarded => (header::FORWARDED, parse_forwarded),
        };
        let mut client = peer;
        for value in headers.get_all(name).iter().rev() {
            for element in value.as_bytes().rsplit(|byte| *byte == b',') {
                let Some(address) = std::str::from_utf8(element).ok().and_then(parse) else { return peer };
                client = address;
                if !self.contains(address) {
                    return client;
                }
            }
        }
        client
    }
}

/// Parses an address with or without a port.
fn parse_address(text: &str) -> Option<IpAddr> {
    let text = text.trim_matches([' ', '\t']);
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let parsed = bare.parse().or_else(|_| text.parse().map(|with_port: SocketAddr| with_port.ip()));
    parsed.ok().map(|address| address.to_canonical())
}

/// Parses the `for` parameter of an element of a `Forwarded` header. A quoted string, for example a `host` that the
/// client chose, can contain the separators of elements. Therefore an element that may be a fragment of a quoted string
/// is rejected.
fn parse_forwarded(element: &str) -> Option<IpAddr> {
    let is_whole = !element.contains('\\') && element.matches('"').count().is_multiple_of(2);
    let parameters = element.split(';').filter_map(|parameter| parameter.split_once('='));
    let mut addresses = parameters.filter(|(name, _)| name.trim().eq_ignore_ascii_case("for"));
    let (_, address) = addresses.next().filter(|_| is_whole)?;
    if addresses.next().is_some() { None } else { parse_address(address.trim().trim_matches('"')) }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn client(header: ForwardedHeader, peer: &str, lines: &[&str]) -> String {
        let networks = ["10.0.0.0/8", "fd00::/8"].map(|network| network.parse().unwrap()).to_vec();
        let proxies = TrustedProxies { networks, header };
        let name = match header {
            ForwardedHeader::Forwarded => "forwarded",
            ForwardedHeader::XForwardedFor => "x-forwarded-for",
        };
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(HeaderName::from_static(name), HeaderValue::from_str(line).unwrap());
        }
        proxies.client_address(Peer(peer.parse().unwrap()), &headers).to_string()
    }

    #[test]
    fn rightmost_untrusted_address_is_the_client() {
        let of = |peer, lines: &[&str]| client(ForwardedHeader::XForwardedFor, peer, lines);
        assert_eq!(of("192.0.2.9", &["198.51.100.1"]), "192.0.2.9", "the peer is not trusted");
        assert_eq!(of("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(of("10.0.0.1", &["198.51.100.1"]), "198.51.100.1");
        assert_eq!(of("::ffff:10.0.0.1", &["::ffff:198.51.100.1"]), "198.51.100.1");
        assert_eq!(of("10.0.0.1", &["203.0.113.7, 198.51.100.1 ,10.0.0.2"]), "198.51.100.1");
        assert_eq!(of("10.0.0.1", &["203.0.113.7", "198.51.100.1,10.0.0.2"]), "198.51.100.1");
        assert_eq!(of("fd00::1", &["[2001:db8::7]:443"]), "2001:db8::7");
        assert_eq!(of("10.0.0.1", &["198.51.100.1:50000"]), "198.51.100.1");
        assert_eq!(of("10.0.0.1", &["10.0.0.3, 10.0.0.2"]), "10.0.0.3", "all addresses are trusted");
        assert_eq!(
            of("10.0.0.1", &["nonsense, 198.51.100.1"]),
            "198.51.100.1",
            "the client can set the rest"
        );
    }

    #[test]
    fn malformed_header_is_ignored() {
        let of = |lines: &[&str]| client(ForwardedHeader::XForwardedFor, "10.0.0.1", lines);
        for bad in ["unknown", "", "198.51.100.1,", "198.51.100.1, _hidden", "198.51.100.1 10.0.0.2", "1.2.3"]
        {
            assert_eq!(of(&[bad]), "10.0.0.1", "{bad}");
        }
    }

    #[test]
    fn forwarded_header_is_parsed_per_rfc_7239() {
        let of = |lines: &[&str]| client(ForwardedHeader::Forwarded, "10.0.0.1", lines);
        for good in [
            "for=198.51.100.1",
            "For=\"198.51.100.1:4711\" ; proto=https;by=10.0.0.1",
            "for=203.0.113.7;host=\"a,b\", for=198.51.100.1,for=10.0.0.2",
            "for=\"x\\\",for=198.51.100.1",
            "for=198.51.100.1;",
        ] {
            assert_eq!(of(&[good]), "198.51.100.1", "{good}");
        }
        assert_eq!(of(&["for=\"[2001:db8::7]:4711\""]), "2001:db8::7");
        assert_eq!(of(&["for=203.0.113.7", "for=198.51.100.1"]), "198.51.100.1");
        for bad in [
            "198.51.100.1",
            "for=unknown",
            "for=_hidden",
            "for=\"198.51.100.1",
            "for=198.51.100.1;for=203.0.113.7",
            "proto=https",
            "for=198.51.100.1 for=203.0.113.7",
            "=198.51.100.1",
            "for=198.51.100.1;host=\"a,for=203.0.113.7;x=\"",
            "for=198.51.100.1;host=\"a,for=203.0.113.7;x=\\\"\"",
            "for=198.51.100.1;host=\"a;for=203.0.113.7\"",
        ] {
            assert_eq!(of(&[bad]), "10.0.0.1", "{bad}");
        }
    }
}
