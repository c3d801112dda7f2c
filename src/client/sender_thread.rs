//! The one thread of a producer.

use std::sync::Arc;

use super::sender::Sender;
use crate::error::{Error, Result};

/// Starts it, if it does not run yet. It ends by itself when the producer is closed or dropped; nobody waits for that.
pub(super) fn start(sender: &Arc<Sender>) -> Result<()> {
    let mut state = sender.state.lock();
    if state.has_thread {
        return Ok(());
    }
    let runs = Arc::clone(sender);
    let spawned = crate::sync::thread::Builder::new().name("topiclog-producer".into()).spawn(move || runs.run());
    spawned.map_err(|error| Error::io("start the thread of", "a producer".as_ref(), error))?;
    state.has_thread = true;
    Ok(())
}
