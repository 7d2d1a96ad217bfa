//! Parses `store.url` and builds the clients for its servers.
//!
//! ```text
//! redis://[user:password@]host[:port][/database]
//! redis+sentinel://[user:password@]host[:port],host[:port]…/service[/database]
//! redis+cluster://[user:password@]host[:port],host[:port]…
//! ```
//! With `rediss` instead of `redis`, all connections use TLS, including those to the sentinels.

use std::fmt::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{
    Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisError,
    RedisResult, TlsCertificates,
};
use secrecy::{ExposeSecret, SecretString};
use thiserror::Error;

/// Default port of a sentinel.
const SENTINEL_PORT: u16 = 26379;

/// Why the store settings are invalid.
#[derive(Debug, Error)]
pub enum InvalidServers {
    /// The URL is invalid. The message never contains the URL, because it can contain a password.
    #[error("store.url {0}")]
    Url(&'static str),
    /// A certificate or key file cannot be read.
    #[error("{key}: cannot read {file}")]
    Unreadable {
        /// The name of the setting.
        key: &'static str,
        /// The path of the file.
        file: PathBuf,
        /// The I/O error.
        source: std::io::Error,
    },
    /// A file contains no valid certificate or key.
    #[error(
        "the files in store.tls_ca, store.tls_certificate and store.tls_key do not contain valid certificates and a key"
    )]
    Certificates(#[source] RedisError),
}

/// Host and port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
}

impl Address {
    /// Parses the address in a redirection: `host:port`, with an IPv6 host without brackets. If the host is empty, it
    /// is that of `sender`.
    pub(super) fn parse_redirection(sender: &Self, text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = if host.is_empty() { &sender.host } else { host };
        Some(Self { host: host.to_owned(), port: port.parse().ok()? })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// The address of the store for telemetry, without credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreLocation {
    /// The host. For a cluster, the host of the first node in the URL; for sentinels, the name of the service.
    pub host: String,
    /// The port. `None` for sentinels.
    pub port: Option<u16>,
    /// The number of the database.
    pub database: i64,
}

/// TLS files in PEM format.
#[derive(Clone, Debug, Default)]
pub struct TlsFiles {
    /// CA certificates for the servers. `None`: the public web CAs.
    pub ca: Option<PathBuf>,
    /// The client certificate and its key.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// The connection settings that all servers share: credentials, database, TLS, socket options.
#[derive(Clone, Debug)]
pub(super) struct Access(Arc<ConnectionInfo>);

impl Access {
    /// A client for the server at this address. Does not connect.
    pub(super) fn client(&self, address: &Address) -> RedisResult<Client> {
        let (host, port) = (address.host.clone(), address.port);
        let addr = if let ConnectionAddr::TcpTls { insecure, tls_params, .. } = self.0.addr() {
            ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
        } else {
            ConnectionAddr::Tcp(host, port)
        };
        Client::open(ConnectionInfo::clone(&self.0).set_addr(addr))
    }

    /// The same settings with other credentials and without a database.
    fn with_credentials(&self, username: Option<&str>, password: Option<&str>) -> Self {
        let mut settings = redis::RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3);
        if let Some(username) = username {
            settings = settings.set_username(username);
        }
        if let Some(password) = password {
            settings = settings.set_password(password);
        }
        Self(Arc::new(ConnectionInfo::clone(&self.0).set_redis_settings(settings)))
    }
}

/// The servers in `store.url`, by topology.
#[derive(Clone, Debug)]
pub(super) enum Servers {
    /// One fixed server.
    Single { access: Access, address: Address },
    /// The primary of a service, whose address the sentinels report.
    Sentinel { access: Access, sentinel_access: Access, sentinels: Vec<Address>, service: String },
    /// A Redis Cluster, of which some nodes are known.
    Cluster { access: Access, seeds: Vec<Address> },
}

/// The parts of a URL, still percent-encoded.
struct Parts<'a> {
    tls: bool,
    topology: Topology,
    credentials: &'a str,
    hosts: Vec<&'a str>,
    path: &'a str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Topology {
    Single,
    Sentinel,
    Cluster,
}

