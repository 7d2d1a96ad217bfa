//! Which servers `store.url` names, and how each of them is connected to.
//!
//! ```text
//! redis://[user:password@]host[:port][/database]
//! redis+sentinel://[user:password@]host[:port],host[:port]…/service[/database]
//! redis+cluster://[user:password@]host[:port],host[:port]…
//! ```
//! With `rediss` instead of `redis`, all of it over TLS.

use std::fmt;
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

/// Port of a sentinel that names none.
const SENTINEL_PORT: u16 = 26379;

/// Why the settings lead to no server.
#[derive(Debug, Error)]
pub enum InvalidServers {
    /// The URL is none of those that are understood. Says what is wrong and never what was written.
    #[error("store.url {0}")]
    Url(&'static str),
    /// A file of certificates cannot be read.
    #[error("cannot read {file}, of {key}")]
    Unreadable {
        /// The setting.
        key: &'static str,
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A certificate or a key is not usable.
    #[error("the certificates under store.tls_ca, store.tls_certificate and store.tls_key cannot be used")]
    Certificates(#[source] RedisError),
}

/// Host and port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
}

impl Address {
    /// As Redis writes it: `host:port`, an IPv6 address without brackets. Without a host it is that of `sender`.
    pub(super) fn told_by(sender: &Self, text: &str) -> Option<Self> {
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

/// Where the store is, as spans and metrics tell: no credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The host of a server; of a cluster, of the first one that is named; the name of a service of sentinels.
    pub host: String,
    /// Its port; a service has none.
    pub port: Option<u16>,
    /// The number of the database.
    pub database: i64,
}

/// Files with what TLS needs, in PEM.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// Certificates of authorities that the servers' are signed by; without, those that the web trusts.
    pub ca: Option<PathBuf>,
    /// The client's own certificate and its key.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// How a server is connected to, whichever it is: credentials, database, TLS, the settings of the socket.
#[derive(Clone, Debug)]
pub(super) struct Access(Arc<ConnectionInfo>);

impl Access {
    /// A client of the server at this address.
    pub(super) fn client(&self, address: &Address) -> RedisResult<Client> {
        let (host, port) = (address.host.clone(), address.port);
        let addr = if let ConnectionAddr::TcpTls { insecure, tls_params, .. } = self.0.addr() {
            ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
        } else {
            ConnectionAddr::Tcp(host, port)
        };
        Client::open(ConnectionInfo::clone(&self.0).set_addr(addr))
    }

    /// The same with other credentials, and no database.
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

/// The servers, by how they work together.
#[derive(Clone, Debug)]
pub(super) enum Servers {
    /// One, always the same.
    One { access: Access, address: Address },
    /// The master of a service, as the sentinels tell.
    Sentinel { access: Access, asking: Access, sentinels: Vec<Address>, service: String },
    /// A cluster, of which some nodes are known.
    Cluster { access: Access, seeds: Vec<Address> },
}

/// A URL in its parts: nothing of it is looked up or decoded yet.
struct Parts<'a> {
    tls: bool,
    kind: Kind,
    credentials: &'a str,
    hosts: Vec<&'a str>,
    path: &'a str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    One,
    Sentinel,
    Cluster,
}

fn parts(url: &str) -> Result<Parts<'_>, InvalidServers> {
    let (scheme, rest) = url.split_once("://").unwrap_or_default();
    let (tls, kind) = match scheme {
        "redis" => (false, Kind::One),
        "rediss" => (true, Kind::One),
        "redis+sentinel" => (false, Kind::Sentinel),
        "rediss+sentinel" => (true, Kind::Sentinel),
        "redis+cluster" => (false, Kind::Cluster),
        "rediss+cluster" => (true, Kind::Cluster),
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
    if kind == Kind::One && hosts.len() > 1 {
        return Err(InvalidServers::Url(
            "names several servers: that needs redis+sentinel:// or redis+cluster://",
        ));
    }
    Ok(Parts { tls, kind, credentials, hosts, path })
}

/// What a server's own URL says.
fn access(tls: bool, credentials: &str, host: &str, path: &str) -> Result<ConnectionInfo, InvalidServers> {
    let scheme = if tls { "rediss" } else { "redis" };
    let at = if credentials.is_empty() { "" } else { "@" };
    let url = format!("{scheme}://{credentials}{at}{host}/{path}");
    let wrong = InvalidServers::Url("is not a URL that Redis can be reached under");
    let Ok(info) = url.into_connection_info() else { return Err(wrong) };
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(10)).with_interval(Duration::from_secs(5));
    let tcp = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    #[cfg(target_os = "linux")]
    let tcp = tcp.set_user_timeout(Duration::from_secs(10));
    // RESP3: a connection that the server closed says so at once, and not with the next request.
    let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    Ok(info.set_tcp_settings(tcp).set_redis_settings(settings))
}

fn address(info: &ConnectionInfo) -> Result<Address, InvalidServers> {
    if let ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } = info.addr() {
        Ok(Address { host: host.clone(), port: *port })
    } else {
        Err(InvalidServers::Url("must name a host"))
    }
}

impl Tls {
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
    /// Where they are, as long as nobody has been asked.
    pub(super) fn place(&self) -> Place {
        let (access, host, port) = match self {
            Self::One { access, address } => (access, address.host.clone(), Some(address.port)),
            Self::Sentinel { access, service, .. } => (access, service.clone(), None),
            Self::Cluster { access, seeds } => {
                let first = seeds.first();
                let host = first.map(|seed| seed.host.clone()).unwrap_or_default();
                (access, host, first.map(|seed| seed.port))
            }
        };
        Place { host, port, database: access.0.redis_settings().db() }
    }

