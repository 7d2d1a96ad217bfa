//! Event streams through gateways with their default settings, which buffer replies or compress them.

use futures_util::StreamExt;
use http_body_util::BodyStream;
use tokio::task::block_in_place;
use tokio::time::{Duration, Instant, timeout};

use super::program::{Gateway, Kind};
use crate::service::{Call, EventReader, PATIENCE, SERVICE_KEY, Service};

/// Longest time to the first byte of a stream, and from a callback to its event.
const AT_ONCE: Duration = Duration::from_millis(200);
/// Number of attempts. The fastest counts, because other tests may keep the processors busy.
const TRIES: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_pass_through_nginx_at_once() {
    events_pass_at_once(Kind::DefaultNginx).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_pass_through_fastify_at_once() {
    events_pass_at_once(Kind::DefaultFastify).await;
}

async fn events_pass_at_once(kind: Kind) {
    let service = Service::on_memory().await;
    let gateway = block_in_place(|| Gateway::start(kind, service.platform));
    let (mut first_byte, mut event) = (Duration::MAX, Duration::MAX);
    for _ in 0..TRIES {
        let conversation = service.open().await;
        let url = format!("http://{}/platform/v1/conversations/{conversation}/events", gateway.address);
        let call = Call::new(&service.client, "GET", url);
        let call = call
            .header("authorization", format!("Bearer {SERVICE_KEY}"))
            .header("accept-encoding", "gzip, deflate, br");
        let since = Instant::now();
        let mut body = BodyStream::new(call.clone().begin().await.into_body());
        let frame = timeout(PATIENCE, body.next()).await.expect("a comment at once").unwrap().unwrap();
        first_byte = first_byte.min(since.elapsed());
        assert!(frame.into_data().unwrap().starts_with(b":"));
        let mut reader = EventReader::of(call).await;
        let item = service.tool(&conversation).await;
        let since = Instant::now();
        assert_eq!(service.callback(&item.token, "1").send().await.status, 202);
        assert_eq!(reader.next().await.unwrap().sequence(), 1);
        event = event.min(since.elapsed());
        if first_byte < AT_ONCE && event < AT_ONCE {
            return;
        }
    }
    panic!("{kind:?}: the first byte took {first_byte:?}, an event {event:?}\n{}", gateway.log());
}
