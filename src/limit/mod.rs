//! How we count, and who is next: pure.
pub mod quota;
