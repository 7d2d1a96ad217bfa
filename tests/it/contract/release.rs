//! Guarantees 1, 5, 6 and 7: acknowledged results are stored; released results are in order, complete and unchanged.

use callback_ingress::domain::gate::{Delivery, Receipt, Released};
use callback_ingress::domain::ids::Sequence;
use callback_ingress::domain::work_item::{Kind, Outcome, State};

use crate::conversation::{Envelope, failed};
use crate::stage::{Backend, on_every_store};

on_every_store!(
    next_result_is_released_when_acknowledged,
    early_result_is_held_when_acknowledged,
    held_result_is_released_when_the_gap_is_filled,
    held_result_is_released_when_the_gap_times_out,
    held_result_is_released_when_the_gap_is_cancelled,
    channel_is_in_order_of_issue,
    results_are_delivered_byte_for_byte,
    envelope_names_its_origin,
    release_of_many_items_is_atomic,
    conversations_are_independent,
    release_reports_which_envelopes_were_held,
);

const fn held_for(sequence: u64) -> Delivery {
    Delivery::Held { waiting_for: Sequence::new(sequence) }
}

async fn next_result_is_released_when_acknowledged(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let item = conversation.issue(1_000).await;
    let receipt = conversation.accept(&item, "1").await.unwrap();
    assert_eq!(receipt.delivery, Delivery::Delivered);
    assert_eq!((receipt.outcome, receipt.replayed), (Outcome::Succeeded, false));
    assert_eq!((&receipt.item, &receipt.conversation_id), (&item, &conversation.id));
    let elsewhere = stage.seen_from_elsewhere().await;
    assert_eq!(elsewhere.named(conversation.id.clone()).channel().await, [(1, Outcome::Succeeded)]);
}

async fn early_result_is_held_when_acknowledged(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let [_, second] = conversation.issue_many(1_000).await;
    assert_eq!(conversation.accept(&second, "22").await.unwrap().delivery, held_for(1));
    let elsewhere = stage.seen_from_elsewhere().await;
    let elsewhere = elsewhere.named(conversation.id.clone());
    assert_eq!(elsewhere.channel().await, []);
    let view = elsewhere.inspect().await.unwrap();
    assert_eq!((view.waiting_for, view.next_sequence), (Sequence::new(1), Sequence::new(3)));
    let [awaiting, held] = &view.unreleased[..] else { panic!("{view:?}") };
    assert_eq!((awaiting.state, awaiting.settled), (State::Awaiting, None));
    assert_eq!((held.state, held.held_bytes), (State::Held, 2));
    assert_eq!(held.settled, Some((Outcome::Succeeded, stage.clock.now())));
}

async fn held_result_is_released_when_the_gap_is_filled(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let [first, second, third] = conversation.issue_many(1_000).await;
    conversation.accept(&third, "3").await.unwrap();
    conversation.accept(&second, "2").await.unwrap();
    assert_eq!(conversation.accept(&first, "1").await.unwrap().delivery, Delivery::Delivered);
    assert_eq!(conversation.results().await, ["1", "2", "3"].map(|body| Some(body.into())));
    let view = conversation.inspect().await.unwrap();
    assert_eq!((view.unreleased.len(), view.waiting_for), (0, Sequence::new(4)));
}

async fn held_result_is_released_when_the_gap_times_out(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let first = conversation.issue(10).await;
    let second = conversation.issue(1_000).await;
    conversation.accept(&second, "2").await.unwrap();
    stage.wait_until(first.deadline);
    assert_eq!(conversation.expire(&[&first]).await.len(), 1);
    assert_eq!(conversation.channel().await, [(1, Outcome::TimedOut), (2, Outcome::Succeeded)]);
}

async fn held_result_is_released_when_the_gap_is_cancelled(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let [first, second] = conversation.issue_many(1_000).await;
    conversation.accept(&second, "2").await.unwrap();
    assert_eq!(conversation.cancel(&first).await.unwrap().state, State::Released);
    assert_eq!(conversation.channel().await, [(1, Outcome::Cancelled), (2, Outcome::Succeeded)]);
}

