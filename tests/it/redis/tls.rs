//! Redis over TLS: certificate authorities, client certificates, refusals.

use std::fs;
use std::path::PathBuf;

use callback_ingress::clock::{Clock, ManualClock};
use callback_ingress::domain::work_item::Outcome;
use callback_ingress::store::Store;
use callback_ingress::store::redis::{InvalidServers, RedisSettings, RedisStore, TlsFiles};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;
use test_support::redis_cluster::wait;
use test_support::redis_commands::ask;
use test_support::redis_server::{RedisServer, free_port};
use tokio::task::block_in_place;

use super::admission::verify;
use crate::service::Service;
use crate::stage::{ROOMY, START, Stage, settings};

/// A certificate authority and certificates that it signed.
struct Authority {
    directory: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        // Unique, so that one authority does not verify another's certificates.
        params.distinguished_name.push(DnType::CommonName, directory.path().display().to_string());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Self { directory, issuer };
        fs::write(authority.path("ca"), authority.issuer.pem()).unwrap();
        authority.sign("server", "127.0.0.1");
        authority.sign("client", "ingress");
        authority
    }

    fn sign(&self, what: &str, name: &str) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, what);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.path(what), certificate.pem()).unwrap();
        fs::write(self.path(&format!("{what}.key")), key.serialize_pem()).unwrap();
    }

    fn path(&self, what: &str) -> PathBuf {
        self.directory.path().join(what)
    }

    fn text(&self, what: &str) -> String {
        self.path(what).to_str().unwrap().to_owned()
    }

    /// Starts a server with a certificate of this authority; returns it with its TLS port.
    fn server(&self, asks_clients: bool, options: &[&str]) -> (RedisServer, u16) {
        let port = free_port();
        let mut all = options.to_vec();
        let own = self.options(port, asks_clients);
        all.extend(own.iter().flat_map(|(option, value)| [option.as_str(), value]));
        (RedisServer::with(&all), port)
    }

    fn options(&self, port: u16, asks_clients: bool) -> [(String, String); 5] {
        [
            ("port", port.to_string()),
            ("cert-file", self.text("server")),
            ("key-file", self.text("server.key")),
            ("ca-cert-file", self.text("ca")),
            ("auth-clients", if asks_clients { "yes" } else { "no" }.to_owned()),
        ]
        .map(|(option, value)| (format!("--tls-{option}"), value))
    }

    /// Settings for a server that trust this authority.
    fn settings(&self, url: &str, with_certificate: bool) -> RedisSettings {
        let mut settings = settings(url.to_owned(), ROOMY);
        settings.tls = TlsFiles {
            ca: Some(self.path("ca")),
            client: with_certificate.then(|| (self.path("client"), self.path("client.key"))),
        };
        settings
    }
}

