//! Tests that see the crate as a user does.
#![allow(clippy::unwrap_used, reason = "helpers of tests, too, end the test where something fails")]

mod simulator;
mod suites;
