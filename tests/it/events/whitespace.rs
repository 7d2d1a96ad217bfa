//! Line breaks in a result. An event's data is sent line by line, and a reader joins the lines with line feeds, which
//! leaves the JSON value unchanged.

use serde_json::Value;

use crate::service::{Kind, on_every_deployment};

on_every_deployment!(line_break_in_a_result_becomes_a_line_feed);

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