fn parts(url: &str) -> Result<Parts<'_>, InvalidServers> {
    let (scheme, rest) = url.split_once("://").unwrap_or_default();
    let (tls, topology) = match scheme {
        "redis" => (false, Topology::Single),
        "rediss" => (true, Topology::Single),
        "redis+sentinel" => (false, Topology::Sentinel),
        "rediss+sentinel" => (true, Topology::Sentinel),
        "redis+cluster" => (false, Topology::Cluster),
        "rediss+cluster" => (true, Topology::Cluster),
        _ => {
            return Err(InvalidServers::Url(
                "must be memory:, or begin with redis://, redis+sentinel:// or redis+cluster://, or rediss for TLS",
            ));
        }
    };
    if rest.contains(['?', '#']) {
        return Err(InvalidServers::Url("must have neither a query nor a fragment"));
    }
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (credentials, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    let hosts: Vec<&str> = hosts.split(',').collect();
    if topology == Topology::Single && hosts.len() > 1 {
        return Err(InvalidServers::Url("lists several servers: use redis+sentinel:// or redis+cluster://"));
    }
    Ok(Parts { tls, topology, credentials, hosts, path })
}

/// The connection settings of one host of the URL.
fn access(tls: bool, credentials: &str, host: &str, path: &str) -> Result<ConnectionInfo, InvalidServers> {
    let scheme = if tls { "rediss" } else { "redis" };
    let separator = if credentials.is_empty() { "" } else { "@" };
    let url = format!("{scheme}://{credentials}{separator}{host}/{path}");
    let invalid = InvalidServers::Url("is not a valid Redis URL");
    let Ok(info) = url.into_connection_info() else { return Err(invalid) };
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(10)).with_interval(Duration::from_secs(5));
    let tcp = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    #[cfg(target_os = "linux")]
    let tcp = tcp.set_user_timeout(Duration::from_secs(10));
    // With RESP3, the client is notified immediately when the server closes the connection.
    let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    Ok(info.set_tcp_settings(tcp).set_redis_settings(settings))
}

fn address(info: &ConnectionInfo) -> Result<Address, InvalidServers> {
    if let ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } = info.addr() {
        Ok(Address { host: host.clone(), port: *port })
    } else {
        Err(InvalidServers::Url("must contain a host"))
    }
}

impl TlsFiles {
    fn read(key: &'static str, file: &Path) -> Result<Vec<u8>, InvalidServers> {
        std::fs::read(file).map_err(|source| InvalidServers::Unreadable {
            key,
            file: file.to_owned(),
            source,
        })
    }

    fn applied_to(&self, info: ConnectionInfo) -> Result<ConnectionInfo, InvalidServers> {
        if self.ca.is_none() && self.client.is_none() {
            return Ok(info);
        }
        let root_cert = self.ca.as_deref().map(|file| Self::read("store.tls_ca", file)).transpose()?;
        let client_tls = match &self.client {
            Some((certificate, key)) => Some(ClientTlsConfig {
                client_cert: Self::read("store.tls_certificate", certificate)?,
                client_key: Self::read("store.tls_key", key)?,
            }),
            None => None,
        };
        let client = Client::build_with_tls(info, TlsCertificates { client_tls, root_cert })
            .map_err(InvalidServers::Certificates)?;
        Ok(client.get_connection_info().clone())
    }
}

impl Servers {
    /// The address for telemetry. Depends on the URL only.
    pub(super) fn location(&self) -> StoreLocation {
        let (access, host, port) = match self {
            Self::Single { access, address } => (access, address.host.clone(), Some(address.port)),
            Self::Sentinel { access, service, .. } => (access, service.clone(), None),
            Self::Cluster { access, seeds } => {
                let first = seeds.first();
                let host = first.map(|seed| seed.host.clone()).unwrap_or_default();
                (access, host, first.map(|seed| seed.port))
            }
        };
        StoreLocation { host, port, database: access.0.redis_settings().db() }
    }

