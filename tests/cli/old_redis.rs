//! A fake Redis that only reports its version.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

/// Starts a server of this version; returns its URL.
pub(crate) fn serve(version: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || answer(stream, version));
        }
    });
    url
}

fn answer(mut stream: TcpStream, version: &str) -> Option<()> {
    let mut requests = BufReader::new(stream.try_clone().ok()?);
    loop {
        let words = number(&mut requests, '*')?;
        let mut name = String::new();
        for word in 0..words {
            let mut bytes = vec![0; number(&mut requests, '$')? + 2];
            requests.read_exact(&mut bytes).ok()?;
            if word == 0 {
                name = String::from_utf8(bytes).ok()?.trim_end().to_ascii_uppercase();
            }
        }
        let info = format!("# Server\r\nredis_version:{version}\r\n");
        let reply = match name.as_str() {
            "HELLO" if version < "6" => {
                "-ERR unknown command `HELLO`, with args beginning with: `3`, \r\n".to_owned()
            }
            "HELLO" => format!("%1\r\n$7\r\nversion\r\n${}\r\n{version}\r\n", version.len()),
            "INFO" => format!("${}\r\n{info}\r\n", info.len()),
            _ => "-ERR unknown command\r\n".to_owned(),
        };
        stream.write_all(reply.as_bytes()).ok()?;
    }
}

/// Reads a protocol line: a sign and a number.
fn number(requests: &mut impl BufRead, sign: char) -> Option<usize> {
    let mut line = String::new();
    requests.read_line(&mut line).ok()?;
    line.trim_end().strip_prefix(sign)?.parse().ok()
}
