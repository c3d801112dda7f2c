//! The one thread of a producer.

use std::sync::Arc;

use super::sender::Sender;
use crate::error::{Error, Result};

/// Starts it. It ends by itself when the producer is closed or dropped; nobody waits for that.
pub(super) fn start(sender: &Arc<Sender>) -> Result<()> {
    let runs = Arc::clone(sender);
    let spawned = crate::sync::thread::Builder::new().name("topiclog-producer".into()).spawn(move || runs.run());
    spawned.map(drop).map_err(|error| Error::io("start the thread of", "a producer".as_ref(), error))
}
