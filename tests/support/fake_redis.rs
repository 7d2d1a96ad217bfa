//! A fake Redis with scripted replies.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

/// Starts a server that passes each command, in upper case, to `answer`; returns its port.
pub fn serve(answer: impl Fn(&[String]) -> String + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = Arc::new(answer);
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let answer = Arc::clone(&answer);
            // Fails when the client disconnects.
            thread::spawn(move || drop(converse(&client, &*answer)));
        }
    });
    port
}

fn converse(client: &TcpStream, answer: &dyn Fn(&[String]) -> String) -> std::io::Result<()> {
    let mut requests = BufReader::new(client);
    while let Some(count) = number(&mut requests)? {
        let mut words = Vec::new();
        for _ in 0..count {
            let mut word = vec![0; number(&mut requests)?.unwrap_or_default() + 2];
            requests.read_exact(&mut word)?;
            words.push(String::from_utf8_lossy(&word).trim().to_uppercase());
        }
        (&mut &*client).write_all(answer(&words).as_bytes())?;
    }
    Ok(())
}

/// Reads a protocol line: a sign and a number. `None` when the client has disconnected.
fn number(requests: &mut impl BufRead) -> std::io::Result<Option<usize>> {
    let mut line = String::new();
    requests.read_line(&mut line)?;
    Ok(line.trim_end().get(1..).and_then(|number| number.parse().ok()))
}

/// Replies of a server of this version to the commands of the checks before its use.
pub fn greeting(version: &str, question: &[String]) -> Option<String> {
    let text = |text: &str| format!("${}\r\n{text}\r\n", text.len());
    match question[0].as_str() {
        "HELLO" => Some("%1\r\n$5\r\nproto\r\n:3\r\n".to_owned()),
        "INFO" => Some(text(&format!("# Server\r\nredis_version:{version}\r\n"))),
        "CLIENT" | "SELECT" => Some("+OK\r\n".to_owned()),
        _ => None,
    }
}
