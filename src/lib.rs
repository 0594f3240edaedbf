//! podgate: the map. Modules in reading order, lowest floor first.

pub mod operation;
pub mod limit;
pub mod config;
pub mod emulator;
