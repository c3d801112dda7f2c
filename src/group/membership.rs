//! Members of the groups of an open store: each group's coordinator, driven by the store's clock, and what it decided kept in
//! `__consumer_offsets`.
//!
//! A step runs under the lock of its group. What it decided is appended there too, and so is a commit that a member makes, so
//! that no commit of a generation stands behind the end of it. The sync of that append is awaited without the lock, and only
//! then the answers go out.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use super::coordinator::{GroupCoordinator, GroupState, Refusal, Replies, Reply, RequestId};
use super::schema::MemberMetadata;
use crate::clock::Clock;
use crate::clock::deadline::Deadline;
use crate::clock::notify::{Bell, Listener};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Where the members are that run in the process of the store: they cannot outlive it.
pub(crate) const IN_PROCESS: &str = "in-process";

/// Whether a member that was kept may still be there when its store is opened again. A static member of this process may
/// come back under its name.
pub(super) fn may_live(member: &MemberMetadata) -> bool {
    member.client_host != IN_PROCESS || member.group_instance_id.is_some()
}

/// The answer to a join or a sync, which may come later. Dropping it tells nobody: the member then looks as if it were slow.
///
/// ```
/// use std::time::Duration;
/// use topiclog::Store;
/// use topiclog::client::GroupMetadata;
/// use topiclog::group::{Groups, JoinRequest, Reply};
/// let store = Store::in_memory()?;
/// let groups = Groups::open(&store)?;
/// let join = JoinRequest {
///     member_id: String::new(),
///     new_member_id: "m-1".into(),
///     protocol_type: "consumer".into(),
///     client_id: "billing".into(),
///     client_host: "10.0.0.7".into(),
///     group_instance_id: None,
///     session_timeout_ms: 45_000,
///     rebalance_timeout_ms: 60_000,
///     protocols: vec![("range".into(), "orders".into())],
/// };
/// let answer = groups.join("billing", join)?;
/// let Some(Reply::Joined(Ok(joined))) = answer.wait(Duration::ZERO) else { panic!("it waits for nobody") };
/// let member = GroupMetadata::new("billing", joined.generation, &joined.member_id, None);
/// groups.sync(&member, vec![("m-1".into(), "all".into())])?;
/// assert!(groups.heartbeat(&member)?.is_ok());
/// # store.close()?;
/// # Ok::<(), topiclog::Error>(())
/// ```
#[derive(Debug)]
pub struct Answer {
    reply: Arc<Mutex<Option<Reply>>>,
    bell: Arc<Bell>,
    clock: Arc<dyn Clock>,
}

impl Answer {
    /// The answer, if it is there. It is given once.
    pub fn take(&self) -> Option<Reply> {
        self.reply.lock().take()
    }

    /// Waits for the answer, at most so long; not at all where the clock is moved by hand. Time-outs of other members do not end
    /// it by themselves: [`Groups::tick`](super::Groups::tick) does that.
    pub fn wait(&self, timeout: Duration) -> Option<Reply> {
        let mut listener: Listener = self.bell.listen();
        let deadline = Deadline::after(&*self.clock, timeout);
        loop {
            if let Some(reply) = self.take() {
                return Some(reply);
            }
            // Appends and commits of others ring as well.
            let left = deadline.left(&*self.clock);
            if left.is_zero() || self.clock.is_manual() {
                return None;
            }
            listener.wait(left);
        }
    }
}

/// How many others each use of a group looks at, to find what nobody uses any more.
pub(super) const OTHERS_AT_ONCE: usize = 2;

/// Groups that somebody uses in this process, or has used until a moment ago.
#[derive(Default)]
pub(super) struct LiveGroups {
    pub(super) by_name: BTreeMap<String, Arc<LiveGroup>>,
    /// The one that was looked at last.
    looked_at: String,
}

impl LiveGroups {
    /// The group; made if it is not there.
    pub(super) fn get_or_make(&mut self, name: &str, now_ms: impl FnOnce() -> u64) -> Arc<LiveGroup> {
        if let Some(found) = self.by_name.get(name) {
            return Arc::clone(found);
        }
        // Who only ever makes new ones, and takes no step in them, is not to pile them up.
        let now_ms = now_ms();
        for _ in 0..OTHERS_AT_ONCE {
            self.look_at_next(now_ms);
        }
        Arc::clone(self.by_name.entry(name.to_owned()).or_default())
    }

    /// Forgets a group without members that nobody holds on to: everything about it is in the log.
    pub(super) fn forget_unused(&mut self, name: &str) {
        // Others take hold of it under the lock of all groups alone.
        if self.by_name.get(name).is_some_and(|live| Arc::strong_count(live) == 1 && live.is_unused()) {
            self.by_name.remove(name);
        }
    }

    /// Looks at the next group in turn: it is forgotten if it is not used. Returns its name if a step of it has something to do
    /// and nobody is there who takes one.
    pub(super) fn look_at_next(&mut self, now_ms: u64) -> Option<String> {
        let behind = (Bound::Excluded(self.looked_at.as_str()), Bound::Unbounded);
        let next = self.by_name.range::<str, _>(behind).next().or_else(|| self.by_name.iter().next());
        let name = next.map(|(name, _)| name.clone())?;
        self.looked_at.clone_from(&name);
        self.forget_unused(&name);
        let is_left_alone = |live: &&Arc<LiveGroup>| Arc::strong_count(live) == 1 && live.is_due(|| now_ms);
        self.by_name.get(&name).filter(is_left_alone).map(|_| name)
    }
}

