//! The emulator over real sockets, row by row of the contract. Which row is which test is said at the
//! head of each file; what needs no socket is tested without, at exact times.

mod support;

mod table;
mod operations;
mod edges;
mod states;
mod webhooks;
mod errors;
mod openai;
mod limits;
mod faults;
mod naive;
mod naive_gateway;
mod naive_sockets;
mod cli;
