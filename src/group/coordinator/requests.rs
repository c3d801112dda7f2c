//! What members ask of the coordinator of their group, and what it answers.

use bytes::Bytes;

/// How a request is named, so that its answer can be told apart. Chosen by the caller.
pub type RequestId = u64;

/// What a member asks to be allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinRequest {
    /// Empty for a member that has none yet.
    pub member_id: String,
    /// The id it gets if it has none. Must be new.
    pub new_member_id: String,
    /// What it is for: `consumer`, or another word that all members share (Kafka's protocol type).
    pub protocol_type: String,
    /// What the client calls itself, for people who look at the group.
    pub client_id: String,
    /// Where the client is, for the same people.
    pub client_host: String,
    /// A static member: the name under which it comes back after a restart without a rebalance (Kafka's `group.instance.id`).
    pub group_instance_id: Option<String>,
    /// Without a heartbeat for so long it is taken for dead, in milliseconds.
    pub session_timeout_ms: u64,
    /// How long a rebalance waits for it to join again, in milliseconds.
    pub rebalance_timeout_ms: u64,
    /// The assignors that it knows, the best first, each with what it tells the leader.
    pub protocols: Vec<(String, Bytes)>,
}

/// Why a request is refused. What to do is what Kafka's clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// Not a member, or no longer: join anew without an id.
    UnknownMember,
    /// The generation is over: join again.
    IllegalGeneration,
    /// A rebalance goes on: join again.
    RebalanceInProgress,
    /// Another has taken this static name: stop.
    FencedInstance,
    /// No assignor that all members know: change the configuration.
    InconsistentProtocol,
}

/// What a joined member is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// The generation that begins.
    pub generation: i32,
    /// The assignor.
    pub protocol: String,
    /// Who assigns.
    pub leader: String,
    /// The member's id from now on.
    pub member_id: String,
    /// For the leader: each member with what it told. For others nothing.
    pub members: Vec<(String, Bytes)>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reply {
    /// To a join.
    Joined(Result<Joined, Refusal>),
    /// To a sync: what the leader assigned.
    Synced(Result<Bytes, Refusal>),
}

/// Answers that a step gave.
pub type Replies = Vec<(RequestId, Reply)>;
