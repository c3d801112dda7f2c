//! Conformance suites: what an implementation of one of this crate's traits has to do, as checks that anybody can run
//! over their own. They panic where an assertion of a test would, and know nothing of any implementation. And
//! [`TestStore`], with which a service tests itself.

pub mod client_suite;
mod test_store;
pub mod vfs_suite;

pub use test_store::{Crash, Failure, TestStore};
