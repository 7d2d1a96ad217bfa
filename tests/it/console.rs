//! The console: its three files, and the page in Chromium against real traffic.

mod browser;
mod files;

use serde_json::{Value, json};
use test_support::redis_server::RedisServer;

use self::browser::Page;
use crate::service::{CALLBACKS, Item, SERVICE_KEY, Service};

const TRACE_URL: (&str, &str) = ("console.trace_url", "https://signoz.example.com/trace/{traceId}?a=\"><b>");

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn address(service: &Service, conversation: &str) -> String {
    format!("http://{}/console#{conversation}", service.platform)
}

/// Opens the page, and enters the service key.
async fn unlocked(service: &Service, conversation: &str) -> Page {
    let mut page = Page::start().await;
    page.open(&address(service, conversation)).await;
    enter(&mut page, SERVICE_KEY).await;
    page
}

async fn enter(page: &mut Page, key: &str) {
    page.until("document.activeElement.id === 'key'").await;
    page.insert(key).await;
    page.press("Enter").await;
}

/// Issues an item with a timeout of ten minutes.
async fn issue(service: &Service, conversation: &str, name: &str) -> Item {
    let asked = json!({
        "kind": "tool", "name": name, "turnId": "turn-3", "timeoutMs": 600_000, "traceparent": TRACEPARENT,
    });
    service.issue(conversation, &asked).await
}

async fn answer(service: &Service, item: &Item, body: &str) {
    assert_eq!(service.callback(&item.token, body.to_owned()).send().await.status, 202);
}

