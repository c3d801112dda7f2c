//! Waiting until a group has come to a position.

use std::time::Duration;

use super::offset_store::Groups;
use crate::error::Result;
use crate::position::Position;
use crate::store::Store;
use crate::store::waits::Look;

impl Groups {
    /// Waits until a group has committed everything below a position. A partition for which it has committed nothing yet counts
    /// as behind.
    ///
    /// # Errors
    /// [`Error::Timeout`](crate::Error::Timeout); at once: [`Error::PositionLost`](crate::Error::PositionLost) if the log was cut or
    /// the topic made again since the position was taken, [`Error::Poisoned`](crate::Error::Poisoned) if a sync failed, so that it
    /// can never be read or committed, [`Error::UnknownTopic`](crate::Error::UnknownTopic) once the topic is deleted,
    /// [`Error::Closed`](crate::Error::Closed) once the store is closed; those of reading the offsets.
    ///
    /// ```
    /// use std::time::Duration;
    /// use topiclog::client::OffsetAndMetadata;
    /// use topiclog::group::Groups;
    /// use topiclog::{Error, Record, Store, TopicConfig};
    /// let store = Store::in_memory()?;
    /// let orders = store.create_topic("orders", TopicConfig::default())?;
    /// let placed = orders.append(Record::of_value("placed"))?.position();
    /// let groups = Groups::open(&store)?;
    /// assert!(matches!(groups.wait_for("billing", &placed, Duration::ZERO), Err(Error::Timeout { .. })));
    /// groups.commit("billing", &[(orders.partition(0)?.id().clone(), OffsetAndMetadata::new(1))])?;
    /// groups.wait_for("billing", &placed, Duration::ZERO)?;
    /// # store.close()?;
    /// # Ok::<(), topiclog::Error>(())
    /// ```
    pub fn wait_for(&self, group: &str, position: &Position, timeout: Duration) -> Result<()> {
        let what = format!("until {group:?} has committed {position}");
        self.store().wait_until(&what, timeout, &self.has_committed(group, position))
    }

    /// [`wait_for`](Self::wait_for) as a future, without a time-out.
    ///
    /// # Errors
    /// As [`wait_for`](Self::wait_for), but for `Timeout`.
    #[cfg(feature = "async")]
    pub fn wait_for_async(&self, group: &str, position: &Position) -> impl Future<Output = Result<()>> + Send + use<> {
        self.store().until(self.has_committed(group, position))
    }

    fn has_committed(&self, group: &str, position: &Position) -> Look {
        let (groups, group, position) = (self.clone(), group.to_owned(), position.clone());
        Box::new(move |store: &Store| {
            store.check_not_lost(&position)?;
            // Not yet; and never, if a log that it takes is poisoned.
            let may_commit = || {
                store.is_readable(&position)?;
                groups.check_commits_can_come(&group)?;
                Ok(false)
            };
            for (id, at) in position.iter() {
                let Some(committed) = groups.committed(&group, id)? else { return may_commit() };
                let topic_id = store.topic(id.topic.as_str())?.id();
                let is_of_this = committed.topic_id.is_none_or(|of| of == topic_id);
                if !is_of_this || committed.offset < at.next_offset().get() {
                    return may_commit();
                }
            }
            Ok(true)
        })
    }
}
