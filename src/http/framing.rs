//! Where one request ends and the next begins, in the one reading that every parser of HTTP/1.1 shares.
//!
//! Two parsers in a row that read a request differently let a stranger hide a second request in the first. So what
//! RFC 9112 lets a server read in its own way is refused here, before the HTTP library sees all of it: a length beside
//! chunks, a length or an encoding twice, line feeds without carriage returns, folded headers, another number of hosts
//! than one. The library has its own opinion of all else.

use axum::http::uri::Authority;

/// Longest line that is kept; the HTTP library refuses longer ones, or they are refused here.
const MAX_LINE: usize = super::server::MAX_HEAD;

/// Follows the bytes of one connection.
#[derive(Debug, Default)]
pub(super) struct Framing {
    next: Next,
    line: Vec<u8>,
    head: Head,
}

/// What the next byte belongs to.
#[derive(Clone, Copy, Debug, Default)]
enum Next {
    #[default]
    RequestLine,
    Header,
    Body(u64),
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    Trailer,
}

/// What a head has said so far.
#[derive(Debug, Default)]
struct Head {
    is_1_0: bool,
    hosts: usize,
    length: Option<u64>,
    chunked: bool,
}

/// The request can be read in more than one way, or in none.
#[derive(Debug, PartialEq, Eq)]
struct Ambiguous;

impl Framing {
    /// Goes on with these bytes; tells the first that must not be passed on.
    pub(super) fn check(&mut self, bytes: &[u8]) -> Result<(), usize> {
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            if let Next::Body(left) | Next::Chunk(left) = &mut self.next {
                let skipped = rest.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= skipped as u64;
                at += skipped;
                if matches!(self.next, Next::Body(0)) {
                    self.next = Next::RequestLine;
                } else if matches!(self.next, Next::Chunk(0)) {
                    self.next = Next::ChunkEnd;
                }
                continue;
            }
            let end = rest.iter().position(|byte| *byte == b'\n');
            let of_line = &rest[..end.map_or(rest.len(), |end| end + 1)];
            // One byte more than is allowed is enough to know.
            let kept = of_line.len().min((MAX_LINE + 1).saturating_sub(self.line.len()));
            self.line.extend_from_slice(&of_line[..kept]);
            at += of_line.len();
            if end.is_some() {
                let mut line = std::mem::take(&mut self.line);
                self.next = self.after(&line).map_err(|Ambiguous| at - 1)?;
                line.clear();
                self.line = line;
            }
        }
        Ok(())
    }

    /// Whether what is next belongs to a head.
    pub(super) const fn is_in_a_head(&self) -> bool {
        matches!(self.next, Next::RequestLine | Next::Header)
    }

    /// What comes after this line.
    fn after(&mut self, line: &[u8]) -> Result<Next, Ambiguous> {
        let line = line.strip_suffix(b"\r\n").filter(|line| line.len() < MAX_LINE).ok_or(Ambiguous)?;
        if line.contains(&b'\r') {
            return Err(Ambiguous);
        }
        match self.next {
            // Some clients of old end a body with one line break too many.
            Next::RequestLine | Next::Trailer if line.is_empty() => Ok(Next::RequestLine),
            Next::RequestLine => {
                self.head = Head { is_1_0: version(line)?, ..Head::default() };
                Ok(Next::Header)
            }
            Next::Header if line.is_empty() => self.head.body(),
            Next::Header => self.head.read(line).map(|()| Next::Header),
            Next::ChunkSize => match chunk_size(line)? {
                0 => Ok(Next::Trailer),
                size => Ok(Next::Chunk(size)),
            },
            Next::ChunkEnd if line.is_empty() => Ok(Next::ChunkSize),
            Next::Trailer => field(line).map(|_| Next::Trailer),
            Next::ChunkEnd | Next::Body(_) | Next::Chunk(_) => Err(Ambiguous),
        }
    }
}

