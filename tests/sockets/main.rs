//! podgate as it runs, over real sockets: clients, two worker threads, and an emulated upstream that
//! is the witness of what was promised.

mod support;
mod scripted;
mod raw;
mod process;
mod frames;

mod through;
mod records;
mod routes;
mod threats;
mod uploads;
mod saturation;
mod disconnects;
mod disconnects_h2;
mod permits;
mod retries;
mod half_closed;
mod hostile_upstream;
mod connecting;
mod answers_ahead;
mod races;
mod draining;
mod signals;
mod slow;
mod crowds;
mod h2;
mod another_h2;
mod over_http2;
mod abuse;
mod full;
