//! What the crash tests are made of: what a log may hold (`oracle`), what is done to it (`ops`), and the disks that a
//! crash leaves (`simulate`).

pub(crate) mod ops;
pub(crate) mod oracle;
pub(crate) mod simulate;
