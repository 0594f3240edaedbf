//! podgate as it runs, over real sockets: clients, two worker threads, and an emulated upstream that
//! is the witness of what was promised.

mod support;
mod scripted;
mod process;
mod frames;

mod through;
mod records;
mod saturation;
mod disconnects;
mod permits;
mod draining;
mod slow;
mod crowds;
mod full;
