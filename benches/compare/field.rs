//! The competitors, and how each of them is started.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::children::{Process, this_program};
use crate::fastify;
use crate::measured_redis::{Aof, MeasuredRedis};
use crate::protocol::{Issuer, Target};
use crate::service::Service;

/// A server that accepts callbacks.
#[derive(Clone, Debug)]
pub(crate) struct Competitor {
    pub(crate) name: String,
    kind: Kind,
    /// `None`: without Redis.
    pub(crate) redis: Option<Aof>,
}

#[derive(Clone, Debug)]
enum Kind {
    /// A role of this program.
    Peer(&'static str),
    /// Its folder, with its dependencies installed.
    Fastify(PathBuf),
    Service {
        program: PathBuf,
        log: bool,
        variables: Vec<(String, String)>,
    },
}

impl Competitor {
    fn peer(name: &str, role: &'static str, redis: Option<Aof>) -> Self {
        Self { name: name.to_owned(), kind: Kind::Peer(role), redis }
    }

    pub(crate) fn bare() -> Self {
        Self::peer("bare axum", "bare", None)
    }

    pub(crate) fn handwritten() -> Self {
        Self::peer("axum, HMAC, one script", "script", Some(Aof::Off))
    }

    /// The peers, the bare route first.
    pub(crate) fn peers(fastify: Option<&PathBuf>) -> Vec<Self> {
        let mut peers = vec![
            Self::bare(),
            Self::peer("axum, one PING", "ping", Some(Aof::Off)),
            Self::peer("axum, SET NX then XADD", "set-xadd", Some(Aof::Off)),
            Self::handwritten(),
        ];
        peers.extend(fastify.map(|folder| Self {
            name: "Fastify, ioredis, one script".to_owned(),
            kind: Kind::Fastify(folder.clone()),
            redis: Some(Aof::Off),
        }));
        peers
    }

    /// The service on a store.
    pub(crate) fn service(program: &Program, redis: Option<Aof>, log: bool) -> Self {
        let store = match redis {
            None => "memory store",
            Some(Aof::Off) => "Redis",
            Some(Aof::EverySecond) => "AOF everysec",
            Some(Aof::Always) => "AOF always",
        };
        let name = format!("{}service, {store}{}", program.label, if log { "" } else { ", no log" });
        Self {
            name,
            kind: Kind::Service { program: program.path.clone(), log, variables: Vec::new() },
            redis,
        }
    }

    /// Whether it is the bare route, with which all others are compared.
    pub(crate) fn is_bare(&self) -> bool {
        matches!(self.kind, Kind::Peer("bare"))
    }

    /// The same competitor with another name and additional environment variables.
    pub(crate) fn with(mut self, added: &[(&str, &str)], named: &str) -> Self {
        named.clone_into(&mut self.name);
        if let Kind::Service { variables, .. } = &mut self.kind {
            variables.extend(added.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())));
        }
        self
    }

    pub(crate) fn start(&self) -> Running {
        let redis = self.redis.map(MeasuredRedis::start);
        let port = redis.as_ref().map(MeasuredRedis::port);
        let secret = format!("{:032x}", rand::random::<u128>());
        let peer = |(process, public): (Process, SocketAddr)| {
            (process, Target { public, issuer: Issuer::Peer { redis: port, secret: secret.clone() } })
        };
        let port_text = port.map(|port| port.to_string()).unwrap_or_default();
        let (process, target) = match &self.kind {
            Kind::Peer(role) => {
                peer(Process::start_peer(this_program("peer").args([role, port_text.as_str(), &secret])))
            }
            Kind::Fastify(folder) => {
                peer(Process::start_peer(&mut fastify::server(folder, &port_text, &secret)))
            }
            Kind::Service { program, log, variables } => {
                let store = port.map_or("memory:".to_owned(), |port| format!("redis://127.0.0.1:{port}"));
                let Service { process, public, platform, key } =
                    Service::start(program, &store, *log, variables);
                (process, Target { public, issuer: Issuer::Service { platform, key } })
            }
        };
        Running { process, redis, target }
    }
}

/// A build of the service.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    /// Prefix of the names of its rows. Empty if there is only one build.
    pub(crate) label: String,
    pub(crate) path: PathBuf,
}

/// A started competitor. The server ends before its Redis.
pub(crate) struct Running {
    pub(crate) process: Process,
    pub(crate) redis: Option<MeasuredRedis>,
    pub(crate) target: Target,
}
