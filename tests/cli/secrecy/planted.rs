//! The search finds planted secrets in each encoding, and nothing else.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

use super::search::{Capture, Kind, Leak, Searcher, Secret};
use super::tokens::{Known, changed, escaped, signed};
use crate::collector::hex;

/// 32 bytes without a pattern.
fn bytes() -> Vec<u8> {
    (0..32_u8).map(|n| n.wrapping_mul(167).wrapping_add(251)).collect()
}

fn found(secrets: &[Secret], captured: &[u8]) -> Vec<&'static str> {
    let leaks = Searcher::new(secrets).find(&Capture::new("a capture", captured));
    leaks.into_iter().map(|leak| leak.form).collect()
}

#[test]
fn twelve_characters_of_a_secret_are_found() {
    let text = "s3cr3t-k3y-0f-th3-t3sts";
    let secret = [Secret::text("a key", Kind::Credential, text)];
    for at in 0..=text.len() - 12 {
        let line = format!("{{\"message\":\"{}\"}}", &text[at..at + 12]);
        assert_eq!(found(&secret, line.as_bytes()), ["text"], "{line}");
        let line = format!("{{\"message\":\"{}\"}}", &text[at..at + 11]);
        assert!(found(&secret, line.as_bytes()).is_empty(), "{line}");
    }
    assert_eq!(found(&secret, text.as_bytes()), ["text"], "at the very beginning and end");
    assert!(found(&secret, b"").is_empty());
}

#[test]
fn nine_bytes_are_found_in_every_encoding() {
    let bytes = bytes();
    let secret = [Secret::bytes("a code", &bytes)];
    for at in 0..=bytes.len() - 9 {
        let nine = &bytes[at..at + 9];
        let planted = [
            ("bytes", [b"\x00\xff", nine, b"\x00"].concat()),
            ("hexadecimal", format!("mac={} ", hex(nine)).into_bytes()),
            ("hexadecimal", format!("mac={} ", hex(nine).to_uppercase()).into_bytes()),
            ("list of numbers", format!("Vec({nine:?})").into_bytes()),
        ];
        for (form, line) in planted {
            assert_eq!(found(&secret, &line), [form], "{}", line.escape_ascii());
        }
        assert!(found(&secret, &bytes[at..at + 8]).is_empty());
    }
}

#[test]
fn base64_is_found_at_every_offset() {
    let bytes = bytes();
    let secret = [Secret::bytes("a code", &bytes)];
    for before in 0..6 {
        let among = [&b"abcdef"[..before], &bytes, b"xyz"].concat();
        for text in [URL_SAFE_NO_PAD.encode(&among), STANDARD_NO_PAD.encode(&among)] {
            for at in before.div_ceil(3) * 4..text.len() - 17 {
                let line = format!("\"{}\"", &text[at..at + 12]);
                assert_eq!(found(&secret, line.as_bytes()), ["base64"], "{before} {at} {line}");
            }
        }
    }
}

#[test]
fn percent_encoding_is_decoded() {
    let secret = [Secret::text("a key", Kind::Credential, "s3cr3t-k3y-0f-th3-t3sts")];
    let escaped = escaped("s3cr3t-k3y-0");
    assert_eq!(found(&secret, format!("GET /{escaped} 100%").as_bytes()), ["text"]);
    assert!(found(&secret, b"100%, %, %4, %zz").is_empty());
}

#[test]
fn results_are_allowed_where_credentials_are_not() {
    let secrets = [
        Secret::text("a result", Kind::Result, "r3sult-0f-th3-t3sts"),
        Secret::text("a key", Kind::Credential, "s3cr3t-k3y-0f-th3-t3sts"),
        Secret::exactly("a token's beginning", "cbt_Ag"),
    ];
    let text = "{\"result\":\"r3sult-0f-th3-t3sts\"} s3cr3t-k3y-0f cbt_AgJrMQ";
    let names = |capture: &Capture| -> Vec<String> {
        Searcher::new(&secrets).find(capture).into_iter().map(|leak| leak.secret).collect()
    };
    let everything = ["a result", "a key", "a token's beginning"];
    assert_eq!(names(&Capture::new("the log", text)), everything);
    assert_eq!(names(&Capture::with_results("the channel", text)), everything[1..]);
}

#[test]
fn path_in_a_log_line_is_found() {
    let known = Known::new();
    let token = signed(&known.signing_key("k1"), "call-1", 4_000_000_000_000);
    known.token("a work item", &token);
    let secrets = known.all();
    let searcher = Searcher::new(&secrets);
    let recorded = include_str!("recorded.jsonl");
    assert_eq!(recorded.matches("TOKEN").count(), 1);
    let found = |log: String| searcher.find(&Capture::new("standard error", log));
    let (whole, code) = ("a token's beginning".to_owned(), "the code of the token of a work item".to_owned());
    let names = |leaks: Vec<Leak>| leaks.into_iter().map(|leak| leak.secret).collect::<Vec<_>>();
    assert_eq!(names(found(recorded.replace("TOKEN", &token))), [code.clone(), whole.clone()]);
    assert_eq!(names(found(recorded.replace("TOKEN", &escaped(&token)))), [code.clone(), whole]);
    assert_eq!(names(found(recorded.replace("TOKEN", &changed(&token[104..], 0)))), [] as [String; 0]);
    assert_eq!(names(found(recorded.replace("TOKEN", &token[94..]))), [code]);
}

#[test]
fn leak_report_names_the_place() {
    let secrets = [Secret::exactly("a token's beginning", "cbt_Ag")];
    let leaks = Searcher::new(&secrets).find(&Capture::new("standard error", "path=/cbt_Agx\n"));
    assert_eq!(
        format!("{leaks:?}"),
        "[\n  a token's beginning as text in standard error: …path=/cbt_Agx\\n…]"
    );
}