#[tokio::test]
async fn server_certificate_must_be_from_a_trusted_ca() {
    let ours = Authority::new();
    let (server, port) = ours.server(false, &[]);
    let url = format!("rediss://127.0.0.1:{port}/5");
    let stage = Stage::in_redis(ours.settings(&url, false), ManualClock::at(START)).await;
    let conversation = stage.conversation().await;
    // The listener's connection as well.
    let mut wake = stage.store.watch(conversation.reference());
    wake.changed().await;
    let item = conversation.issue(1_000).await;
    conversation.accept(&item, "1").await.unwrap();
    wake.changed().await;
    assert_eq!(conversation.channel().await, [(1, Outcome::Succeeded)]);
    let keys: u64 = redis::cmd("DBSIZE").query(&mut server.connection(5)).unwrap();
    assert!(keys > 1, "in the database that the URL names");

    let others = Authority::new();
    let error = verify(&others.settings(&url, false)).await.unwrap_err();
    assert!(format!("{error:?}").contains("UnknownIssuer"), "{error:?}");
    let by_name = others.settings(&url.replace("127.0.0.1", "localhost"), false);
    let mut trusted = by_name;
    trusted.tls = ours.settings(&url, false).tls;
    let error = verify(&trusted).await.unwrap_err();
    assert!(format!("{error:?}").contains("not valid for name"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_certificate_is_sent() {
    let authority = Authority::new();
    let (server, port) = authority.server(true, &[]);
    let rules = ["on", ">word", "~{cb:*", "~cb:layout", "&{cb:*", "+@all", "-@admin"];
    redis::cmd("ACL").arg("SETUSER").arg("ingress").arg(&rules[..]).exec(&mut server.connection(0)).unwrap();
    let url = format!("rediss://ingress:word@127.0.0.1:{port}");
    verify(&authority.settings(&url, true)).await.unwrap();
    let error = verify(&authority.settings(&url, false)).await.unwrap_err();
    assert!(format!("{error:?}").to_lowercase().contains("certificate"), "{error:?}");

    let (ca, certificate, key) =
        (authority.text("ca"), authority.text("client"), authority.text("client.key"));
    let flags = [
        ("store.url", url.as_str()),
        ("store.tls_ca", &ca),
        ("store.tls_certificate", &certificate),
        ("store.tls_key", &key),
    ];
    let service = Service::start(&flags).await;
    let item = service.fresh_tool().await;
    assert_eq!(service.callback(&item.token, "1").send().await.status, 202);
}

/// Delivers a result in one conversation after another.
async fn converse(stage: &Stage, count: usize) {
    for _ in 0..count {
        let conversation = stage.conversation().await;
        let item = conversation.issue(1_000).await;
        conversation.accept(&item, "1").await.unwrap();
        assert_eq!(conversation.channel().await, [(1, Outcome::Succeeded)]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_nodes_use_tls() {
    let authority = Authority::new();
    let options = ["--cluster-enabled", "yes", "--tls-cluster", "yes"];
    let nodes = [(); 2].map(|()| authority.server(false, &options));
    for ((node, _), [epoch, first, last]) in nodes.iter().zip([["1", "0", "8191"], ["2", "8192", "16383"]]) {
        ask::<()>(node, &["CLUSTER", "SET-CONFIG-EPOCH", epoch]);
        ask::<()>(node, &["CLUSTER", "ADDSLOTSRANGE", first, last]);
    }
    let [(first, port), (_, other)] = &nodes;
    ask::<()>(first, &["CLUSTER", "MEET", "127.0.0.1", &other.to_string()]);
    block_in_place(|| {
        wait("the nodes know each other", || {
            nodes.iter().all(|(node, _)| {
                let told: String = ask(node, &["CLUSTER", "INFO"]);
                told.contains("cluster_state:ok") && told.contains("cluster_known_nodes:2")
            })
        });
    });
    let url = format!("rediss+cluster://127.0.0.1:{port}");
    let stage = Stage::in_redis(authority.settings(&url, false), ManualClock::at(START)).await;
    converse(&stage, 20).await;
    for (node, _) in &nodes {
        let keys: u64 = ask(node, &["DBSIZE"]);
        assert!(keys > 5, "{keys}");
    }
    let others = Authority::new();
    let error = verify(&others.settings(&url, false)).await.unwrap_err();
    assert!(format!("{error:?}").contains("UnknownIssuer"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_and_primary_use_tls() {
    let authority = Authority::new();
    let (master, master_port) = authority.server(false, &[]);
    let port = free_port();
    let mut lines = vec!["tls-replication yes".to_owned()];
    let options = authority.options(port, false);
    lines.extend(options.iter().map(|(option, value)| format!("{} {value}", option.trim_start_matches('-'))));
    lines.push(format!("sentinel monitor calls 127.0.0.1 {master_port} 1"));
    let _sentinel = RedisServer::sentinel(&(lines.join("\n") + "\n"));
    let url = format!("rediss+sentinel://127.0.0.1:{port}/calls/4");
    let stage = Stage::in_redis(authority.settings(&url, false), ManualClock::at(START)).await;
    converse(&stage, 1).await;
    let keys: u64 = redis::cmd("DBSIZE").query(&mut master.connection(4)).unwrap();
    assert!(keys > 1, "in the database that the URL names");
    let others = Authority::new();
    let error = verify(&others.settings(&url, false)).await.unwrap_err();
    assert!(format!("{error:?}").contains("UnknownIssuer"), "{error:?}");
}

#[tokio::test]
async fn unreadable_tls_files_are_named() {
    let authority = Authority::new();
    let missing = |change: fn(&mut RedisSettings, PathBuf)| {
        let mut settings = authority.settings("rediss://127.0.0.1", true);
        change(&mut settings, authority.path("nowhere"));
        RedisStore::new(&settings, Clock::System).map(drop).unwrap_err().to_string()
    };
    let why = missing(|settings, path| settings.tls.ca = Some(path));
    assert!(why.contains("store.tls_ca") && why.contains("nowhere"), "{why}");
    let why = missing(|settings, path| settings.tls.client.as_mut().unwrap().1 = path);
    assert!(why.contains("store.tls_key") && why.contains("nowhere"), "{why}");
    fs::write(authority.path("client.key"), "no key").unwrap();
    let error = RedisStore::new(&authority.settings("rediss://127.0.0.1", true), Clock::System)
        .map(drop)
        .unwrap_err();
    assert!(matches!(error, InvalidServers::Certificates(_)), "{error:?}");
}
