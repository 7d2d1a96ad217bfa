//! Known attacks with ambiguous framing. Each has a request hidden in it or behind it.
//!
//! An attack is a text with places in it:
//!
//! - `<post>`: the head of a request, as far as `content-type`. What follows it are the attack's own lines.
//! - `<hidden>`: a callback with a good token, and behind it a `GET`, which asks to close the connection.
//! - `<length>` and `<size>`: the length of `<hidden>`, in decimal and hexadecimal digits.
//! - `<chunk>`: `<hidden>` as a chunk, without the last one.
//! - `<long>`: more than a head may have.

use crate::service::CALLBACKS;

/// The service's reaction to an attack without a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direct {
    /// It refuses and closes the connection; the hidden request is not parsed.
    Closes,
    /// It treats everything as one request with the hidden one in its body, and answers it or waits for more.
    InBody,
    /// It parses the hidden request as the next one. The text says why that is harmless.
    Hears(&'static str),
    /// It parses the hidden callback as a part of the first request, and the rest as the next one.
    HearsRest(&'static str),
}
use Direct::{Closes, Hears, HearsRest, InBody};

/// Every HTTP/1.1 parser agrees.
const PLAIN: Direct = Hears("every parser ends the first request here");

/// A request without an attack.
pub(super) const NO_TRICK: &str = "no trick at all";

/// Refused like any other method.
const TUNNEL: Direct =
    Hears("a refused tunnel leaves the connection as it was, and neither gateway forwards any");

/// The callback's head is parsed as trailer fields.
const TRAILER: Direct = HearsRest("each gateway ends the body in its own way, and forwards no trailer");

/// Attacks that a gateway forwards as they are, and that the service's HTTP library refuses: one request, one answer,
/// and the connection is closed. nginx lets control characters pass, and Fastify lengths beyond a number of Node's.
pub(super) const FORWARDED_THOUGH_MALFORMED: [&str; 3] =
    ["a control character in a value", "a delete in a value", "a length of nearly 64 bits"];

/// Name, reaction without a gateway, and text.
type Row = (&'static str, Direct, &'static str);

const LENGTHS: &[Row] = &[
    (NO_TRICK, PLAIN, "<post>Content-Length: 1\r\n\r\n1<hidden>"),
    ("no body", PLAIN, "<post>\r\n<hidden>"),
    ("a body that is a request", InBody, "<post>Content-Length: <length>\r\n\r\n<hidden>"),
    (
        "one length twice",
        Hears("equal lengths frame alike, and both gateways refuse two"),
        "<post>Content-Length: 1\r\nContent-Length: 1\r\n\r\n1<hidden>",
    ),
    (
        "the long length twice",
        InBody,
        "<post>Content-Length: <length>\r\nContent-Length: <length>\r\n\r\n<hidden>",
    ),
    ("the short length first", Closes, "<post>Content-Length: 0\r\nContent-Length: <length>\r\n\r\n<hidden>"),
    ("the long length first", Closes, "<post>Content-Length: <length>\r\nContent-Length: 0\r\n\r\n<hidden>"),
    ("one length in a list", Closes, "<post>Content-Length: 1, 1\r\n\r\n1<hidden>"),
    ("two lengths in a list", Closes, "<post>Content-Length: 0, <length>\r\n\r\n<hidden>"),
    ("two lengths in a list, the other way", Closes, "<post>Content-Length: <length>, 0\r\n\r\n<hidden>"),
    ("a length with a sign", Closes, "<post>Content-Length: +<length>\r\n\r\n<hidden>"),
    ("a negative length", Closes, "<post>Content-Length: -1\r\n\r\n<hidden>"),
    ("a length in hexadecimal", Closes, "<post>Content-Length: 0x<size>\r\n\r\n<hidden>"),
    ("a length with zeros in front", InBody, "<post>Content-Length: 000<length>\r\n\r\n<hidden>"),
    ("an empty length", Closes, "<post>Content-Length:\r\n\r\n<hidden>"),
    ("a length in quotes", Closes, "<post>Content-Length: \"<length>\"\r\n\r\n<hidden>"),
    ("a length with a fraction", Closes, "<post>Content-Length: <length>.0\r\n\r\n<hidden>"),
    ("a length with a space in it", Closes, "<post>Content-Length: <length> 0\r\n\r\n<hidden>"),
    ("a length with garbage behind it", Closes, "<post>Content-Length: <length>;a\r\n\r\n<hidden>"),
    ("a length beyond 64 bits", Closes, "<post>Content-Length: 18446744073709551616\r\n\r\n<hidden>"),
    ("a length of nearly 64 bits", Closes, "<post>Content-Length: 18446744073709551615\r\n\r\n<hidden>"),
    ("a tab before the length", InBody, "<post>Content-Length:\t<length>\r\n\r\n<hidden>"),
    ("a vertical tab before the length", Closes, "<post>Content-Length:\x0b<length>\r\n\r\n<hidden>"),
    ("a space before the length's colon", Closes, "<post>Content-Length : <length>\r\n\r\n<hidden>"),
    ("a length with an underscore", PLAIN, "<post>Content_Length: <length>\r\n\r\n<hidden>"),
    (
        "a length that the connection names",
        PLAIN,
        "<post>Connection: Content-Length\r\nContent-Length: 1\r\n\r\n1<hidden>",
    ),
    (
        "a long length that the connection names",
        InBody,
        "<post>Connection: keep-alive, Content-Length\r\nContent-Length: <length>\r\n\r\n<hidden>",
    ),
    (
        "a length on a GET",
        PLAIN,
        "GET /nowhere HTTP/1.1\r\nHost: gateway\r\nContent-Length: 1\r\n\r\n1<hidden>",
    ),
    (
        "a request in a GET's body",
        InBody,
        "GET /nowhere HTTP/1.1\r\nHost: gateway\r\nContent-Length: <length>\r\n\r\n<hidden>",
    ),
    (
        "a request in a HEAD's body",
        InBody,
        "HEAD /nowhere HTTP/1.1\r\nHost: gateway\r\nContent-Length: <length>\r\n\r\n<hidden>",
    ),
    (
        "a request in an OPTIONS' body",
        InBody,
        "OPTIONS /nowhere HTTP/1.1\r\nHost: gateway\r\nContent-Length: <length>\r\n\r\n<hidden>",
    ),
];

const ENCODINGS: &[Row] = &[
    ("chunks", PLAIN, "<post>Transfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\n\r\n<hidden>"),
    ("a request in chunks", InBody, "<post>Transfer-Encoding: chunked\r\n\r\n<chunk>0\r\n\r\n"),
    (
        "a length, then chunks",
        Closes,
        "<post>Content-Length: <length>\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n<hidden>",
    ),
    (
        "chunks, then a length",
        Closes,
        "<post>Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n<hidden>",
    ),
    (
        "a short length beside chunks",
        Closes,
        "<post>Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n<chunk>0\r\n\r\n",
    ),
    (
        "no length beside chunks",
        Closes,
        "<post>Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n<hidden>",
    ),
    (
        "a bad length behind chunks",
        Closes,
        "<post>Transfer-Encoding: chunked\r\nContent-Length: x\r\n\r\n0\r\n\r\n<hidden>",
    ),
    (
        "two lengths beside chunks",
        Closes,
        "<post>Content-Length: 0\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n<hidden>",
    ),
    (
        "a length beside another encoding",
        Closes,
        "<post>Content-Length: <length>\r\nTransfer-Encoding: xchunked\r\n\r\n<hidden>",
    ),
    (
        "a length beside identity",
        Closes,
        "<post>Content-Length: <length>\r\nTransfer-Encoding: identity\r\n\r\n<hidden>",
    ),
    (
        "a length beside an empty encoding",
        Closes,
        "<post>Content-Length: <length>\r\nTransfer-Encoding:\r\n\r\n<hidden>",
    ),
    ("xchunked", Closes, "<post>Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n<hidden>"),
    ("chunkedx", Closes, "<post>Transfer-Encoding: chunkedx\r\n\r\n0\r\n\r\n<hidden>"),
    ("chunked, then identity", Closes, "<post>Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n<hidden>"),
    (
        "identity, then chunked",
        Hears("chunked is last, and both gateways refuse any other word beside it"),
        "<post>Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n<hidden>",
    ),
    (
        "gzip, then chunked",
        Hears("chunked is last, and both gateways refuse any other word beside it"),
        "<post>Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n<hidden>",
    ),
    (
        "chunked twice in a list",
        Hears("chunked is last, and both gateways refuse any other word beside it"),
        "<post>Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n<hidden>",
    ),
    (
        "a list that begins empty",
        Hears("chunked is last, and both gateways refuse any other word beside it"),
        "<post>Transfer-Encoding: , chunked\r\n\r\n0\r\n\r\n<hidden>",
    ),
    ("a list that ends empty", Closes, "<post>Transfer-Encoding: chunked,\r\n\r\n0\r\n\r\n<hidden>"),
    ("a capital letter", PLAIN, "<post>Transfer-Encoding: Chunked\r\n\r\n0\r\n\r\n<hidden>"),
    ("capital letters", PLAIN, "<post>TRANSFER-ENCODING: CHUNKED\r\n\r\n0\r\n\r\n<hidden>"),
    ("a tab before chunked", PLAIN, "<post>Transfer-Encoding:\tchunked\r\n\r\n0\r\n\r\n<hidden>"),
    ("a tab behind chunked", PLAIN, "<post>Transfer-Encoding: chunked\t\r\n\r\n0\r\n\r\n<hidden>"),
    ("no space before chunked", PLAIN, "<post>Transfer-Encoding:chunked\r\n\r\n0\r\n\r\n<hidden>"),
    ("spaces around chunked", PLAIN, "<post>Transfer-Encoding:   chunked  \r\n\r\n0\r\n\r\n<hidden>"),
    (
        "a vertical tab before chunked",
        Closes,
        "<post>Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n<hidden>",
    ),
    ("a form feed before chunked", Closes, "<post>Transfer-Encoding: \x0cchunked\r\n\r\n0\r\n\r\n<hidden>"),
    ("a NUL behind chunked", Closes, "<post>Transfer-Encoding: chunked\0\r\n\r\n0\r\n\r\n<hidden>"),
    ("a space before the colon", Closes, "<post>Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n<hidden>"),
    ("a tab before the colon", Closes, "<post>Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n<hidden>"),
    ("a space before the name", Closes, "<post> Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n<hidden>"),
    ("garbage behind chunked", Closes, "<post>Transfer-Encoding: chunked;a=b\r\n\r\n0\r\n\r\n<hidden>"),
    ("a word behind chunked", Closes, "<post>Transfer-Encoding: chunked x\r\n\r\n0\r\n\r\n<hidden>"),
    ("chunked in quotes", Closes, "<post>Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n<hidden>"),
    ("chunked in single quotes", Closes, "<post>Transfer-Encoding: 'chunked'\r\n\r\n0\r\n\r\n<hidden>"),
    (
        "two lines of chunked",
        Hears("chunked is last, and both gateways refuse any other word beside it"),
        "<post>Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n<hidden>",
    ),
    (
        "a line of identity before one of chunked",
        Hears("chunked is last, and both gateways refuse any other word beside it"),
        "<post>Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n<hidden>",
    ),
    (
        "a line of identity behind one of chunked",
        Closes,
        "<post>Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n<hidden>",
    ),
    ("an encoding with an underscore", PLAIN, "<post>Transfer_Encoding: chunked\r\n\r\n<hidden>"),
    (
        "an underscore beside a length",
        InBody,
        "<post>Content-Length: <length>\r\nTransfer_Encoding: chunked\r\n\r\n<hidden>",
    ),
    (
        "an encoding that the connection names",
        PLAIN,
        "<post>Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n<hidden>",
    ),
    ("TE in place of the encoding", PLAIN, "<post>TE: chunked\r\n\r\n<hidden>"),
    (
        "chunks on a GET",
        PLAIN,
        "GET /nowhere HTTP/1.1\r\nHost: gateway\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n<hidden>",
    ),
    (
        "a request in a GET's chunks",
        InBody,
        "GET /nowhere HTTP/1.1\r\nHost: gateway\r\nTransfer-Encoding: chunked\r\n\r\n<chunk>0\r\n\r\n",
    ),
];

const LINES: &[Row] = &[
    (
        "line feeds alone in the head",
        Hears("the lines are the same, and a gateway writes its own"),
        "POST /nowhere HTTP/1.1\nHost: gateway\nContent-Length: 1\n\n1<hidden>",
    ),
    (
        "a line feed alone before chunked",
        Hears("the lines are the same, and a gateway writes its own"),
        "<post>X: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n<hidden>",
    ),
    ("a line feed alone before a length", InBody, "<post>X: y\nContent-Length: <length>\r\n\r\n<hidden>"),
    (
        "a line feed that ends the head",
        Hears("the lines are the same, and a gateway writes its own"),
        "<post>Content-Length: 0\r\n\n<hidden>",
    ),
    (
        "a carriage return alone before chunked",
        Closes,
        "<post>X: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n<hidden>",
    ),
    (
        "a carriage return alone before a length",
        Closes,
        "<post>X: y\rContent-Length: <length>\r\n\r\n<hidden>",
    ),
    ("carriage returns alone end the head", Closes, "<post>X: y\r\r<hidden>"),
    ("a carriage return too many", Closes, "<post>Content-Length: <length>\r\r\n\r\n<hidden>"),
    ("a carriage return in a name", Closes, "<post>Transfer\r-Encoding: chunked\r\n\r\n0\r\n\r\n<hidden>"),
    ("a folded header", Closes, "<post>X: y\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n<hidden>"),
    ("a folded encoding", Closes, "<post>Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n<hidden>"),
    ("an encoding folded by a tab", Closes, "<post>Transfer-Encoding:\r\n\tchunked\r\n\r\n0\r\n\r\n<hidden>"),
    ("a folded length", Closes, "<post>Content-Length:\r\n <length>\r\n\r\n<hidden>"),
    (
        "a fold beside a length",
        Closes,
        "<post>Content-Length: <length>\r\nTransfer-Encoding:\r\n chunked\r\n\r\n<hidden>",
    ),
    ("empty lines before the request", PLAIN, "\r\n\r\n<post>Content-Length: 0\r\n\r\n<hidden>"),
    ("empty lines behind the body", PLAIN, "<post>Content-Length: 1\r\n\r\n1\r\n\r\n<hidden>"),
    ("a line without a colon", Closes, "<post>Transfer-Encoding\r\n\r\n<hidden>"),
    ("a line without a name", Closes, "<post>: chunked\r\n\r\n<hidden>"),
    ("a NUL in a name", Closes, "<post>Content\0-Length: <length>\r\n\r\n<hidden>"),
    ("a NUL in a value", Closes, "<post>X: a\0b\r\nContent-Length: <length>\r\n\r\n<hidden>"),
    ("a control character in a value", Closes, "<post>X: a\x01b\r\nContent-Length: <length>\r\n\r\n<hidden>"),
    ("a delete in a value", Closes, "<post>X: a\x7fb\r\nContent-Length: <length>\r\n\r\n<hidden>"),
    (
        "a letter beyond ASCII in a name",
        Closes,
        "<post>X-\u{e4}: b\r\nContent-Length: <length>\r\n\r\n<hidden>",
    ),
    (
        "a letter beyond ASCII in a value",
        InBody,
        "<post>X: \u{e4}\r\nContent-Length: <length>\r\n\r\n<hidden>",
    ),
    ("a head that is too large", Closes, "<post>X: <long>\r\nContent-Length: <length>\r\n\r\n<hidden>"),
];

const CHUNKS: &[Row] = &[
    ("an extension", PLAIN, "<post>Transfer-Encoding: chunked\r\n\r\n1;a=b\r\n1\r\n0\r\n\r\n<hidden>"),
    (
        "an extension in quotes",
        PLAIN,
        "<post>Transfer-Encoding: chunked\r\n\r\n1;a=\"b;c\"\r\n1\r\n0\r\n\r\n<hidden>",
    ),
    (
        "an extension on the last chunk",
        PLAIN,
        "<post>Transfer-Encoding: chunked\r\n\r\n0;a=b\r\n\r\n<hidden>",
    ),
    ("a line feed in an extension", Closes, "<post>Transfer-Encoding: chunked\r\n\r\n0;a\n\r\n\r\n<hidden>"),
    (
        "a line feed in an extension's quotes",
        Closes,
        "<post>Transfer-Encoding: chunked\r\n\r\n1;a=\"\n\"\r\n1\r\n0\r\n\r\n<hidden>",
    ),
    (
        "a line end in an extension's quotes",
        Closes,
        "<post>Transfer-Encoding: chunked\r\n\r\n1;a=\"\r\n\"\r\n1\r\n0\r\n\r\n<hidden>",
    ),
    (
        "a carriage return in an extension",
        Closes,
        "<post>Transfer-Encoding: chunked\r\n\r\n1;a\rb\r\n1\r\n0\r\n\r\n<hidden>",
    ),
    (
        "a request in an extension's line",
        Closes,
        "<post>Transfer-Encoding: chunked\r\n\r\n<size>;\n<hidden>\r\n0\r\n\r\n",
    ),
    (
        "a long extension",
        Closes,
        "<post>Transfer-Encoding: chunked\r\n\r\n1;a=<long>\r\n1\r\n0\r\n\r\n<hidden>",
    ),
    (
        "a size in C",
        Closes,
        "<post>Transfer-Encoding: chunked\r\n\r\n0x<size>\r\n<hidden>\r\n0\r\n\r\n<hidden>",
    ),
    ("no size in C", Closes, "<post>Transfer-Encoding: chunked\r\n\r\n0x\r\n\r\n<hidden>"),
    (
        "a size with a plus",
        Closes,
        "<post>Transfer-Encoding: chunked\r\n\r\n+<size>\r\n<hidden>\r\n0\r\n\r\n<hidden>",
    ),
    ("a size with a minus", Closes, "<post>Transfer-Encoding: chunked\r\n\r\n-0\r\n\r\n<hidden>"),
    ("a size with an underscore", Closes, "<post>Transfer-Encoding: chunked\r\n\r\n0_0\r\n\r\n<hidden>"),
    (
        "a size with zeros in front",
        InBody,
        "<post>Transfer-Encoding: chunked\r\n\r\n0000<size>\r\n<hidden>\r\n0\r\n\r\n",
    ),
    ("many zeros", PLAIN, "<post>Transfer-Encoding: chunked\r\n\r\n00000000000000000000\r\n\r\n<hidden>"),
    (
        "a space behind the size",
        PLAIN,
        "<post>Transfer-Encoding: chunked\r\n\r\n1 \r\n1\r\n0 \r\n\r\n<hidden>",
    ),
    (
        "a tab behind the size",
        PLAIN,
        "<post>Transfer-Encoding: chunked\r\n\r\n1\t\r\n1\r\n0\t\r\n\r\n<hidden>",
    ),
    (
        "a space before the size",
        Closes,
        "<post>Transfer-Encoding: chunked\r\n\r\n 1\r\n1\r\n0\r\n\r\n<hidden>",
    ),
    ("two sizes", Closes, "<post>Transfer-Encoding: chunked\r\n\r\n0 <size>\r\n\r\n<hidden>"),
    (
        "a size in capital letters",
        InBody,
        "<post>Transfer-Encoding: chunked\r\n\r\n<SIZE>\r\n<hidden>\r\n0\r\n\r\n",
    ),
    ("no size", Closes, "<post>Transfer-Encoding: chunked\r\n\r\n\r\n\r\n<hidden>"),
    ("an extension without a size", Closes, "<post>Transfer-Encoding: chunked\r\n\r\n;a\r\n\r\n<hidden>"),
    ("a size of no digits", Closes, "<post>Transfer-Encoding: chunked\r\n\r\nz\r\n<hidden>"),
    (
        "a size of 64 bits",
        Closes,
        "<post>Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\n<hidden>\r\n0\r\n\r\n",
    ),
    (
        "a size beyond 64 bits",
        Closes,
        "<post>Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n\r\n<hidden>",
    ),
    (
        "a size beyond 64 bits that ends small",
        Closes,
        "<post>Transfer-Encoding: chunked\r\n\r\n10000000000000001\r\n1\r\n0\r\n\r\n<hidden>",
    ),
    (
        "a size beyond 32 bits that ends small",
        Closes,
        "<post>Transfer-Encoding: chunked\r\n\r\n100000001\r\n1\r\n0\r\n\r\n<hidden>",
    ),
    (
        "a line feed behind the size",
        Closes,
        "<post>Transfer-Encoding: chunked\r\n\r\n1\n1\r\n0\r\n\r\n<hidden>",
    ),
    (
        "a line feed behind the data",
        Closes,
        "<post>Transfer-Encoding: chunked\r\n\r\n1\r\n1\n0\r\n\r\n<hidden>",
    ),
    ("a line feed behind the last size", Closes, "<post>Transfer-Encoding: chunked\r\n\r\n0\n\r\n<hidden>"),
    (
        "line feeds alone between the chunks",
        Closes,
        "<post>Transfer-Encoding: chunked\r\n\r\n1\n1\n0\n\n<hidden>",
    ),
    (
        "a line feed that ends the chunks",
        TRAILER,
        "<post>Transfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\n\n<hidden>",
    ),
    (
        "a carriage return behind the size",
        Closes,
        "<post>Transfer-Encoding: chunked\r\n\r\n1\r1\r\n0\r\n\r\n<hidden>",
    ),
    (
        "two carriage returns behind the size",
        Closes,
        "<post>Transfer-Encoding: chunked\r\n\r\n1\r\r\n1\r\n0\r\n\r\n<hidden>",
    ),
    (
        "any two bytes behind the data",
        Closes,
        "<post>Transfer-Encoding: chunked\r\n\r\n1\r\n1xx0\r\n\r\n<hidden>",
    ),
    (
        "a chunk that is longer than its size",
        Closes,
        "<post>Transfer-Encoding: chunked\r\n\r\n1\r\n12\r\n0\r\n\r\n<hidden>",
    ),
    ("no end of the chunks", Closes, "<post>Transfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\n<hidden>"),
    ("chunks that stop", Closes, "<post>Transfer-Encoding: chunked\r\n\r\n<chunk>"),
    ("a trailer", PLAIN, "<post>Transfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\nX: y\r\n\r\n<hidden>"),
    (
        "a length in the trailer",
        PLAIN,
        "<post>Transfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\nContent-Length: <length>\r\n\r\n<hidden>",
    ),
    (
        "chunks in the trailer",
        PLAIN,
        "<post>Transfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n<hidden>",
    ),
    (
        "a host in the trailer",
        PLAIN,
        "<post>Transfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\nHost: elsewhere\r\n\r\n<hidden>",
    ),
    (
        "a token in the trailer",
        PLAIN,
        "<post>Trailer: X-Callback-Token\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\nX-Callback-Token: cbt_x\r\n\r\n<hidden>",
    ),
    (
        "line feeds alone in the trailer",
        TRAILER,
        "<post>Transfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\nX: y\n\r\n<hidden>",
    ),
    (
        "a trailer without a colon",
        Closes,
        "<post>Transfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\nx\r\n\r\n<hidden>",
    ),
    (
        "a folded trailer",
        Closes,
        "<post>Transfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\nX: y\r\n z\r\n\r\n<hidden>",
    ),
    (
        "a trailer that is too large",
        Closes,
        "<post>Transfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\nX: <long>\r\n\r\n<hidden>",
    ),
];

const HEADS: &[Row] = &[
    (
        "an absolute target",
        PLAIN,
        "POST http://gateway/nowhere HTTP/1.1\r\nHost: gateway\r\nContent-Length: 0\r\n\r\n<hidden>",
    ),
    (
        "an absolute target of another host",
        PLAIN,
        "POST http://elsewhere/nowhere HTTP/1.1\r\nHost: gateway\r\nContent-Length: 0\r\n\r\n<hidden>",
    ),
    (
        "an absolute target of another scheme",
        PLAIN,
        "POST https://gateway/nowhere HTTP/1.1\r\nHost: gateway\r\nContent-Length: 0\r\n\r\n<hidden>",
    ),
    (
        "an absolute target without a path",
        PLAIN,
        "GET http://gateway HTTP/1.1\r\nHost: gateway\r\n\r\n<hidden>",
    ),
    (
        "an absolute target with a query alone",
        PLAIN,
        "GET http://gateway?a=b HTTP/1.1\r\nHost: gateway\r\n\r\n<hidden>",
    ),
    (
        "a target with a user",
        PLAIN,
        "GET http://user:secret@gateway/nowhere HTTP/1.1\r\nHost: gateway\r\n\r\n<hidden>",
    ),
    (
        "a user on the other side of the host",
        PLAIN,
        "GET http://gateway@elsewhere/nowhere HTTP/1.1\r\nHost: gateway\r\n\r\n<hidden>",
    ),
    ("two slashes", PLAIN, "GET //elsewhere/nowhere HTTP/1.1\r\nHost: gateway\r\n\r\n<hidden>"),
    ("a target without a slash", PLAIN, "GET nowhere HTTP/1.1\r\nHost: gateway\r\n\r\n<hidden>"),
    ("a fragment", PLAIN, "GET /nowhere#a HTTP/1.1\r\nHost: gateway\r\n\r\n<hidden>"),
    ("a path with dots", PLAIN, "GET /a/../../nowhere HTTP/1.1\r\nHost: gateway\r\n\r\n<hidden>"),
    (
        "a line end in the path, encoded",
        PLAIN,
        "GET /a%0d%0aX:%20y HTTP/1.1\r\nHost: gateway\r\n\r\n<hidden>",
    ),
    (
        "a request in the path, encoded",
        PLAIN,
        "GET /a%20HTTP/1.1%0d%0aHost:%20x%0d%0a%0d%0aGET%20/smuggled HTTP/1.1\r\nHost: gateway\r\n\r\n<hidden>",
    ),
    ("a NUL in the path", Closes, "GET /a\0b HTTP/1.1\r\nHost: gateway\r\n\r\n<hidden>"),
    ("a NUL in the path, encoded", PLAIN, "GET /a%00b HTTP/1.1\r\nHost: gateway\r\n\r\n<hidden>"),
    ("a control character in the path", Closes, "GET /a\x01b HTTP/1.1\r\nHost: gateway\r\n\r\n<hidden>"),
    ("a letter beyond ASCII in the path", PLAIN, "GET /\u{e4} HTTP/1.1\r\nHost: gateway\r\n\r\n<hidden>"),
    ("a space in the path", Closes, "GET /a b HTTP/1.1\r\nHost: gateway\r\n\r\n<hidden>"),
    ("a version in the path", Closes, "GET /a HTTP/1.1 HTTP/1.1\r\nHost: gateway\r\n\r\n<hidden>"),
    ("a tab between the words", Closes, "GET\t/nowhere\tHTTP/1.1\r\nHost: gateway\r\n\r\n<hidden>"),
    ("two spaces between the words", Closes, "GET  /nowhere  HTTP/1.1\r\nHost: gateway\r\n\r\n<hidden>"),
    ("the whole server", PLAIN, "OPTIONS * HTTP/1.1\r\nHost: gateway\r\n\r\n<hidden>"),
    ("the whole server, asked by a GET", PLAIN, "GET * HTTP/1.1\r\nHost: gateway\r\n\r\n<hidden>"),
    ("a tunnel", TUNNEL, "CONNECT gateway:80 HTTP/1.1\r\nHost: gateway\r\n\r\n<hidden>"),
    ("a tunnel to a path", TUNNEL, "CONNECT /nowhere HTTP/1.1\r\nHost: gateway\r\n\r\n<hidden>"),
    (
        "a tunnel with a length",
        InBody,
        "CONNECT gateway:80 HTTP/1.1\r\nHost: gateway\r\nContent-Length: <length>\r\n\r\n<hidden>",
    ),
    ("a trace", PLAIN, "TRACE /nowhere HTTP/1.1\r\nHost: gateway\r\n\r\n<hidden>"),
    ("a method in small letters", PLAIN, "get /nowhere HTTP/1.1\r\nHost: gateway\r\n\r\n<hidden>"),
    (
        "a method of mixed letters",
        PLAIN,
        "Post /nowhere HTTP/1.1\r\nHost: gateway\r\nContent-Length: 0\r\n\r\n<hidden>",
    ),
    ("a method that nobody knows", PLAIN, "SMUGGLE /nowhere HTTP/1.1\r\nHost: gateway\r\n\r\n<hidden>"),
    ("a method of signs", Closes, "G@T /nowhere HTTP/1.1\r\nHost: gateway\r\n\r\n<hidden>"),
    ("HTTP/1.0", Closes, "POST /nowhere HTTP/1.0\r\nContent-Length: 0\r\n\r\n<hidden>"),
    (
        "HTTP/1.0 that is kept",
        PLAIN,
        "POST /nowhere HTTP/1.0\r\nHost: gateway\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n<hidden>",
    ),
    (
        "HTTP/1.0 in chunks",
        Closes,
        "POST /nowhere HTTP/1.0\r\nHost: gateway\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n<hidden>",
    ),
    (
        "HTTP/1.0 in chunks that is kept",
        Closes,
        "POST /nowhere HTTP/1.0\r\nHost: gateway\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n<hidden>",
    ),
    (
        "HTTP/1.0 in chunks with a length",
        Closes,
        "POST /nowhere HTTP/1.0\r\nHost: gateway\r\nConnection: keep-alive\r\nContent-Length: <length>\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n<hidden>",
    ),
    ("HTTP/0.9", Closes, "GET /nowhere\r\n<hidden>"),
    ("HTTP/0.9 by name", Closes, "GET /nowhere HTTP/0.9\r\n\r\n<hidden>"),
    ("HTTP/1.2", Closes, "GET /nowhere HTTP/1.2\r\nHost: gateway\r\n\r\n<hidden>"),
    ("HTTP/2.0 by name", Closes, "GET /nowhere HTTP/2.0\r\nHost: gateway\r\n\r\n<hidden>"),
    ("HTTP/01.1", Closes, "GET /nowhere HTTP/01.1\r\nHost: gateway\r\n\r\n<hidden>"),
    ("http in small letters", Closes, "GET /nowhere http/1.1\r\nHost: gateway\r\n\r\n<hidden>"),
    ("HTTP/2's first words", Closes, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n<hidden>"),
    ("no request at all", Closes, "hello\r\n\r\n<hidden>"),
    ("TLS", Closes, "\x16\x03\x01\0\x7f\x01\0\0{\x03\x03<hidden>"),
    ("the host twice", PLAIN, "<post>Host: elsewhere\r\nContent-Length: 0\r\n\r\n<hidden>"),
    ("one host twice", PLAIN, "<post>Host: gateway\r\nContent-Length: 0\r\n\r\n<hidden>"),
    ("hosts in a list", PLAIN, "GET /nowhere HTTP/1.1\r\nHost: gateway, elsewhere\r\n\r\n<hidden>"),
    ("no host", PLAIN, "GET /nowhere HTTP/1.1\r\n\r\n<hidden>"),
    ("an empty host", PLAIN, "GET /nowhere HTTP/1.1\r\nHost:\r\n\r\n<hidden>"),
    ("a path in the host", PLAIN, "GET /nowhere HTTP/1.1\r\nHost: gateway/a?b\r\n\r\n<hidden>"),
    ("a token with underscores", PLAIN, "<post>X_Callback_Token: cbt_x\r\nContent-Length: 0\r\n\r\n<hidden>"),
    (
        "an id with underscores",
        PLAIN,
        "<post>X_Request_Id: 0190a0a0-0000-7000-8000-000000000000\r\nContent-Length: 0\r\n\r\n<hidden>",
    ),
    (
        "an id of the attacker's",
        PLAIN,
        "<post>X-Request-Id: 0190a0a0-0000-7000-8000-000000000000\r\nContent-Length: 0\r\n\r\n<hidden>",
    ),
];

const CONNECTIONS: &[Row] = &[
    ("an expectation", PLAIN, "<post>Expect: 100-continue\r\nContent-Length: 1\r\n\r\n1<hidden>"),
    ("an expectation without a body", PLAIN, "<post>Expect: 100-continue\r\n\r\n<hidden>"),
    ("an expectation of no length", PLAIN, "<post>Expect: 100-continue\r\nContent-Length: 0\r\n\r\n<hidden>"),
    (
        "an expectation before a request",
        InBody,
        "<post>Expect: 100-continue\r\nContent-Length: <length>\r\n\r\n<hidden>",
    ),
    (
        "an expectation before chunks",
        InBody,
        "<post>Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n<chunk>0\r\n\r\n",
    ),
    (
        "an expectation of a GET",
        InBody,
        "GET /nowhere HTTP/1.1\r\nHost: gateway\r\nExpect: 100-continue\r\nContent-Length: <length>\r\n\r\n<hidden>",
    ),
    (
        "an expectation that nobody knows",
        PLAIN,
        "<post>Expect: x 100-continue\r\nContent-Length: 1\r\n\r\n1<hidden>",
    ),
    (
        "two expectations",
        InBody,
        "<post>Expect: 100-continue\r\nExpect: y\r\nContent-Length: <length>\r\n\r\n<hidden>",
    ),
    ("a connection to be closed", Closes, "<post>Connection: close\r\nContent-Length: 0\r\n\r\n<hidden>"),
    ("a connection to be kept", PLAIN, "<post>Connection: keep-alive\r\nContent-Length: 0\r\n\r\n<hidden>"),
    (
        "a connection to be closed and kept",
        Closes,
        "<post>Connection: close, keep-alive\r\nContent-Length: 0\r\n\r\n<hidden>",
    ),
    (
        "a connection in two lines",
        Closes,
        "<post>Connection: keep-alive\r\nConnection: close\r\nContent-Length: 0\r\n\r\n<hidden>",
    ),
    (
        "a host that the connection names",
        PLAIN,
        "<post>Connection: Host\r\nContent-Length: 0\r\n\r\n<hidden>",
    ),
    (
        "an id that the connection names",
        PLAIN,
        "<post>Connection: X-Request-Id, X-Forwarded-For\r\nContent-Length: 0\r\n\r\n<hidden>",
    ),
    (
        "an upgrade to HTTP/2",
        PLAIN,
        "<post>Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nContent-Length: 0\r\n\r\n<hidden>",
    ),
    (
        "an upgrade to HTTP/2 by a GET",
        PLAIN,
        "GET /nowhere HTTP/1.1\r\nHost: gateway\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n<hidden>",
    ),
    (
        "an upgrade to WebSocket",
        PLAIN,
        "GET /nowhere HTTP/1.1\r\nHost: gateway\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n<hidden>",
    ),
    (
        "an upgrade to an old WebSocket",
        PLAIN,
        "GET /nowhere HTTP/1.1\r\nHost: gateway\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 777\r\n\r\n<hidden>",
    ),
    (
        "an upgrade with a request as its body",
        InBody,
        "<post>Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: <length>\r\n\r\n<hidden>",
    ),
    (
        "an upgrade to TLS",
        PLAIN,
        "OPTIONS /nowhere HTTP/1.1\r\nHost: gateway\r\nConnection: Upgrade\r\nUpgrade: TLS/1.3\r\n\r\n<hidden>",
    ),
    (
        "a request behind one without a token",
        PLAIN,
        "POST /api/v1/webhooks/callbacks HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\nContent-Length: 1\r\n\r\n1<hidden>",
    ),
    ("a request behind an empty callback", PLAIN, "<post>Content-Length: 0\r\n\r\n<hidden>"),
    ("a request behind one that is not JSON", PLAIN, "<post>Content-Length: 1\r\n\r\n{<hidden>"),
    (
        "a request behind one of another type",
        PLAIN,
        "POST /api/v1/webhooks/callbacks HTTP/1.1\r\nHost: gateway\r\nContent-Type: text/plain\r\nContent-Length: 1\r\n\r\n1<hidden>",
    ),
    (
        "a request behind a method that is not allowed",
        PLAIN,
        "DELETE /api/v1/webhooks/callbacks HTTP/1.1\r\nHost: gateway\r\nContent-Length: 1\r\n\r\n1<hidden>",
    ),
    ("a request behind a probe", PLAIN, "GET /health HTTP/1.1\r\nHost: gateway\r\n\r\n<hidden>"),
    (
        "a request behind a path that is too long",
        Closes,
        "GET /<long> HTTP/1.1\r\nHost: gateway\r\n\r\n<hidden>",
    ),
    ("a request behind a body that is too large", Closes, "<post>Content-Length: 99999999\r\n\r\n<hidden>"),
    (
        "half a request behind a whole one",
        InBody,
        "<post>Content-Length: 0\r\n\r\nGET /smuggled HTTP/1.1\r\nX: ",
    ),
];

/// An attack with its placeholders replaced.
#[derive(Clone, Debug)]
pub(super) struct Attack {
    pub(super) name: &'static str,
    pub(super) direct: Direct,
    text: &'static str,
}

/// All of them.
pub(super) fn all() -> Vec<Attack> {
    let all = [LENGTHS, ENCODINGS, LINES, CHUNKS, HEADS, CONNECTIONS].concat();
    all.into_iter().map(|(name, direct, text)| Attack { name, direct, text }).collect()
}

impl Attack {
    /// Whether the two forms of [`Attack::bytes`] differ.
    pub(super) fn has_post(&self) -> bool {
        self.text.contains("<post>")
    }

    /// Its bytes. The outer request is a callback with a valid token, whose body the service reads, or one to an unknown
    /// path, which is answered without reading the body.
    pub(super) fn bytes(&self, number: usize, outer_token: Option<&str>, hidden_token: &str) -> Vec<u8> {
        let head = |target: &str| {
            format!("POST {target} HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n")
        };
        let post = match outer_token {
            Some(token) => format!("{}X-Callback-Token: {token}\r\n", head(&outer_target(number))),
            None => head(&format!("/nowhere?outer={number}")),
        };
        let hidden = format!(
            "{}X-Callback-Token: {hidden_token}\r\nContent-Length: 1\r\n\r\n1\
             GET /smuggled-{number} HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n",
            head(&hidden_target(number))
        );
        let text = self.text.replace("<chunk>", "<size>\r\n<hidden>\r\n");
        let text = text.replace("<post>", &post).replace("<length>", &hidden.len().to_string());
        let text = text.replace("<size>", &format!("{:x}", hidden.len()));
        let text = text.replace("<SIZE>", &format!("{:X}", hidden.len()));
        text.replace("<long>", &"x".repeat(20_000)).replace("<hidden>", &hidden).into_bytes()
    }
}

/// The target of an attack's hidden callback.
pub(super) fn hidden_target(number: usize) -> String {
    format!("{CALLBACKS}?hidden={number}")
}

/// The target of an attack's outer request, if it is a callback.
pub(super) fn outer_target(number: usize) -> String {
    format!("{CALLBACKS}?outer={number}")
}
