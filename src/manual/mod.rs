//! The manual: what the crate promises, how it keeps it, and where its limits are.

#[doc = include_str!("architecture.md")]
pub mod architecture {}

#[doc = include_str!("format.md")]
pub mod format {}

#[doc = include_str!("durability.md")]
pub mod durability {}

#[doc = include_str!("recovery.md")]
pub mod recovery {}

#[doc = include_str!("compaction.md")]
pub mod compaction {}

#[doc = include_str!("clients.md")]
pub mod clients {}

#[doc = include_str!("groups.md")]
pub mod groups {}

#[doc = include_str!("limits.md")]
pub mod limits {}

#[doc = include_str!("unsafe.md")]
pub mod unsafe_code {}
