//! Headless Chromium, controlled by its debugging protocol.
//!
//! The protocol runs over pipes, so no port is involved, and Chromium exits when they close, however the test ends.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::block_in_place;
use tokio::time::{sleep, timeout};

use crate::service::PATIENCE;

/// Chromium reads commands from file descriptor 3, and writes replies and events to 4. `$1` is its log.
const PIPES: &str = r#"log=$1; shift; exec "$@" 3<&0 4>&1 </dev/null >"$log" 2>&1"#;
/// `--no-sandbox`: containers do not allow Chromium's sandbox. The tests open their own service only.
const OPTIONS: [&str; 9] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--no-default-browser-check",
    "--remote-debugging-pipe",
];
const PAUSE: Duration = Duration::from_millis(20);

/// A page in its own browser, which ends with it.
#[derive(Debug)]
pub(super) struct Page {
    input: Option<ChildStdin>,
    messages: UnboundedReceiver<Value>,
    session: Option<String>,
    last_id: u64,
    /// The events so far.
    events: Vec<Value>,
    browser: Child,
    directory: TempDir,
}

impl Page {
    /// Starts Chromium with an empty page.
    pub(super) async fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("chromium-").tempdir().unwrap();
        let log = directory.path().join("log");
        let browser = Command::new("sh")
            .args(["-c", PIPES, "chromium"])
            .arg(&log)
            .arg(program())
            .args(OPTIONS)
            .arg(format!("--user-data-dir={}", directory.path().join("profile").display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut browser = browser.expect("sh runs");
        let input = browser.stdin.take();
        let messages = messages(browser.stdout.take().unwrap());
        let mut page =
            Self { input, messages, session: None, last_id: 0, events: Vec::new(), browser, directory };
        let target = page.call("Target.createTarget", json!({"url": "about:blank"})).await;
        let attached = json!({"targetId": target["targetId"], "flatten": true});
        let session = page.call("Target.attachToTarget", attached).await;
        page.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            page.call(&format!("{domain}.enable"), json!({})).await;
        }
        page
    }

    /// Calls a method of the protocol.
    pub(super) async fn call(&mut self, method: &str, params: Value) -> Value {
        self.last_id += 1;
        let mut command = json!({"id": self.last_id, "method": method, "params": params});
        if let Some(session) = &self.session {
            command["sessionId"] = json!(session);
        }
        let bytes = [command.to_string().as_bytes(), b"\0"].concat();
        let sent = self.input.as_mut().unwrap().write_all(&bytes);
        assert!(sent.is_ok(), "{}", self.lost());
        loop {
            let mut message = self.read().await;
            if message["id"] == self.last_id {
                assert!(message["error"].is_null(), "{method}: {}", message["error"]);
                return message["result"].take();
            }
            self.events.push(message);
        }
    }

    async fn read(&mut self) -> Value {
        let message = timeout(PATIENCE, self.messages.recv()).await;
        message.ok().flatten().unwrap_or_else(|| panic!("{}", self.lost()))
    }

    fn lost(&self) -> String {
        let log = std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        format!("Chromium ended: {log}")
    }

    /// Opens an address, and waits until it is loaded.
    pub(super) async fn open(&mut self, url: &str) {
        let opened = self.call("Page.navigate", json!({"url": url})).await;
        assert!(opened["errorText"].is_null(), "{opened}");
        self.until("document.readyState === 'complete'").await;
    }

    /// Loads it again.
    pub(super) async fn reload(&mut self) {
        self.evaluate("window.isOld = true").await;
        self.call("Page.reload", json!({})).await;
        self.until("!window.isOld && document.readyState === 'complete'").await;
    }

    /// The value of an expression.
    pub(super) async fn evaluate(&mut self, expression: &str) -> Value {
        let asked = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let mut reply = self.call("Runtime.evaluate", asked).await;
        assert!(reply["exceptionDetails"].is_null(), "{expression}: {}", reply["exceptionDetails"]);
        reply["result"]["value"].take()
    }

    /// Waits until an expression is true.
    pub(super) async fn until(&mut self, condition: &str) {
        let asked =
            format!("(() => {{ try {{ return Boolean({condition}); }} catch {{ return false; }} }})()");
        let mut looked = 0;
        while self.evaluate(&asked).await != true {
            looked += 1;
            if looked > 1_000 {
                let shown = self.evaluate("document.body.innerText").await;
                panic!("it never came to this: {condition}\n{}", shown.as_str().unwrap_or_default());
            }
            sleep(PAUSE).await;
        }
    }