impl Head {
    fn read(&mut self, line: &[u8]) -> Result<(), Ambiguous> {
        let (name, value) = field(line)?;
        if name.eq_ignore_ascii_case(b"host") {
            self.hosts += 1;
            let names_a_host = value.is_empty() || Authority::try_from(value).is_ok();
            if !names_a_host || value.contains(&b'@') {
                return Err(Ambiguous);
            }
        } else if name.eq_ignore_ascii_case(b"content-length") {
            let text =
                std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
            let length = text.and_then(|text| text.parse().ok()).ok_or(Ambiguous)?;
            if self.length.replace(length).is_some() {
                return Err(Ambiguous);
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding")
            && (!value.eq_ignore_ascii_case(b"chunked") || std::mem::replace(&mut self.chunked, true))
        {
            return Err(Ambiguous);
        }
        Ok(())
    }

    /// What follows a head that has ended.
    fn body(&self) -> Result<Next, Ambiguous> {
        match (self.is_1_0, self.hosts, self.chunked, self.length) {
            (true, 0 | 1, false, None | Some(0)) | (false, 1, false, None | Some(0)) => Ok(Next::RequestLine),
            (true, 0 | 1, false, Some(length)) | (false, 1, false, Some(length)) => Ok(Next::Body(length)),
            (false, 1, true, None) => Ok(Next::ChunkSize),
            _ => Err(Ambiguous),
        }
    }
}

/// Whether a request line is of HTTP/1.0 and not of HTTP/1.1.
fn version(line: &[u8]) -> Result<bool, Ambiguous> {
    let mut words = line.split(|byte| *byte == b' ');
    match (words.next(), words.next(), words.next(), words.next()) {
        (Some(_), Some(_), Some(b"HTTP/1.1"), None) => Ok(false),
        (Some(_), Some(_), Some(b"HTTP/1.0"), None) => Ok(true),
        _ => Err(Ambiguous),
    }
}

/// A field's name and value. A folded line begins with a space, which no name has.
fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Ambiguous> {
    let colon = line.iter().position(|byte| *byte == b':').ok_or(Ambiguous)?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    let of_a_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    if name.is_empty() || !name.iter().all(of_a_token) {
        return Err(Ambiguous);
    }
    Ok((name, value.trim_ascii()))
}

/// A chunk's size. What follows a semicolon means nothing here, and cannot hide a line's end.
fn chunk_size(line: &[u8]) -> Result<u64, Ambiguous> {
    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
    let text = std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()));
    text.and_then(|text| u64::from_str_radix(text, 16).ok()).ok_or(Ambiguous)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "POST /x HTTP/1.1\r\nhost: x\r\n";

    /// Whether all of it may be passed on, however it is cut.
    fn is_clear(text: &str) -> bool {
        let whole = Framing::default().check(text.as_bytes());
        let mut by_bytes = Framing::default();
        let by_bytes = text.bytes().position(|byte| by_bytes.check(&[byte]).is_err());
        assert_eq!(whole.err(), by_bytes, "{text:?}");
        by_bytes.is_none()
    }

    #[test]
    fn what_every_parser_reads_alike_is_passed_on() {
        for clear in [
            "GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.0\r\n\r\n".to_owned(),
            format!("{HEAD}content-length: 3\r\n\r\n\r\n\r{HEAD}\r\n\r\n{HEAD}"),
            format!("{HEAD}transfer-encoding: Chunked\r\n\r\n3;a=b\r\n\n\n\n\r\n0\r\nx: y\r\n\r\n{HEAD}\r\n"),
            format!("{HEAD}content-length:\t0 \r\n\r\n{HEAD}content-length: 1\r\n\r\nx{HEAD}"),
            "GET http://[::1]:80/ HTTP/1.1\r\nhost: [::1]:80\r\n\r\n".to_owned(),
        ] {
            assert!(is_clear(&clear), "{clear:?}");
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_not() {
        for ambiguous in [
            format!("{HEAD}content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n"),
            format!("{HEAD}transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n"),
            format!("{HEAD}content-length: 3\r\ncontent-length: 3\r\n\r\n"),
            format!("{HEAD}content-length: +3\r\n\r\n"),
            format!("{HEAD}content-length: \r\n\r\n"),
            format!("{HEAD}transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n"),
            format!("{HEAD}transfer-encoding: gzip, chunked\r\n\r\n"),
            format!("{HEAD}transfer-encoding: chunked\r\n\r\n0x1\r\n"),
            format!("{HEAD}transfer-encoding: chunked\r\n\r\n1 \r\n"),
            format!("{HEAD}transfer-encoding: chunked\r\n\r\n1;a\n"),
            format!("{HEAD}transfer-encoding: chunked\r\n\r\n10000000000000000\r\n"),
            format!("{HEAD}transfer-encoding: chunked\r\n\r\n1\r\nxy\r\n"),
            format!("{HEAD}transfer-encoding: chunked\r\n\r\n0\r\nx\r\n"),
            format!("{HEAD}x: y\n\r\n"),
            format!("{HEAD}x: y\r\n z\r\n\r\n"),
            format!("{HEAD}x: y\rz: w\r\n\r\n"),
            format!("{HEAD}x : y\r\n\r\n"),
            format!("{HEAD}x: {}\r\n", "y".repeat(MAX_LINE)),
            "POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n".to_owned(),
            "GET / HTTP/1.1\r\n\r\n".to_owned(),
            format!("{HEAD}host: x\r\n\r\n"),
            "GET / HTTP/1.1\r\nhost: x, y\r\n\r\n".to_owned(),
            "GET / HTTP/1.1\r\nhost: a@x\r\n\r\n".to_owned(),
            "GET /  HTTP/1.1\r\n".to_owned(),
            "GET / HTTP/2.0\r\n".to_owned(),
            "GET /\r\n".to_owned(),
        ] {
            assert!(!is_clear(&ambiguous), "{ambiguous:?}");
        }
    }
}
