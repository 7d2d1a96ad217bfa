//! Libraries for server-sent events read each result as it was sent, whichever characters they treat as line ends.

use futures_util::future::join_all;
use serde_json::Value;

use super::{node, python};
use crate::service::{SERVICE_KEY, Service};

const FIRST: [&str; 3] = ["\"72 °F\"", "\"✅ done\"", "\"a\u{2028}b\u{2029}c\u{85}d\""];
const LATER: [&str; 3] = [
    "{\r\n  \"lines\": \"one\\ntwo\\r\\nthree\",\n  \"\u{2028}\": [\"data: x\"]\n}",
    "\"\u{1f469}\u{200d}\u{1f52c} na\u{ef}ve \\u0085 \u{a0}\"",
    "null",
];

async fn deliver(service: &Service, conversation: &str, results: &[&str]) {
    for &result in results {
        let item = service.tool(conversation).await;
        let reply = service.callback(&item.token, result.to_owned()).send().await;
        assert_eq!(reply.status, 202, "{result}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn event_stream_libraries_read_results_intact() {
    let service = Service::on_memory().await;
    let conversation = service.open().await;
    let url = format!("http://{}/platform/v1/conversations/{conversation}/events?from=0", service.platform);
    let of_python = ["requests", "httpx-sse", "sseclient-py"]
        .map(|library| (library, python("reader.py", &[library, &url, SERVICE_KEY])));
    let of_node = ("eventsource", node("reader.mjs", &[&url, SERVICE_KEY]));
    deliver(&service, &conversation, &FIRST).await;
    let reading = of_python.into_iter().chain([of_node]).map(|(library, mut reader)| async move {
        for sent in FIRST {
            let line = reader.line().await.unwrap_or_else(|| panic!("{library} has ended"));
            assert_eq!(value(&line), value(sent), "{library}");
        }
        (library, reader)
    });
    let readers = join_all(reading).await;
    deliver(&service, &conversation, &LATER).await;
    service.end(&conversation).await;
    for (library, reader) in readers {
        let rest: Vec<Value> = reader.finish().await.iter().map(|line| value(line)).collect();
        assert_eq!(rest, LATER.map(value), "{library}");
    }
}

fn value(json: &str) -> Value {
    serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {json}"))
}
