//! How we count, and who is next: pure. No clock, lock, I/O, runtime, HTTP or logging; time comes
//! in as `now`, and every promise can be checked by whoever can read plain Rust.
//!
//! Read upwards: [`quota`] are the units, [`window_guard`] and [`token_bucket`] what counts,
//! [`ledger`] both and the permits taken as one; [`fair_queue`] is who is next, [`throttle`] what
//! the upstream taught us, [`lane`] both; [`local`] a lane before its own ledger.

pub mod quota;
pub mod window_guard;
pub mod token_bucket;
pub mod ledger;
pub mod flow;
pub mod levels;
pub mod lengths;
pub mod fair_queue;
pub mod deadlines;
pub mod ladder;
pub mod throttle;
pub mod estimate;
pub mod lane;
pub mod memory;
pub mod local;
