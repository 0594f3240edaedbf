//! The upstream's rules, written naively: an emulator of the Runpod Serverless job API.
//!
//! Imports nothing of the limiter it is a witness for.

pub mod policer;
pub mod witness;
pub mod door;
