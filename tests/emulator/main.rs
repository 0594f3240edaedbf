//! The emulator over real sockets, row by row of the contract.

mod support;

mod operations;
mod states;
mod errors;
mod limits;
mod faults;
mod openai;
mod naive;
mod cli;