/// A group with members, as they are in this process.
#[derive(Default)]
pub(crate) struct LiveGroup {
    pub(super) state: Mutex<LiveState>,
    /// Members that were dropped, and have not been taken out yet: to drop one neither waits nor writes.
    departed: Mutex<Vec<String>>,
    /// Changes with each step that changed something.
    version: AtomicU64,
}

#[derive(Default)]
pub(super) struct LiveState {
    pub(super) coordinator: Option<GroupCoordinator>,
    waiting: BTreeMap<RequestId, Arc<Mutex<Option<Reply>>>>,
    last_request: RequestId,
    /// Revision of the coordinator that is kept.
    pub(super) kept_revision: u64,
    /// Whether it is noted as a group in use.
    pub(super) is_noted: bool,
}

impl LiveState {
    /// The coordinator, which was read in when the group was locked.
    pub(super) fn coordinator_mut(&mut self) -> &mut GroupCoordinator {
        self.coordinator.get_or_insert_default()
    }

    pub(super) fn has_members(&self) -> bool {
        self.coordinator.as_ref().is_some_and(|group| group.members().next().is_some())
    }

    /// A new request, and where its answer will be.
    pub(super) fn request(&mut self, bell: &Arc<Bell>, clock: &Arc<dyn Clock>) -> (RequestId, Answer) {
        self.last_request += 1;
        let reply = Arc::new(Mutex::new(None));
        self.waiting.insert(self.last_request, Arc::clone(&reply));
        (self.last_request, Answer { reply, bell: Arc::clone(bell), clock: Arc::clone(clock) })
    }
}

impl LiveGroup {
    /// Changes whenever a member may have news.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    pub(super) fn changed(&self) {
        self.version.fetch_add(1, Ordering::AcqRel);
    }

    /// A member is gone. Others notice at their next step.
    pub(crate) fn depart(&self, member_id: String) {
        self.departed.lock().push(member_id);
        self.changed();
    }

    /// Whether it has no members, and nobody waits for an answer.
    pub(super) fn is_unused(&self) -> bool {
        let state = self.state.lock();
        !state.has_members() && state.waiting.is_empty() && self.departed.lock().is_empty()
    }

    pub(super) fn take_departed(&self) -> Vec<String> {
        std::mem::take(&mut *self.departed.lock())
    }

    /// Members that were dropped, and have not been taken out yet.
    pub(super) fn departed(&self) -> Vec<String> {
        self.departed.lock().clone()
    }

    /// Whether a step would take somebody out, or end what has waited long enough.
    pub(super) fn is_due(&self, now_ms: impl FnOnce() -> u64) -> bool {
        !self.departed.lock().is_empty() || self.next_deadline_ms().is_some_and(|deadline_ms| now_ms() >= deadline_ms)
    }

    /// When a step has something to do without anybody asking, in milliseconds of the monotonic clock.
    pub(crate) fn next_deadline_ms(&self) -> Option<u64> {
        self.state.lock().coordinator.as_ref().and_then(GroupCoordinator::next_deadline_ms)
    }

    pub(super) fn deliver(&self, replies: Replies) {
        let mut state = self.state.lock();
        for (request, reply) in replies {
            if let Some(waiting) = state.waiting.remove(&request) {
                *waiting.lock() = Some(reply);
            }
        }
    }
}

/// Turns answers that hand out what could not be kept into ones that ask to join again.
pub(super) fn take_back(replies: &mut Replies) {
    for (_, reply) in replies {
        match reply {
            Reply::Synced(answer @ Ok(_)) => *answer = Err(Refusal::RebalanceInProgress),
            Reply::Joined(answer @ Ok(_)) => *answer = Err(Refusal::RebalanceInProgress),
            Reply::Joined(Err(_)) | Reply::Synced(Err(_)) => {}
        }
    }
}

/// A member of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemberDescription {
    /// Its id.
    pub member_id: String,
    /// Its static name.
    pub group_instance_id: Option<String>,
    /// What it calls itself.
    pub client_id: String,
    /// Where it is.
    pub client_host: String,
    /// What it was assigned, as its leader wrote it: an [`Assignment`](super::Assignment) for a `consumer` group.
    pub assignment: Vec<u8>,
}

/// A group, as an administrator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupDescription {
    /// Where it stands.
    pub state: GroupState,
    /// Its generation.
    pub generation: i32,
    /// What its members are: `consumer`, or empty for a group that only commits.
    pub protocol_type: String,
    /// Its assignor.
    pub protocol: Option<String>,
    /// Its members, in order of their ids.
    pub members: Vec<MemberDescription>,
}

impl GroupDescription {
    /// Of those members alone that are there. The others are taken out by the next step of the group.
    pub(super) fn of_present(
        state: GroupState,
        mut record: super::schema::GroupMetadataValue,
        is_there: impl Fn(&MemberMetadata) -> bool,
    ) -> Self {
        let had = record.members.len();
        record.members.retain(is_there);
        let state = match record.members.len() {
            left if left == had => state,
            0 => GroupState::Empty,
            _ => GroupState::PreparingRebalance,
        };
        if record.members.is_empty() {
            record.protocol = None;
        }
        Self::of(state, record)
    }

    fn of(state: GroupState, record: super::schema::GroupMetadataValue) -> Self {
        let member = |member: MemberMetadata| MemberDescription {
            member_id: member.member_id,
            group_instance_id: member.group_instance_id,
            client_id: member.client_id,
            client_host: member.client_host,
            assignment: member.assignment,
        };
        Self {
            state,
            generation: record.generation,
            protocol_type: record.protocol_type,
            protocol: record.protocol,
            members: record.members.into_iter().map(member).collect(),
        }
    }
}
