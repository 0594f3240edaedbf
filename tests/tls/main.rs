//! TLS and listeners over real sockets: what clients and podgate agree on, certificates that change
//! while they are in use, and every kind of place where clients come in.

#[allow(dead_code, reason = "made for more tests than these")]
#[path = "../sockets/support.rs"]
mod support;
#[allow(dead_code, reason = "made for more tests than these")]
#[path = "../sockets/scripted.rs"]
mod scripted;
#[allow(dead_code, reason = "made for more tests than these")]
#[path = "../sockets/process.rs"]
mod process;
mod authority;
mod client;

mod agreed;
mod asked;
mod leaving;
mod rotation;
mod places;
mod reloaded;
