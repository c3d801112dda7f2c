//! One test binary: the crate as its users see it.
#![allow(clippy::disallowed_methods, reason = "tests read fixtures as plain files")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test stops at the first surprise and says why")]

mod api;
mod codec_props;
mod crashes;
mod damage;
mod golden;
mod kafka_dirs;
mod kernel;
mod layers;
mod processes;
mod simulator;
mod suites;
mod support;