    /// The text of an element with its white space joined; empty if there is none.
    pub(super) async fn text(&mut self, selector: &str) -> String {
        let selector = json!(selector);
        let text = self.evaluate(&format!("document.querySelector({selector})?.innerText ?? ''")).await;
        text.as_str().unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// Waits until an element is visible and its text contains this.
    pub(super) async fn until_text(&mut self, selector: &str, text: &str) {
        let (selector, text) = (json!(selector), json!(text));
        let element = format!("document.querySelector({selector})");
        let joined = format!("{element}.innerText.replace(/\\s+/g, ' ')");
        self.until(&format!("{element}.checkVisibility() && {joined}.includes({text})")).await;
    }

    /// The texts of the cells of each row.
    pub(super) async fn rows(&mut self, table: &str) -> Vec<Vec<String>> {
        let selector = json!(format!("{table} tbody tr.row"));
        let rows = self
            .evaluate(&format!(
                "[...document.querySelectorAll({selector})].map((row) => [...row.cells].map((cell) => \
                 cell.innerText.replace(/\\s+/g, ' ').trim()))"
            ))
            .await;
        serde_json::from_value(rows).unwrap()
    }

    /// Types a text into the element that has the focus.
    pub(super) async fn insert(&mut self, text: &str) {
        self.call("Input.insertText", json!({"text": text})).await;
    }

    /// Presses and releases a key: `Tab` or `Enter`.
    pub(super) async fn press(&mut self, key: &str) {
        let (code, text) = if key == "Enter" { (13, "\r") } else { (9, "") };
        for kind in ["keyDown", "keyUp"] {
            let mut event = json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code});
            if kind == "keyDown" && !text.is_empty() {
                event["text"] = json!(text);
            }
            self.call("Input.dispatchKeyEvent", event).await;
        }
    }

    /// The role and the name that a screen reader gets for the focused element.
    pub(super) async fn focused(&mut self) -> (String, String) {
        let tree = self.call("Accessibility.getFullAXTree", json!({})).await;
        let nodes = tree["nodes"].as_array().unwrap();
        let is_focused = |node: &&Value| {
            let mut properties = node["properties"].as_array().into_iter().flatten();
            properties.any(|property| property["name"] == "focused" && property["value"]["value"] == true)
        };
        let focused = nodes.iter().filter(is_focused).find(|node| node["role"]["value"] != "RootWebArea");
        let text = |value: &Value| value["value"].as_str().unwrap_or_default().to_owned();
        focused.map(|node| (text(&node["role"]), text(&node["name"]))).unwrap_or_default()
    }

    /// Presses Tab until the focus is on an element with this role and a name that contains this text. Returns the number
    /// of presses.
    pub(super) async fn tab_to(&mut self, role: &str, name: &str) -> usize {
        let mut passed = Vec::new();
        for presses in 1..=30 {
            self.press("Tab").await;
            let focused = self.focused().await;
            if focused.0 == role && focused.1.contains(name) {
                return presses;
            }
            passed.push(focused);
        }
        panic!("Tab never reaches {role} {name}: {passed:?}");
    }

    /// The addresses of all requests so far.
    pub(super) fn requested(&self) -> Vec<String> {
        let sent = self.events.iter().filter(|event| event["method"] == "Network.requestWillBeSent");
        sent.map(|event| event["params"]["request"]["url"].as_str().unwrap().to_owned()).collect()
    }

    /// What the page wrote to the console of the developer tools: exceptions and violations of its policy, too. Refused
    /// requests are left out.
    pub(super) fn complaints(&self) -> Vec<String> {
        let methods = ["Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"];
        let said = self
            .events
            .iter()
            .filter(|event| methods.contains(&event["method"].as_str().unwrap_or_default()));
        let others = said.filter(|event| event["params"]["entry"]["source"] != "network");
        others.map(|event| event["params"].to_string()).collect()
    }
}

/// Chromium or Chrome.
fn program() -> &'static str {
    static FOUND: OnceLock<&str> = OnceLock::new();
    FOUND.get_or_init(|| {
        let is_there = |name: &&str| {
            let mut command = Command::new(name);
            let output = command.arg("--version").stdin(Stdio::null()).output();
            output.is_ok_and(|output| output.status.success())
        };
        let found = ["chromium", "chromium-browser", "google-chrome"].into_iter().find(is_there);
        found.expect("these tests need Chromium: install the package chromium, and have it on PATH")
    })
}

/// Chromium ends when its input is closed.
impl Drop for Page {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = block_in_place(|| self.browser.wait());
    }
}

/// The messages on Chromium's output, read by a thread that ends with it.
fn messages(output: ChildStdout) -> UnboundedReceiver<Value> {
    let (sender, receiver) = unbounded_channel();
    thread::spawn(move || {
        for message in BufReader::new(output).split(0).map_while(Result::ok) {
            if sender.send(serde_json::from_slice(&message).unwrap()).is_err() {
                break;
            }
        }
    });
    receiver
}
