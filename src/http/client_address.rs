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

    /// The client's address: the rightmost address in the header that is not a trusted proxy, or the leftmost if all
    /// are trusted. The peer address if the peer is not trusted, or if the header cannot be parsed up to that address.
    pub fn client_address(&self, Peer(peer): Peer, headers: &HeaderMap) -> IpAddr {
        let peer = peer.to_canonical();
        if !self.contains(peer) {
            return peer;
        }
        let reported = match self.header {
            ForwardedHeader::XForwardedFor => self.rightmost_untrusted(
                headers
                    .get_all(HeaderName::from_static("x-forwarded-for"))
                    .iter()
                    .rev()
                    .flat_map(|value| value.as_bytes().rsplit(|byte| *byte == b','))
                    .map(parse_address),
            ),
            ForwardedHeader::Forwarded => {
                let mut chain = Vec::new();
                for value in headers.get_all(header::FORWARDED) {
                    let Some(elements) = value.to_str().ok().and_then(parse_forwarded) else { return peer };
                    chain.extend(elements);
                }
                self.rightmost_untrusted(chain.into_iter().rev())
            }
        };
        reported.unwrap_or(peer)
    }

    /// The rightmost address that is not a trusted proxy, or the leftmost if all are trusted. `None` if the header is
    /// missing, or if an address up to that one cannot be parsed.
    fn rightmost_untrusted(&self, from_right: impl Iterator<Item = Option<IpAddr>>) -> Option<IpAddr> {
        let mut client = None;
        for address in from_right {
            client = Some(address?);
            if !client.is_some_and(|address| self.contains(address)) {
                break;
            }
        }
        client
    }
}

/// Parses an address with or without a port.
fn parse_address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?.trim_matches([' ', '\t']);
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let parsed = bare.parse().or_else(|_| text.parse().map(|with_port: SocketAddr| with_port.ip()));
    parsed.ok().map(|address| address.to_canonical())
}

/// The `for` parameter of each element of a `Forwarded` header. `None` if the header cannot be parsed.
fn parse_forwarded(text: &str) -> Option<Vec<Option<IpAddr>>> {
    let mut elements = vec![None];
    let mut rest = text;
    loop {
        let (name, after) = rest.split_once('=')?;
        let name = name.trim_matches([' ', '\t']);
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_at(after.find([',', ';']).unwrap_or(after.len())),
        };
        // A backslash begins a quoted pair, which no address contains.
        if name.is_empty() || name.contains([',', ';', '"', ' ', '\t']) || value.contains(['\\', '"']) {
            return None;
        }
        if name.eq_ignore_ascii_case("for") {
            let element = elements.last_mut()?;
            if element.replace(parse_address(value.as_bytes())?).is_some() {
                return None;
            }
        }
        let after = after.trim_start_matches([' ', '\t']);
        match after.split_at_checked(1) {
            None => return Some(elements),
            Some((";", after)) => rest = after,
            Some((",", after)) => {
                elements.push(None);
                rest = after;
            }
            Some(_) => return None,
        }
    }
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
            "for=\"x\\\",for=198.51.100.1",
            "for=198.51.100.1;for=203.0.113.7",
            "proto=https",
            "for=198.51.100.1 for=203.0.113.7",
            "for=198.51.100.1;",
            "=198.51.100.1",
        ] {
            assert_eq!(of(&[bad]), "10.0.0.1", "{bad}");
        }
    }
}
