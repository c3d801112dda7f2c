//! Tests that see the crate as a user does.
mod simulator;
mod suites;