/// A row of the timeline by its cells: sequence, item, state.
fn head(row: &[String]) -> [&str; 3] {
    [&row[0], &row[1], &row[2]]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn list_shows_what_each_conversation_waits_for() {
    let service = Service::on_memory().await;
    let mut page = unlocked(&service, "").await;
    page.until_text("#list-empty", "No conversation is waiting.").await;

    let conversation = service.open().await;
    let first = issue(&service, &conversation, "weather").await;
    for result in ["\"a\"", "\"bc\""] {
        answer(&service, &issue(&service, &conversation, "route").await, result).await;
    }
    page.until_text("#list", &conversation).await;
    let told = service.shown("/conversations?waiting=true").await;
    assert_eq!(told["conversations"][0]["waitingFor"]["sequence"], first.sequence);
    let rows = page.rows("#list").await;
    assert_eq!(rows.len(), 1);
    let [id, whom, since, results, size, deadline] = rows[0].as_slice() else { panic!("{rows:?}") };
    assert_eq!((id.as_str(), whom.as_str()), (conversation.as_str(), "#1 weather tool · turn-3"));
    assert_eq!((results.as_str(), size.as_str()), ("2", "7 B"));
    assert!(since.ends_with('s') && deadline.starts_with("9 m"), "{since}, {deadline}");

    answer(&service, &first, "1").await;
    page.until_text("#list-empty", "No conversation is waiting.").await;
    assert_eq!(page.complaints(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn truncated_list_is_marked_as_truncated() {
    let service = Service::on_memory().await;
    for number in 0..101 {
        let conversation = format!("many-{number}");
        service.platform("PUT", &format!("/conversations/{conversation}")).send().await;
        issue(&service, &conversation, "weather").await;
        answer(&service, &issue(&service, &conversation, "route").await, "1").await;
    }
    let mut page = unlocked(&service, "").await;
    page.until_text("#list-summary", "The 100 that have waited longest; there may be more").await;
    let shown: Vec<String> = page.rows("#list").await.into_iter().map(|row| row[0].clone()).collect();
    let told = service.shown("/conversations?waiting=true&limit=100").await;
    let ids = told["conversations"].as_array().unwrap().iter();
    let told: Vec<&str> = ids.map(|waiting| waiting["conversationId"].as_str().unwrap()).collect();
    assert_eq!(shown, told);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn timeline_shows_what_the_store_says() {
    let service = Service::start(&[TRACE_URL]).await;
    let conversation = service.open().await;
    let weather = issue(&service, &conversation, "weather").await;
    let crm = issue(&service, &conversation, "crm").await;
    answer(&service, &crm, r#"{"error":{"code":"CRM_DOWN","message":"no answer"}}"#).await;
    answer(&service, &weather, r#"{"temperature":21.5,"exact":12345678901234567890.10}"#).await;
    let cancelled = issue(&service, &conversation, "hotel").await;
    service.platform("DELETE", &format!("{}?reason=barge-in", cancelled.path())).send().await;
    let blocking = issue(&service, &conversation, "calendar").await;
    let held = issue(&service, &conversation, "payments").await;
    answer(&service, &held, "[1,2]").await;

    let mut page = unlocked(&service, &conversation).await;
    page.until_text("#timeline", "held, waits for 4").await;
    page.until_text("#timeline", "cancelled").await;
    let rows = page.rows("#timeline").await;
    let heads: Vec<[&str; 3]> = rows.iter().map(|row| head(row)).collect();
    assert_eq!(
        heads,
        [
            ["1", "weather tool · turn-3", "succeeded"],
            ["2", "crm tool · turn-3", "failed"],
            ["3", "hotel tool · turn-3", "cancelled"],
            ["4", "calendar tool · turn-3", "awaiting holds back 1"],
            ["5", "payments tool · turn-3", "held, waits for 4 succeeded"],
        ]
    );
    let told = service.shown(&format!("/conversations/{conversation}")).await;
    assert_eq!((&told["waitingFor"], &told["held"][0]["sequence"]), (&json!(4), &json!(5)));
    // Rounded up: in the first second, it is the whole time.
    let left = &rows[3][6];
    assert!(left == "10 m 00 s" || left.starts_with("9 m"), "time to the deadline: {rows:?}");
    page.until_text("#blocker", "#4 calendar holds back 1 result, 5 B").await;
    bars_are_in_proportion(&mut page).await;
    results_are_shown_on_demand(&mut page, &service, &conversation).await;

    // Items that are released and issued now appear without a reload.
    answer(&service, &blocking, "true").await;
    page.until_text("#blocker", "Nothing is awaited.").await;
    page.until_text("#connection", "Live").await;
    let states: Vec<String> = page.rows("#timeline").await.into_iter().map(|row| row[2].clone()).collect();
    assert_eq!(states, ["succeeded", "failed", "cancelled", "succeeded", "succeeded"]);
    let next = issue(&service, &conversation, "late").await;
    page.until_text("#blocker", &format!("Nothing is held. Next: #{} late", next.sequence)).await;
    service.end(&conversation).await;
    page.until_text("#blocker", "1 awaiting item and 0 held results dropped").await;
    page.until_text("#timeline", "dropped").await;
    page.until_text("#connection", "Ended").await;
    assert_eq!(page.complaints(), [""; 0]);
}

/// The bars of the blocking and of the held item: both end now, and the held one is awaited before it is held.
async fn bars_are_in_proportion(page: &mut Page) {
    let bars = page
        .evaluate(
            "[...document.querySelectorAll('#timeline tr.blocking, #timeline tr.waits')].map((row) => \
             [...row.querySelectorAll('td.lane > div > div')].map((bar) => bar.hidden ? null : \
             [bar.offsetLeft, bar.offsetLeft + bar.offsetWidth]))",
        )
        .await;
    let edge = |row: usize, bar: usize, side: usize| bars[row][bar][side].as_f64().unwrap();
    assert!(bars[0][1].is_null(), "the blocking item is not held: {bars}");
    assert!((edge(0, 0, 1) - edge(1, 1, 1)).abs() <= 2.0, "both end now: {bars}");
    assert!((edge(1, 0, 1) - edge(1, 1, 0)).abs() <= 3.0, "held begins where awaited ends: {bars}");
    assert!(edge(0, 0, 0) <= edge(1, 0, 0), "in the order of issue: {bars}");
}

async fn results_are_shown_on_demand(page: &mut Page, service: &Service, conversation: &str) {
    assert_eq!(page.evaluate("document.querySelectorAll('pre').length").await, 0);
    assert!(!page.text("#timeline").await.contains("21.5"));
    let button = |sequence: usize| {
        format!("document.querySelectorAll('#timeline td.action button')[{}]", sequence - 1)
    };
    page.evaluate(&format!("{}.click()", button(1))).await;
    page.until_text("pre", r#"{ "temperature": 21.5, "exact": 12345678901234567890.10 }"#).await;
    let envelope: Value = serde_json::from_str(&service.channel(conversation, 1).await[0]).unwrap();
    let details = page.text("tr.details").await;
    for field in ["workItemId", "issuedAt", "receivedAt", "releasedAt", "requestId"] {
        assert!(details.contains(envelope[field].as_str().unwrap()), "{field} is not in {details}");
    }
    let trace = envelope["traceparent"].as_str().unwrap().split('-').nth(1).unwrap();
    let link = page.evaluate("document.querySelector('tr.details a').getAttribute('href')").await;
    assert_eq!(link, TRACE_URL.1.replace("{traceId}", trace));
    page.evaluate(&format!("{}.click()", button(1))).await;
    page.until("document.querySelectorAll('pre').length === 0").await;

    page.evaluate(&format!("{}.click()", button(2))).await;
    page.until_text("pre", r#"{ "code": "CRM_DOWN", "message": "no answer" }"#).await;
    page.evaluate(&format!("{}.click()", button(3))).await;
    page.until("[...document.querySelectorAll('tr.details')].at(-1).innerText.includes('barge-in')").await;
    page.evaluate(&format!("{}.click()", button(5))).await;
    page.until("document.querySelectorAll('tr.details')[2].innerText.includes('when it is released')").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_is_shown_beside_its_item() {
    let service = Service::on_memory().await;
    let conversation = service.open().await;
    let asked = json!({"kind": "tool", "timeoutMs": 600_000, "heartbeatTimeoutMs": 500_000});
    let item = service.issue(&conversation, &asked).await;
    let mut page = unlocked(&service, &conversation).await;
    page.until_text("#timeline", "awaiting").await;
    page.until_text("#connection", "Live").await;
    let heartbeat = service.provider("POST", &format!("{CALLBACKS}/heartbeat"));
    let heartbeat =
        heartbeat.header("x-callback-token", &item.token).json(r#"{"message":"<b>half</b> done"}"#);
    assert_eq!(heartbeat.send().await.status, 200);
    page.until_text("#timeline", "awaiting <b>half</b> done").await;
    page.until_text("#blocker", "“<b>half</b> done”").await;
    answer(&service, &issue(&service, &conversation, "route").await, "1").await;
    page.until_text("#timeline", "holds back 1").await;
    page.until_text("#blocker", "“<b>half</b> done”").await;
    page.evaluate("document.querySelector('#timeline td.action button').click()").await;
    let shown = service.shown(&item.path()).await;
    for field in ["lastHeartbeatAt", "heartbeatDeadline"] {
        let time = shown[field].as_str().unwrap();
        page.until_text("tr.details", time).await;
    }
    assert_eq!(page.complaints(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_channel_is_shown_from_its_end() {
    let service = Service::on_memory().await;
    let conversation = service.open().await;
    for number in 0..40 {
        let item = issue(&service, &conversation, &format!("tool-{number}")).await;
        answer(&service, &item, &number.to_string()).await;
    }
    let mut page = unlocked(&service, &conversation).await;
    page.until("document.querySelectorAll('#timeline tr.row').length === 25").await;
    assert_eq!(head(&page.rows("#timeline").await[0])[..2], ["16", "tool-15 tool · turn-3"]);
    page.evaluate("document.getElementById('earlier').click()").await;
    page.until("document.querySelectorAll('#timeline tr.row').length === 40").await;
    assert_eq!(head(&page.rows("#timeline").await[0])[..2], ["1", "tool-0 tool · turn-3"]);
    page.until("document.getElementById('earlier-line').hidden").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_release_keeps_the_timeline_short() {
    let service = Service::on_memory().await;
    let conversation = service.open().await;
    let first = issue(&service, &conversation, "first").await;
    for _ in 0..250 {
        answer(&service, &issue(&service, &conversation, "held").await, "1").await;
    }
    let mut page = unlocked(&service, &conversation).await;
    page.until_text("#blocker", "holds back 250 results").await;
    let rows = |count: usize| format!("document.querySelectorAll('#timeline tr.row').length === {count}");
    page.until(&rows(200)).await;
    answer(&service, &first, "1").await;
    page.until_text("#blocker", "Nothing is awaited.").await;
    page.until("document.querySelectorAll('#timeline tr.succeeded').length === 200").await;
    assert_eq!(head(&page.rows("#timeline").await[0])[0], "52");
    page.evaluate("document.getElementById('earlier').click()").await;
    page.until(&rows(251)).await;
    assert_eq!(head(&page.rows("#timeline").await[0])[0], "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn event_stream_is_resumed_after_a_restart() {
    let redis = RedisServer::start();
    let (service, other) = (Service::on(&redis).await, Service::on(&redis).await);
    let address = service.platform.to_string();
    let conversation = service.open().await;
    answer(&service, &issue(&service, &conversation, "first").await, "1").await;
    let mut page = unlocked(&service, &conversation).await;
    page.until_text("#timeline", "succeeded").await;
    page.until_text("#connection", "Live").await;
    service.drain();
    service.ended().await;
    page.until_text("#connection", "trying again").await;
    answer(&other, &issue(&other, &conversation, "missed").await, "2").await;
    let _restarted = Service::start(&[("store.url", &redis.url(0)), ("http.platform_addr", &address)]).await;
    page.until_text("#connection", "Live").await;
    page.until("document.querySelectorAll('#timeline tr.succeeded').length === 2").await;
    let states: Vec<String> = page.rows("#timeline").await.into_iter().map(|row| row.join(" ")).collect();
    assert!(states[0].starts_with("1 first") && states[1].starts_with("2 missed"), "{states:?}");
    let streams: Vec<String> = page.requested().into_iter().filter(|url| url.contains("/events")).collect();
    assert!(streams[0].ends_with("?from=0") && streams.last().unwrap().ends_with("/events"), "{streams:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn service_key_stays_in_memory() {
    let service = Service::on_memory().await;
    let conversation = service.open().await;
    let mut page = Page::start().await;
    page.open(&address(&service, "")).await;
    enter(&mut page, "a-key-that-is-not-the-one").await;
    page.until_text("#problem", "401 SERVICE_KEY_INVALID: the service key is not valid").await;
    enter(&mut page, SERVICE_KEY).await;
    page.until_text("#list-empty", "No conversation is waiting.").await;
    page.open(&address(&service, &conversation)).await;
    page.until_text("#timeline-empty", "No work item").await;
    let kept = page
        .evaluate(
            "(async () => JSON.stringify([location.href, document.cookie, {...localStorage}, {...sessionStorage}, \
             history.state, await indexedDB.databases(), await caches.keys(), \
             [...document.querySelectorAll('input')].map((input) => input.value), \
             document.documentElement.outerHTML]))()",
        )
        .await;
    assert!(!kept.as_str().unwrap().contains(SERVICE_KEY), "{kept}");
    page.reload().await;
    page.until("document.activeElement.id === 'key'").await;
    enter(&mut page, SERVICE_KEY).await;
    page.until_text("#timeline-empty", "No work item").await;
    page.evaluate("document.getElementById('forget').click()").await;
    page.until("document.activeElement.id === 'key'").await;
    let requested = page.requested();
    let own = format!("http://{}/", service.platform);
    for url in requested.iter().filter(|url| *url != "about:blank") {
        assert!(url.starts_with(&own) && !url.contains(SERVICE_KEY), "{url}");
    }
    assert!(requested.iter().any(|url| url.ends_with("/events?from=0")), "{requested:?}");
    assert_eq!(page.complaints(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn markup_from_strangers_is_shown_as_text() {
    const MARKUP: &str = "<img src=x onerror=document.title='run'><script>document.title='run'</script>";
    let service = Service::start(&[TRACE_URL]).await;
    let conversation = service.open().await;
    let asked = json!({"kind": "tool", "toolCallId": "<b>call</b>\"'", "timeoutMs": 600_000});
    let item = service.issue(&conversation, &asked).await;
    answer(&service, &item, &json!({ MARKUP: MARKUP }).to_string()).await;
    let asked = json!({"kind": "tool", "timeoutMs": 600_000});
    let cancelled = service.issue(&conversation, &asked).await;
    let reason = "%3Cscript%3Edocument.title='run'%3C/script%3E";
    let reply = service.platform("DELETE", &format!("{}?reason={reason}", cancelled.path())).send().await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let mut page = unlocked(&service, &conversation).await;
    page.until_text("#timeline", "cancelled").await;
    page.evaluate(
        "document.querySelectorAll('#timeline td.action button').forEach((button) => button.click())",
    )
    .await;
    page.until_text("pre", MARKUP).await;
    let details = page.text("#timeline").await;
    assert!(details.contains("<b>call</b>\"'") && details.contains("<script>document.title='run'</script>"));
    assert_eq!(page.evaluate("document.title").await, json!(conversation));
    let foreign = "document.querySelectorAll('img, b, body script, main [onerror]').length";
    assert_eq!(page.evaluate(foreign).await, 0);
    // The address is untrusted, too.
    page.open(&address(&service, "%3Cimg%20src=x%20onerror=alert(1)%3E")).await;
    page.until("document.getElementById('conversation-id').textContent === '<img src=x onerror=alert(1)>'")
        .await;
    page.until_text("#problem", "400").await;
    page.open(&address(&service, "no-such-call")).await;
    page.until_text("#problem", "404 CONVERSATION_NOT_FOUND: there is no such conversation").await;
    assert_eq!(page.evaluate(foreign).await, 0);
    assert_eq!(page.complaints(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keyboard_reaches_everything() {
    let service = Service::on_memory().await;
    let conversation = service.open().await;
    let first = issue(&service, &conversation, "weather").await;
    answer(&service, &first, "\"sunny\"").await;
    issue(&service, &conversation, "calendar").await;
    answer(&service, &issue(&service, &conversation, "payments").await, "1").await;
    let mut page = unlocked(&service, "").await;
    page.until_text("#list", &conversation).await;
    page.tab_to("textbox", "Conversation id").await;
    page.tab_to("button", "Open").await;
    page.tab_to("button", "Forget key").await;
    page.tab_to("link", &conversation).await;
    page.press("Enter").await;
    page.until_text("#timeline", "succeeded").await;
    page.tab_to("combobox", "Time span").await;
    page.tab_to("button", "Result of 1").await;
    page.press("Enter").await;
    page.until_text("pre", "\"sunny\"").await;
    assert_eq!(page.focused().await, ("button".to_owned(), "Result of 1".to_owned()), "the focus stays");
    page.press("Tab").await;
    assert_eq!(page.focused().await.1, "Result of 1", "a long result can be scrolled by keyboard");
    page.tab_to("button", "Details of 2").await;
    let is_visible = "getComputedStyle(document.activeElement).outlineStyle === 'solid'";
    assert_eq!(page.evaluate(is_visible).await, true, "the focus can be seen");
    page.until("document.getElementById('announcement').textContent.includes('Waiting for 2, calendar')")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn page_fits_narrow_and_wide_screens() {
    let service = Service::on_memory().await;
    let conversation = format!("call-{}", "long-".repeat(24));
    service.platform("PUT", &format!("/conversations/{conversation}")).send().await;
    issue(&service, &conversation, &"a-long.name_".repeat(5)).await;
    answer(&service, &issue(&service, &conversation, "route").await, &json!("wide".repeat(200)).to_string())
        .await;
    let mut page = unlocked(&service, "").await;
    for (view, shown) in [("", "#list"), (conversation.as_str(), "#timeline")] {
        page.evaluate(&format!("location.hash = {}", json!(view))).await;
        page.until_text(shown, "a-long.name_").await;
        for width in [390, 768, 1024, 1440] {
            let metrics = json!({"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": false});
            page.call("Emulation.setDeviceMetricsOverride", metrics).await;
            page.until(&format!("innerWidth === {width}")).await;
            let scrolls = page.evaluate("document.documentElement.scrollWidth").await;
            assert!(scrolls.as_u64().unwrap() <= width, "{shown} is {scrolls} wide at {width}");
        }
    }
    // The table keeps its roles for screen readers when its rows are blocks.
    let metrics = json!({"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": false});
    page.call("Emulation.setDeviceMetricsOverride", metrics).await;
    let tree = page.call("Accessibility.getFullAXTree", json!({})).await;
    let nodes = tree["nodes"].as_array().unwrap();
    for role in ["table", "row", "cell", "columnheader", "status"] {
        assert!(nodes.iter().any(|node| node["role"]["value"] == role), "there is no {role}");
    }
}
