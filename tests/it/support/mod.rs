//! What tests are made of: directories as a broker leaves them (`broker`); and for crashes what a log may hold (`oracle`),
//! what is done to it (`ops`), and the disks that a crash leaves (`simulate`); a file system over another (`layered`), and upkeep
//! until it rests (`upkeep`).

pub(crate) mod broker;
pub(crate) mod layered;
pub(crate) mod ops;
pub(crate) mod oracle;
pub(crate) mod simulate;
pub(crate) mod upkeep;