    /// Reads a URL, and the files that TLS needs.
    pub(super) fn new(
        url: &SecretString,
        tls: &Tls,
        sentinel_username: Option<&str>,
        sentinel_password: Option<&SecretString>,
    ) -> Result<Self, InvalidServers> {
        let parts = parts(url.expose_secret())?;
        let mut path = parts.path.split('/');
        let (service, database) = match parts.kind {
            Kind::Sentinel => (path.next().unwrap_or_default(), path.next().unwrap_or_default()),
            Kind::One | Kind::Cluster => ("", path.next().unwrap_or_default()),
        };
        if path.next().is_some() {
            return Err(InvalidServers::Url("has too long a path"));
        }
        let mut addresses = Vec::with_capacity(parts.hosts.len());
        let mut infos = Vec::with_capacity(parts.hosts.len());
        for host in &parts.hosts {
            let info = access(parts.tls, parts.credentials, host, database)?;
            addresses.push(address(&info)?);
            infos.push(info);
        }
        let first = infos.into_iter().next().ok_or(InvalidServers::Url("must name a host"))?;
        let access = Access(Arc::new(tls.applied_to(first)?));
        match parts.kind {
            Kind::One => Ok(Self::One { access, address: addresses.swap_remove(0) }),
            Kind::Cluster if database.is_empty() || database == "0" => {
                Ok(Self::Cluster { access, seeds: addresses })
            }
            Kind::Cluster => Err(InvalidServers::Url("names a database: a cluster has only one")),
            Kind::Sentinel if service.is_empty() => {
                Err(InvalidServers::Url("must name the service after the sentinels: …/service"))
            }
            Kind::Sentinel => {
                for (address, host) in addresses.iter_mut().zip(&parts.hosts) {
                    let bare = host.rsplit(']').next().unwrap_or_default();
                    if !bare.contains(':') {
                        address.port = SENTINEL_PORT;
                    }
                }
                let asking = access
                    .with_credentials(sentinel_username, sentinel_password.map(ExposeSecret::expose_secret));
                Ok(Self::Sentinel { access, asking, sentinels: addresses, service: service.to_owned() })
            }
        }
    }
}

/// Whether a URL can be read at all: what [`super::RedisStore::new`] would say of it, files aside.
pub fn check_url(url: &SecretString) -> Result<(), InvalidServers> {
    Servers::new(url, &Tls::default(), None, None).map(|_| ())
}

/// Whether a URL asks for TLS.
pub fn asks_for_tls(url: &SecretString) -> bool {
    url.expose_secret().starts_with("rediss")
}

/// Whether a URL names sentinels.
pub fn names_sentinels(url: &SecretString) -> bool {
    url.expose_secret().split("://").next().is_some_and(|scheme| scheme.ends_with("+sentinel"))
}

/// Where in a URL its password stands, if it has one.
pub fn password(url: &str) -> Option<std::ops::Range<usize>> {
    let start = url.find("://")? + 3;
    let authority = url[start..].split('/').next()?;
    let credentials = &authority[..authority.rfind('@')?];
    let colon = credentials.find(':')?;
    Some(start + colon + 1..start + credentials.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str) -> Result<Servers, InvalidServers> {
        Servers::new(&url.into(), &Tls::default(), Some("watcher"), Some(&"guard".into()))
    }

    fn shown(addresses: &[Address]) -> Vec<String> {
        addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_url_of_one_server_has_credentials_and_a_database() {
        let Ok(Servers::One { access, address }) = read("redis://us%40er:pa%3Ass@redis.example.com:7000/3")
        else {
            panic!("not one server");
        };
        assert_eq!(address.to_string(), "redis.example.com:7000");
        let settings = access.0.redis_settings();
        assert_eq!((settings.username(), settings.password()), (Some("us@er"), Some("pa:ss")));
        assert_eq!(settings.db(), 3);
    }

    #[test]
    fn a_url_of_a_cluster_names_several_nodes() {
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
    fn a_url_of_sentinels_names_the_service_and_a_database() {
        let url = "redis+sentinel://user:word@a.example.com:1,b.example.com,[::1],[::1]:4/calls/2";
        let Ok(Servers::Sentinel { access, asking, sentinels, service }) = read(url) else {
            panic!("no sentinels");
        };
        assert_eq!(shown(&sentinels), ["a.example.com:1", "b.example.com:26379", "::1:26379", "::1:4"]);
        assert_eq!(service, "calls");
        let (server, sentinel) = (access.0.redis_settings(), asking.0.redis_settings());
        assert_eq!((server.username(), server.password(), server.db()), (Some("user"), Some("word"), 2));
        assert_eq!(
            (sentinel.username(), sentinel.password(), sentinel.db()),
            (Some("watcher"), Some("guard"), 0)
        );
    }

    #[test]
    fn the_place_that_is_told_has_no_credentials() {
        let place = |url| read(url).unwrap().place();
        let told = |host: &str, port, database| Place { host: host.into(), port, database };
        assert_eq!(place("redis://user:word@a.example.com:1/3"), told("a.example.com", Some(1), 3));
        assert_eq!(
            place("redis+cluster://user:word@a.example.com,b:2"),
            told("a.example.com", Some(6379), 0)
        );
        assert_eq!(place("redis+sentinel://user:word@a:1,b:2/calls/2"), told("calls", None, 2));
    }

    #[test]
    fn a_url_that_leads_nowhere_is_told_what_is_wrong_and_not_shown() {
        for (url, expected) in [
            ("http://SECRET", "must be memory:"),
            ("redis://SECRET,b", "several servers"),
            ("redis+cluster://SECRET/1", "only one"),
            ("redis+sentinel://SECRET", "must name the service"),
            ("redis+sentinel://SECRET/a/0/b", "too long"),
            ("redis+sentinel://SECRET/a/x", "is not a URL"),
            ("redis://SECRET:x", "is not a URL"),
            ("redis://a?SECRET=1", "neither a query"),
            ("redis+cluster://a,,SECRET", "is not a URL"),
        ] {
            let error = format!("{}", read(url).unwrap_err());
            assert!(error.contains(expected) && !error.contains("SECRET"), "{url}: {error}");
        }
    }

    #[test]
    fn a_password_is_found_wherever_the_url_leads() {
        for url in
            ["redis://u:hunter2@a/1", "redis+cluster://:hunter2@a,b:1", "rediss+sentinel://u:hunter2@a,b/s"]
        {
            assert_eq!(password(url).map(|at| &url[at]), Some("hunter2"), "{url}");
        }
        assert_eq!(password("redis://u@a:1/x"), None);
        assert_eq!(password("redis://a:1/x"), None);
    }

    #[test]
    fn an_address_without_a_host_is_that_of_who_told_it() {
        let sender = Address { host: "a".into(), port: 1 };
        let told = |text: &str| Address::told_by(&sender, text).map(|address| address.to_string());
        assert_eq!(told(":2"), Some("a:2".into()));
        assert_eq!(told("::1:2"), Some("::1:2".into()));
        assert_eq!(told("b"), None);
    }
}
