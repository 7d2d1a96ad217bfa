//! Line breaks in a result, and characters that some clients treat as line breaks. An event's data is sent line by
//! line, and a reader joins the lines with line feeds, which leaves the JSON value unchanged.

use serde_json::Value;

use crate::service::{Kind, on_every_deployment};

on_every_deployment!(line_break_in_a_result_becomes_a_line_feed, unicode_line_breaks_are_escaped);

async fn line_break_in_a_result_becomes_a_line_feed(kind: Kind) {
    let deployment = kind.deploy(&[]).await;
    let conversation = deployment.any().open().await;
    let bodies = [
        "{\n  \"a\": 1\n}",
        "{\r\n  \"a\": 1\r\n}",
        "{\r  \"a\": 1\r}",
        "\n\n7\n\n",
        "\r\n\r\n7\r\n\r\n",
        "\r\r\n\n7\n\r",
        "[\"\\r\\n\",\r\n\t\"data: x\"\r,\n\" event: end\"]",
        "{\"content\":\n\n\nnull}",
    ];
    for body in bodies {
        let item = deployment.any().tool(&conversation).await;
        let reply = deployment.any().callback(&item.token, body).send().await;
        assert_eq!(reply.status, 202, "{body:?}");
    }
    let channel = deployment.any().channel(&conversation, bodies.len()).await;
    for (data, body) in channel.iter().zip(bodies) {
        let joined = body.replace("\r\n", "\n").replace('\r', "\n");
        assert!(data.contains(&format!("\"result\":{joined},\"issuedAt\"")), "{body:?} became {data:?}");
        let result = &serde_json::from_str::<Value>(data).unwrap()["result"];
        assert_eq!(*result, serde_json::from_str::<Value>(body).unwrap());
    }
}

/// Some clients end lines there. The value is the same, and so is the entry of the Redis stream.
async fn unicode_line_breaks_are_escaped(kind: Kind) {
    let deployment = kind.deploy(&[]).await;
    let conversation = deployment.any().open().await;
    let bodies = [
        ("\"a\u{2028}b\u{2029}c\u{85}d\"", "\"a\\u2028b\\u2029c\\u0085d\""),
        ("{\"\u{2028}\":\r\"\u{85}\"}", "{\"\\u2028\":\n\"\\u0085\"}"),
        ("\"72 °F ✅ done\"", "\"72 °F ✅ done\""),
    ];
    for (body, _) in bodies {
        let item = deployment.any().tool(&conversation).await;
        assert_eq!(deployment.any().callback(&item.token, body).send().await.status, 202, "{body:?}");
    }
    let channel = deployment.any().channel(&conversation, bodies.len()).await;
    for (data, (body, sent)) in channel.iter().zip(bodies) {
        assert!(data.contains(&format!("\"result\":{sent},\"issuedAt\"")), "{body:?} became {data:?}");
        let result = &serde_json::from_str::<Value>(data).unwrap()["result"];
        assert_eq!(*result, serde_json::from_str::<Value>(body).unwrap());
    }
    let Some(redis) = &deployment.redis else { return };
    let mut connection = redis.connection(0);
    let keys: Vec<String> = ::redis::cmd("KEYS").arg("*:channel:*").query(&mut connection).unwrap();
    let entries: ::redis::streams::StreamRangeReply =
        ::redis::cmd("XRANGE").arg(&keys[0]).arg("-").arg("+").query(&mut connection).unwrap();
    for (entry, (body, _)) in entries.ids.iter().zip(bodies) {
        let envelope = entry.get::<String>("envelope").unwrap();
        assert!(envelope.contains(&format!("\"result\":{body},")), "{envelope}");
    }
}
