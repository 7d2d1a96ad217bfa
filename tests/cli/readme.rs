//! The examples in the documentation run and retry as documented, its table of refusals matches the code, and its links
//! work.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use callback_ingress::http::code::Code;
use test_support::redis_server::RedisServer;

use crate::program::path;
use crate::service::{Lines, Process, Service, eventually};

const README: &str = include_str!("../../README.md");
const ERRORS: &str = include_str!("../../docs/errors.md");

/// The pages whose examples run, in this order.
const EXAMPLES: [&str; 9] = [
    include_str!("../../docs/providers.md"),
    include_str!("../../docs/platform.md"),
    ERRORS,
    include_str!("../../docs/configuration.md"),
    include_str!("../../docs/redis.md"),
    include_str!("../../docs/deploy.md"),
    include_str!("../../docs/observability.md"),
    include_str!("../../docs/runbook.md"),
    include_str!("../../docs/guarantees.md"),
];

/// The code blocks, as language and text.
fn blocks() -> impl Iterator<Item = (&'static str, &'static str)> {
    let of = |page: &'static str| page.split("\n```").skip(1).step_by(2);
    EXAMPLES.into_iter().flat_map(of).map(|block| block.split_once('\n').unwrap())
}

#[test]
fn table_of_refusals_matches_the_code() {
    let rows = ERRORS.lines().filter_map(|line| {
        let cells: Vec<_> = line.strip_prefix("| `")?.strip_suffix(" |")?.split(" | ").collect();
        let code = cells[0].strip_suffix('`')?;
        let known = Code::ALL.iter().any(|known| known.as_str() == code);
        (known || cells.len() == 5).then(|| cells.join(" | "))
    });
    let rows: Vec<_> = rows.collect();
    assert_eq!(rows.len(), Code::ALL.len());
    for (row, code) in rows.iter().zip(Code::ALL) {
        let retryable = if code.retryable() { "yes" } else { "no" };
        let expected = format!("{}` | {} | {retryable} | ", code.as_str(), code.status().as_u16());
        assert!(row.starts_with(&expected), "{row:?} does not start with {expected:?}");
    }
}

/// One script of all shell blocks, in order, and of the Python program. Event streams run in the background; the last
/// block ends the conversation, which ends them.
fn script(service: &Service, python: &str) -> String {
    let mut script = String::new();
    for (language, text) in blocks() {
        match language {
            "bash" if text.contains("curl -sSN") => writeln!(script, "{{ {text}\n}} & FOLLOWED+=($!)"),
            "bash" => writeln!(script, "{text}"),
            "python" => writeln!(script, "fresh_token; python3 {python}"),
            _ => Ok(()),
        }
        .unwrap();
    }
    script.push_str("wait \"${FOLLOWED[@]}\"\n");
    script.replace("127.0.0.1:8080", &service.public).replace("127.0.0.1:8081", &service.platform)
}