async fn channel_is_in_order_of_issue(backend: Backend) {
    let stage = backend.stage().await;
    let orders = (0..4).flat_map(|a| (0..4).flat_map(move |b| (0..4).map(move |c| (a, b, c))));
    for (a, b, c) in orders.filter(|(a, b, c)| a != b && b != c && a != c) {
        let d = 6 - a - b - c;
        let conversation = stage.conversation().await;
        let soon = conversation.issue(10).await;
        let [second, third, fourth] = conversation.issue_many(1_000).await;
        let items = [soon, second, third, fourth];
        let mut settled = [false; 4];
        for index in [a, b, c, d] {
            match index {
                0 => {
                    stage.wait_until(items[0].deadline);
                    conversation.expire(&[&items[0]]).await;
                }
                2 => drop(conversation.cancel(&items[2]).await.unwrap()),
                _ => drop(conversation.accept(&items[index], "1").await.unwrap()),
            }
            settled[index] = true;
            let outcomes = [Outcome::TimedOut, Outcome::Succeeded, Outcome::Cancelled, Outcome::Succeeded];
            let expected: Vec<_> = (1..)
                .zip(outcomes)
                .zip(settled)
                .take_while(|(_, settled)| *settled)
                .map(|(envelope, _)| envelope)
                .collect();
            assert_eq!(conversation.channel().await, expected, "settled in the order {a} {b} {c} {d}");
        }
    }
}

async fn results_are_delivered_byte_for_byte(backend: Backend) {
    let stage = backend.stage().await;
    let megabyte: Vec<u8> = (0..1024 * 1024).map(|n: u32| u8::try_from(n % 251).unwrap()).collect();
    let bodies: [&[u8]; 8] = [
        b"null",
        b" {\"a\" : 1.0e+0 ,\r\n\"a\":2}\t",
        "\"\u{1F600} \u{0} \\u0000\"".as_bytes(),
        b"\x00\xff\xfe not even text \xc3\x28",
        b"$6\r\nfoobar\r\n*1\r\n",
        b"",
        b"-0",
        &megabyte,
    ];
    // Once released at once, once held.
    for held in [false, true] {
        let conversation = stage.conversation().await;
        let items: [_; 8] = conversation.issue_many(1_000).await;
        let mut order: Vec<_> = items.iter().zip(bodies).collect();
        if held {
            order.reverse();
        }
        for (item, body) in order {
            conversation.accept_with(conversation.bringing(item, body)).await.unwrap();
        }
        for (found, body) in conversation.results().await.iter().zip(bodies) {
            assert!(found.as_deref() == Some(body), "held: {held}, body of {} bytes", body.len());
        }
    }
}

