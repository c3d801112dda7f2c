//! Waiting for news: one bell for a store, rung by whoever publishes an end, closes or gives up.
//!
//! Ringing costs one atomic operation while nobody waits. A waiter takes a [`Listener`] first, looks whether what it wants is
//! there, and waits only then: what is published between the two wakes it. A bell does not say what the news is.

use std::sync::Arc;
use std::time::Duration;

use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Condvar, Mutex};

/// The bell.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    /// Everybody who listens. Read and written by read-modify-write alone: either the one who rings sees the listener, or
    /// the listener sees what was published before.
    listeners: AtomicUsize,
    rung: Mutex<u64>,
    changed: Condvar,
    /// Wakes tasks, as `changed` wakes threads.
    #[cfg(feature = "async")]
    tasks: event_listener::Event,
}

impl Bell {
    /// Wakes all who listen.
    #[inline]
    pub(crate) fn ring(&self) {
        if self.listeners.fetch_add(0, Ordering::AcqRel) > 0 {
            self.ring_loudly();
        }
    }

    #[cold]
    fn ring_loudly(&self) {
        *self.rung.lock() += 1;
        self.changed.notify_all();
        #[cfg(feature = "async")]
        self.tasks.notify(usize::MAX);
    }

    /// Begins to listen: rings from now on are heard.
    pub(crate) fn listen(self: &Arc<Self>) -> Listener {
        self.listeners.fetch_add(1, Ordering::AcqRel);
        Listener {
            bell: Arc::clone(self),
            heard: *self.rung.lock(),
            #[cfg(feature = "async")]
            task: None,
        }
    }
}

/// Somebody who listens.
#[derive(Debug)]
pub(crate) struct Listener {
    bell: Arc<Bell>,
    heard: u64,
    /// The task that waits, from the time it first found nothing.
    #[cfg(feature = "async")]
    task: Option<event_listener::EventListener>,
}

impl Listener {
    /// Returns once the bell has rung since this listener was made or last waited, at the latest after `time`. It may return
    /// early, so that the caller looks again.
    pub(crate) fn wait(&mut self, time: Duration) {
        let mut rung = self.bell.rung.lock();
        if *rung == self.heard {
            self.bell.changed.wait_for(&mut rung, time);
        }
        self.heard = *rung;
    }

    /// [`wait`](Self::wait) for a task.
    #[cfg(feature = "async")]
    pub(crate) fn poll_wait(&mut self, context: &mut std::task::Context<'_>) -> std::task::Poll<()> {
        use std::future::Future as _;
        use std::task::Poll;
        loop {
            // Enlisted before the look, so that a ring between the two is not missed.
            let task = self.task.get_or_insert_with(|| self.bell.tasks.listen());
            let rung = *self.bell.rung.lock();
            if rung != self.heard {
                (self.heard, self.task) = (rung, None);
                return Poll::Ready(());
            }
            match std::pin::Pin::new(task).poll(context) {
                Poll::Pending => return Poll::Pending,
                // Woken for a ring that was heard already, or for one that the next look sees.
                Poll::Ready(()) => self.task = None,
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.bell.listeners.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_between_the_look_and_the_wait_is_heard() {
        let bell = Arc::new(Bell::default());
        let mut listener = bell.listen();
        bell.ring();
        // Would otherwise take an hour.
        listener.wait(Duration::from_secs(3600));
        drop(listener);
        assert_eq!(bell.listeners.load(Ordering::SeqCst), 0);
        bell.ring();
        assert_eq!(*bell.rung.lock(), 1, "nobody listens, so nobody is woken");
    }

    #[test]
    fn a_waiter_is_woken_by_another_thread() {
        let bell = Arc::new(Bell::default());
        let mut listener = bell.listen();
        std::thread::scope(|scope| {
            scope.spawn(|| bell.ring());
            listener.wait(Duration::from_secs(3600));
        });
    }
}