#[test]
fn readme_examples_run() {
    let redis = RedisServer::shared();
    let service = Service::start(&["--store", &redis.url(4)]);
    eventually("it works", || service.platform("PUT", "call-1", "").status <= 201);
    let directory = tempfile::tempdir().unwrap();
    let python = directory.path().join("callback.py");
    let (_, program) = blocks().find(|(language, _)| *language == "python").unwrap();
    fs::write(&python, program).unwrap();

    let mut shell = Command::new("bash");
    shell.args(["-euo", "pipefail", "-c", &script(&service, python.to_str().unwrap())]);
    shell.env_clear().env("PATH", path()).env("KEY", service.made_key()).env("REDIS_URL", redis.url(4));
    shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut shell = Process(shell.spawn().unwrap());
    let (out, err) = (Lines::of(shell.0.stdout.take().unwrap()), Lines::of(shell.0.stderr.take().unwrap()));
    assert_eq!(shell.exit_code(), Some(0), "{}\n{}", out.text(), err.text());
    let shown = out.whole();
    assert_eq!(err.whole(), "", "{shown}");
    assert!(!shown.contains(r#""error":{"#), "{shown}");
    for (text, times) in [
        // One from curl, one from Python.
        (r#""status":"delivered""#, 2),
        ("'status': 'delivered'", 1),
        (r#""status":"held""#, 1),
        // Once on each event stream and once on the Redis stream.
        (r#""result":{"kilometres":12}"#, 3),
        (r#""result":{"temperature":21.5}"#, 2),
        ("event: end", 2),
        ("\nenvelope\n", 2),
        // Once in the reply and once on each event stream.
        (r#""outcome":"cancelled""#, 3),
        (r#""state":"ended""#, 3),
    ] {
        assert_eq!(shown.matches(text).count(), times, "{text}:\n{shown}");
    }
}

/// Forwards connections to this address, and closes the first ones without an answer. Returns its own address.
fn unreliable(to: &str, closed: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, to) = (listener.local_addr().unwrap().to_string(), to.to_owned());
    thread::spawn(move || {
        for client in listener.incoming().skip(closed).map_while(Result::ok) {
            let service = TcpStream::connect(&to).unwrap();
            let (mut sends, mut receives) = (client.try_clone().unwrap(), service.try_clone().unwrap());
            thread::spawn(move || io::copy(&mut sends, &mut &service));
            thread::spawn(move || io::copy(&mut receives, &mut &client));
        }
    });
    address
}

#[test]
fn documented_retries_survive_an_outage() {
    let redis = RedisServer::start();
    let service = Service::start(&["--store", &redis.url(0)]);
    eventually("it works", || service.platform("PUT", "call-1", "").status <= 201);
    let directory = tempfile::tempdir().unwrap();
    let python = directory.path().join("callback.py");
    let block = |wanted: &str| blocks().find(|(_, text)| text.contains(wanted)).unwrap().1;
    fs::write(&python, block("def post_callback")).unwrap();
    // The tokens are issued before the outage.
    let script = format!(
        "{}\nfresh_token; FIRST=$CALLBACK_TOKEN; fresh_token; echo ready; read -r _\n\
         export CALLBACK_URL=http://{}/api/v1/webhooks/callbacks\n\
         python3 {} & PYTHON=$!\nCALLBACK_TOKEN=$FIRST\n{}\nwait $PYTHON\n",
        block("fresh_token() {"),
        unreliable(&service.public, 2),
        python.display(),
        block("--retry-all-errors").replace("fresh_token\n", ""),
    );
    let script = script.replace("127.0.0.1:8081", &service.platform);
    let mut shell = Command::new("bash");
    shell.args(["-euo", "pipefail", "-c", &script]);
    shell.env_clear().env("PATH", path()).env("KEY", service.made_key());
    shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut shell = Process(shell.spawn().unwrap());
    let (out, err) = (Lines::of(shell.0.stdout.take().unwrap()), Lines::of(shell.0.stderr.take().unwrap()));
    out.wait_for("ready");
    redis.suspend();
    writeln!(shell.0.stdin.take().unwrap()).unwrap();
    service.log.wait_for("POST /api/v1/webhooks/callbacks 503");
    redis.resume();
    assert_eq!(shell.exit_code(), Some(0), "{}\n{}", out.text(), err.text());
    let shown = out.whole();
    assert!(shown.contains(r#""outcome":"succeeded""#), "curl: {shown}");
    assert!(shown.contains("'outcome': 'succeeded'"), "Python: {shown}");
}

/// The function in the README, run by Node.
#[test]
fn readme_function_posts_a_callback() {
    let service = Service::start(&[]);
    let token = service.token("call-1");
    let function = README.split("\n```js\n").nth(1).unwrap().split("\n```").next().unwrap();
    let callback = serde_json::json!({
        "url": format!("http://{}/api/v1/webhooks/callbacks", service.public),
        "headers": {"X-Callback-Token": token},
        "deadline": "2999-01-01T00:00:00.000Z",
    });
    let program =
        format!("{function}\nconsole.log((await postCallback({callback}, {{ answer: 42 }})).status);");
    let ran = Command::new("node").args(["--input-type=module", "-e", &program]).output().unwrap();
    let shown = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr), ran.status);
    assert_eq!(shown.0.trim(), "delivered", "{shown:?}");
}

/// The rates in the section on capacity follow from the table above it.
#[test]
fn capacity_follows_from_the_measurements() {
    let page = include_str!("../../docs/performance.md");
    let (measured, capacity) = page.split_once("\n## Capacity\n").unwrap();
    let cells = |row: &str| -> Vec<String> { row.split('|').map(|cell| cell.trim().to_owned()).collect() };
    let row =
        |name: &str| cells(measured.lines().find(|line| line.starts_with(&format!("| {name} |"))).unwrap());
    let rate = |micros: &str| 1e6 / micros.parse::<f64>().unwrap();
    let (redis, memory) = (row("service, Redis"), row("service, memory store"));
    let (service, idle_redis) = (rate(&redis[5]), rate(&redis[6]));
    let always = row("service, AOF always");
    let connections = 64.0 / (redis[3].parse::<f64>().unwrap() / 1e3);
    let expected = [
        service,
        rate(&memory[5]),
        idle_redis,
        rate(&row("service, AOF everysec")[6]),
        rate(&always[6]),
        connections,
    ];
    let rows = capacity.lines().filter(|line| line.starts_with("| one ") || line.starts_with("| service, "));
    let shown: Vec<f64> = rows.map(|row| cells(row)[2].replace(',', "").parse().unwrap()).collect();
    assert_eq!(shown.len(), expected.len());
    for (shown, expected) in shown.iter().zip(expected) {
        assert!((shown - 1_000.0..=shown + 1_000.0).contains(&expected), "{shown} {expected}");
    }
}

/// How a heading is linked to.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase();
    kept.chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

/// The anchors of a page: its headings outside code blocks.
pub(crate) fn anchors(page: &str) -> Vec<String> {
    let text = page.split("\n```").step_by(2);
    let headings = text.flat_map(str::lines).filter(|line| line.starts_with('#'));
    headings.map(|line| anchor(line.trim_start_matches('#').trim_start())).collect()
}

#[test]
fn links_of_the_documentation_work() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let others =
        ["README.md", "CONTRIBUTING.md", "SECURITY.md", "config/signoz/README.md", "examples/README.md"];
    let mut links = 0;
    for page in docs.chain(others.map(|name| root.join(name))) {
        let text = fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            if link.contains("://") {
                continue;
            }
            links += 1;
            let (file, wanted) = link.split_once('#').map_or((link, None), |(file, at)| (file, Some(at)));
            let target = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: {link}", page.display());
            if let Some(wanted) = wanted {
                let known = anchors(&fs::read_to_string(&target).unwrap());
                assert!(known.iter().any(|known| known == wanted), "{}: {link}", page.display());
            }
        }
    }
    assert!(links > 30, "{links}");
    assert!(README.split_whitespace().count() <= 1_200 && README.lines().count() <= 200);
}
