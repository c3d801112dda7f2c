//! The manual.
#[doc = include_str!("recovery.md")]
pub mod recovery {}
