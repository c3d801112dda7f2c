//! One test binary: the crate as its users see it.
#![allow(clippy::disallowed_methods, reason = "tests read fixtures as plain files")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test stops at the first surprise and says why")]

mod api;
mod codec_props;
mod crashes;
mod damage;
mod damage_sweeps;
mod durability;
mod golden;
mod interop;
mod kafka_dirs;
mod kafka_variants;
mod kernel;
mod kills;
mod layers;
mod own_format;
mod processes;
mod regressions;
mod simulator;
mod suites;
mod support;
mod tools;
mod topics;