async fn envelope_names_its_origin(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.unopened();
    let [whole, own] = ["a", "b"]
        .map(|span| format!("00-{}-{}-01", "1".repeat(32), span.repeat(16)))
        .map(|text| callback_ingress::domain::ids::TraceParent::parse(&text).unwrap());
    conversation.open(|open| open.traceparent = Some(whole.clone())).await.unwrap();
    let issued_at = stage.clock.now();
    let mut issue = conversation.issuing(1_000);
    issue.kind = Kind::Llm;
    issue.turn_id = Some(callback_ingress::domain::ids::TurnId::parse("turn-1").unwrap());
    issue.traceparent = Some(own.clone());
    let first = conversation.issue_with(issue).await.unwrap().item;
    let [second, third] = conversation.issue_many(1_000).await;

    stage.clock.advance(5);
    let mut early = conversation.bringing(&second, b"");
    early.result = failed(br#"{"code":"X","message":"m"}"#);
    conversation.accept_with(early.clone()).await.unwrap();
    stage.clock.advance(7);
    let late = conversation.bringing(&first, b"\"hello\"");
    conversation.accept_with(late.clone()).await.unwrap();
    stage.wait_until(third.deadline);
    stage.clock.advance(3);
    conversation.expire(&[&third]).await;

    let page = conversation.read(0, 10).await.unwrap();
    let [llm, error, timeout] = &page.envelopes[..] else { panic!("{page:?}") };
    let Envelope { outcome, payload, members: llm, .. } = Envelope::read(llm);
    assert_eq!(
        (llm.kind, outcome, &llm.work_item_id),
        (Kind::Llm, Outcome::Succeeded, &first.id.to_string())
    );
    assert_eq!(
        (llm.turn_id.as_deref(), llm.conversation_id.as_str()),
        (Some("turn-1"), conversation.id.as_str())
    );
    assert_eq!(llm.request_id, Some(late.request_id.to_string()));
    assert_eq!(llm.traceparent.as_deref(), Some(own.as_str()));
    let after = |ms| issued_at.plus_millis(ms).to_string();
    assert_eq!([llm.issued_at, llm.received_at, llm.released_at], [after(0), after(12), after(12)]);
    assert_eq!(payload, Some(late.result.payload));

    let Envelope { outcome, payload, members: error, .. } = Envelope::read(error);
    assert_eq!((outcome, &error.turn_id), (Outcome::Failed, &None));
    assert_eq!(error.request_id, Some(early.request_id.to_string()));
    assert_eq!(error.traceparent.as_deref(), Some(whole.as_str()));
    assert_eq!([error.received_at, error.released_at], [after(5), after(12)], "it was held");
    assert_eq!(payload, Some(early.result.payload));

    let Envelope { outcome, payload, members: timeout, .. } = Envelope::read(timeout);
    assert_eq!((outcome, timeout.request_id, payload), (Outcome::TimedOut, None, None));
    assert_eq!(timeout.received_at, third.deadline.to_string(), "it timed out at its deadline");
    assert_eq!(timeout.released_at, third.deadline.plus_millis(3).to_string());
}

async fn release_of_many_items_is_atomic(backend: Backend) {
    let stage = backend.stage().await;
    for _ in 0..20 {
        let conversation = stage.conversation().await;
        let items: [_; 30] = conversation.issue_many(1_000).await;
        for item in &items[1..] {
            conversation.accept(item, "1").await.unwrap();
        }
        let open_the_gate = conversation.accept(&items[0], "1");
        let look = async {
            loop {
                let (page, view) = tokio::join!(conversation.read(0, 100), conversation.inspect());
                let (page, view) = (page.unwrap(), view.unwrap());
                assert!([0, 30].contains(&page.envelopes.len()), "{} were seen", page.envelopes.len());
                assert_eq!(page.released, page.envelopes.len() as u64);
                assert!([0, 30].contains(&view.unreleased.len()), "{} were seen", view.unreleased.len());
                if page.released == 30 {
                    break;
                }
                tokio::task::yield_now().await;
            }
        };
        let (receipt, ()) = tokio::join!(open_the_gate, look);
        receipt.unwrap();
    }
}

async fn conversations_are_independent(backend: Backend) {
    let stage = backend.stage().await;
    let (slow, quick) = (stage.conversation().await, stage.conversation().await);
    slow.issue(1_000).await;
    let item = quick.issue(1_000).await;
    assert_eq!(quick.accept(&item, "1").await.unwrap().delivery, Delivery::Delivered);
    assert_eq!(slow.channel().await, []);
}

async fn release_reports_which_envelopes_were_held(backend: Backend) {
    let stage = backend.stage().await;
    let conversation = stage.conversation().await;
    let told = |receipt: Receipt| {
        let waited = |released: &Released| (released.sequence.get(), released.held);
        receipt.released.iter().map(waited).collect::<Vec<_>>()
    };
    let [overdue] = conversation.issue_many(10).await;
    let [next] = conversation.issue_many(1_000).await;
    stage.wait_until(overdue.deadline);
    let receipt = conversation.accept(&next, "2").await.unwrap();
    assert_eq!(told(receipt), [(1, false), (2, false)], "nobody had looked at what is overdue");

    let [first] = conversation.issue_many(1_000).await;
    let [late] = conversation.issue_many(10).await;
    let [last] = conversation.issue_many(1_000).await;
    conversation.accept(&last, "5").await.unwrap();
    stage.wait_until(late.deadline);
    conversation.expire(&[&late]).await;
    let receipt = conversation.accept(&first, "3").await.unwrap();
    assert_eq!(told(receipt), [(3, false), (4, true), (5, true)], "what timed out waits like any other");
}
