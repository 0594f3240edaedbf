//! podgate: the map. Modules in reading order, lowest floor first; no module imports one of a floor
//! above its own, and a test reads every path to see to it.

pub mod operation;
pub mod outcome;
pub mod text;
pub mod notify;
pub mod limit;
pub mod metrics;
pub mod tls;
pub mod config;
pub mod levels;
pub mod access_log;
pub mod otlp;
pub mod admission;
pub mod state;
pub mod reload;
pub mod gateway;
pub mod admin;
pub mod listener;
pub mod serve;
pub mod emulator;
pub mod demo;