    /// Parses a URL and reads the TLS files.
    pub(super) fn new(
        url: &SecretString,
        tls: &TlsFiles,
        sentinel_username: Option<&str>,
        sentinel_password: Option<&SecretString>,
    ) -> Result<Self, InvalidServers> {
        let parts = parts(url.expose_secret())?;
        let mut path = parts.path.split('/');
        let (service, database) = match parts.topology {
            Topology::Sentinel => (path.next().unwrap_or_default(), path.next().unwrap_or_default()),
            Topology::Single | Topology::Cluster => ("", path.next().unwrap_or_default()),
        };
        if path.next().is_some() {
            return Err(InvalidServers::Url("has too many path segments"));
        }
        let mut addresses = Vec::with_capacity(parts.hosts.len());
        let mut infos = Vec::with_capacity(parts.hosts.len());
        for host in &parts.hosts {
            let info = access(parts.tls, parts.credentials, host, database)?;
            addresses.push(address(&info)?);
            infos.push(info);
        }
        let first = infos.into_iter().next().ok_or(InvalidServers::Url("must contain a host"))?;
        let access = Access(Arc::new(tls.applied_to(first)?));
        match parts.topology {
            Topology::Single => Ok(Self::Single { access, address: addresses.swap_remove(0) }),
            Topology::Cluster if database.is_empty() || database == "0" => {
                Ok(Self::Cluster { access, seeds: addresses })
            }
            Topology::Cluster => Err(InvalidServers::Url("names a database: a cluster has only database 0")),
            Topology::Sentinel if service.is_empty() => Err(InvalidServers::Url(
                "must contain the name of the service after the sentinels: …/service",
            )),
            Topology::Sentinel => {
                for (address, host) in addresses.iter_mut().zip(&parts.hosts) {
                    let after_ipv6 = host.rsplit(']').next().unwrap_or_default();
                    if !after_ipv6.contains(':') {
                        address.port = SENTINEL_PORT;
                    }
                }
                let sentinel_access = access
                    .with_credentials(sentinel_username, sentinel_password.map(ExposeSecret::expose_secret));
                Ok(Self::Sentinel {
                    access,
                    sentinel_access,
                    sentinels: addresses,
                    service: service.to_owned(),
                })
            }
        }
    }
}

/// Checks the syntax of a URL, without the TLS files.
pub fn check_url(url: &SecretString) -> Result<(), InvalidServers> {
    Servers::new(url, &TlsFiles::default(), None, None).map(|_| ())
}

/// Whether a URL has a TLS scheme (`rediss…`).
pub fn uses_tls(url: &SecretString) -> bool {
    url.expose_secret().starts_with("rediss")
}

/// Whether a URL lists sentinels.
pub fn uses_sentinels(url: &SecretString) -> bool {
    url.expose_secret().split("://").next().is_some_and(|scheme| scheme.ends_with("+sentinel"))
}

/// The byte range of the password in a URL.
pub fn password_range(url: &str) -> Option<std::ops::Range<usize>> {
    let start = url.find("://")? + 3;
    let authority = url[start..].split('/').next()?;
    let credentials = &authority[..authority.rfind('@')?];
    let colon = credentials.find(':')?;
    Some(start + colon + 1..start + credentials.len())
}

