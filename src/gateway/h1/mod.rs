//! HTTP/1.1 as it is spoken with the upstream, without I/O: bytes in, what they mean out. Heads are
//! read by httparse, as hyper's own client reads them; where a body ends (RFC 9112, section 6.3) is
//! decided here.
//!
//! hyper's client would do it in a task of its own for each connection, with a channel between: half
//! of what a small request costs. What this takes and refuses is compared with it in the tests.

pub mod chunks;
pub mod head;
pub mod request;