/// A URL with this password added. The URL must not contain one.
pub fn with_password(url: &SecretString, password: &SecretString) -> SecretString {
    let url = url.expose_secret();
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find('/').map_or(url.len(), |at| start + at);
    let (user, hosts) = url[start..end].rsplit_once('@').unwrap_or(("", &url[start..end]));
    let user = user.trim_end_matches(':');
    // Every byte is encoded, so that no character of the password has a meaning in the URL.
    let mut encoded = String::new();
    for byte in password.expose_secret().bytes() {
        // Writing to a `String` cannot fail.
        let _ = write!(encoded, "%{byte:02X}");
    }
    format!("{}{user}:{encoded}@{hosts}{}", &url[..start], &url[end..]).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str) -> Result<Servers, InvalidServers> {
        Servers::new(&url.into(), &TlsFiles::default(), Some("watcher"), Some(&"guard".into()))
    }

    fn shown(addresses: &[Address]) -> Vec<String> {
        addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn single_server_url_is_parsed() {
        let Ok(Servers::Single { access, address }) =
            read("redis://us%40er:pa%3Ass@redis.example.com:7000/3")
        else {
            panic!("not one server");
        };
        assert_eq!(address.to_string(), "redis.example.com:7000");
        let settings = access.0.redis_settings();
        assert_eq!((settings.username(), settings.password()), (Some("us@er"), Some("pa:ss")));
        assert_eq!(settings.db(), 3);
    }

    #[test]
    fn cluster_url_is_parsed() {
        let url = "rediss+cluster://user:word@a.example.com:7000,b.example.com,[::1]:7002";
        let Ok(Servers::Cluster { access, seeds }) = read(url) else { panic!("not a cluster") };
        assert_eq!(shown(&seeds), ["a.example.com:7000", "b.example.com:6379", "::1:7002"]);
        let client = access.client(&Address { host: "c.example.com".into(), port: 7003 }).unwrap();
        let info = client.get_connection_info();
        assert!(
            matches!(info.addr(), ConnectionAddr::TcpTls { host, port: 7003, .. } if host == "c.example.com")
        );
        assert_eq!(info.redis_settings().password(), Some("word"));
    }

    #[test]
    fn sentinel_url_is_parsed() {
        let url = "redis+sentinel://user:word@a.example.com:1,b.example.com,[::1],[::1]:4/calls/2";
        let Ok(Servers::Sentinel { access, sentinel_access, sentinels, service }) = read(url) else {
            panic!("not sentinels");
        };
        assert_eq!(shown(&sentinels), ["a.example.com:1", "b.example.com:26379", "::1:26379", "::1:4"]);
        assert_eq!(service, "calls");
        let (server, sentinel) = (access.0.redis_settings(), sentinel_access.0.redis_settings());
        assert_eq!((server.username(), server.password(), server.db()), (Some("user"), Some("word"), 2));
        assert_eq!(
            (sentinel.username(), sentinel.password(), sentinel.db()),
            (Some("watcher"), Some("guard"), 0)
        );
    }

    #[test]
    fn telemetry_location_has_no_credentials() {
        let location = |url| read(url).unwrap().location();
        let expected = |host: &str, port, database| StoreLocation { host: host.into(), port, database };
        assert_eq!(location("redis://user:word@a.example.com:1/3"), expected("a.example.com", Some(1), 3));
        assert_eq!(
            location("redis+cluster://user:word@a.example.com,b:2"),
            expected("a.example.com", Some(6379), 0)
        );
        assert_eq!(location("redis+sentinel://user:word@a:1,b:2/calls/2"), expected("calls", None, 2));
    }

    #[test]
    fn invalid_url_error_explains_and_hides_the_url() {
        for (url, expected) in [
            ("http://SECRET", "must be memory:"),
            ("redis://SECRET,b", "several servers"),
            ("redis+cluster://SECRET/1", "only database 0"),
            ("redis+sentinel://SECRET", "must contain the name of the service"),
            ("redis+sentinel://SECRET/a/0/b", "too many path segments"),
            ("redis+sentinel://SECRET/a/x", "not a valid Redis URL"),
            ("redis://SECRET:x", "not a valid Redis URL"),
            ("redis://a?SECRET=1", "neither a query"),
            ("redis+cluster://a,,SECRET", "not a valid Redis URL"),
        ] {
            let error = format!("{}", read(url).unwrap_err());
            assert!(error.contains(expected) && !error.contains("SECRET"), "{url}: {error}");
        }
    }

    #[test]
    fn password_range_is_found_in_every_url_form() {
        for url in
            ["redis://u:hunter2@a/1", "redis+cluster://:hunter2@a,b:1", "rediss+sentinel://u:hunter2@a,b/s"]
        {
            assert_eq!(password_range(url).map(|at| &url[at]), Some("hunter2"), "{url}");
        }
        assert_eq!(password_range("redis://u@a:1/x"), None);
        assert_eq!(password_range("redis://a:1/x"), None);
    }

    #[test]
    fn password_is_added_to_every_url_form() {
        for (url, username) in [
            ("redis://a:1/2", None),
            ("redis://operator@a:1", Some("operator")),
            ("redis+cluster://a,b:1", None),
            ("rediss+sentinel://operator@a,b/s/3", Some("operator")),
        ] {
            let password = "p@ss:/?#%41 ä";
            let with = with_password(&url.into(), &password.into());
            let (Servers::Single { access, .. }
            | Servers::Sentinel { access, .. }
            | Servers::Cluster { access, .. }) = read(with.expose_secret()).unwrap();
            assert_eq!(access.0.redis_settings().password(), Some(password), "{url}");
            assert_eq!(access.0.redis_settings().username(), username, "{url}");
        }
    }

    #[test]
    fn redirection_without_host_uses_the_senders_host() {
        let sender = Address { host: "a".into(), port: 1 };
        let parse = |text: &str| Address::parse_redirection(&sender, text).map(|address| address.to_string());
        assert_eq!(parse(":2"), Some("a:2".into()));
        assert_eq!(parse("::1:2"), Some("::1:2".into()));
        assert_eq!(parse("b"), None);
    }
}
