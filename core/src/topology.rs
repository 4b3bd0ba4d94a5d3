//! Who exists: regions, nodes and the legal life of a node.

use crate::id::NodeId;
use crate::limits::NAME_BYTES_MAX;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// A name or label that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a {1}: use 1 to {NAME_BYTES_MAX} of a-z, A-Z, 0-9, '-', '_' and '.'{2}")]
pub struct BadName(pub String, pub &'static str, pub &'static str);

fn name_part(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= NAME_BYTES_MAX
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && text != "."
        && text != ".."
}

/// A checked name of a node, zone or repository.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl FromStr for Name {
    type Err = BadName;
    fn from_str(text: &str) -> Result<Self, BadName> {
        if name_part(text) { Ok(Name(text.into())) } else { Err(BadName(text.into(), "name", "")) }
    }
}
impl TryFrom<String> for Name {
    type Error = BadName;
    fn try_from(text: String) -> Result<Self, BadName> {
        text.parse()
    }
}
impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A failure domain that can vanish at once, `provider/region`, such as `aws/eu-west-1` or `home/cellar`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Region(String);

impl Region {
    /// The whole label.
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// The account or company above the region; it is a failure domain of its own.
    pub fn provider(&self) -> &str {
        self.0.split_once('/').map_or(self.as_str(), |(provider, _)| provider)
    }
}
impl FromStr for Region {
    type Err = BadName;
    fn from_str(text: &str) -> Result<Self, BadName> {
        match text.split_once('/') {
            Some((provider, region)) if name_part(provider) && name_part(region) => Ok(Region(text.into())),
            _ => Err(BadName(text.into(), "region", ", as provider/region, for example aws/eu-west-1")),
        }
    }
}
impl TryFrom<String> for Region {
    type Error = BadName;
    fn try_from(text: String) -> Result<Self, BadName> {
        text.parse()
    }
}
impl From<Region> for String {
    fn from(region: Region) -> String {
        region.0
    }
}
impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a node is in its life.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, Serialize, Deserialize)]
pub enum NodeState {
    /// Heartbeats arrive.
    Up,
    /// Silent for a moment; still given new shards only if nothing better is left.
    Suspect,
    /// Silent; its shards are expected back, so nothing is rebuilt yet.
    Down,
    /// Silent past its grace: its shards are rebuilt elsewhere.
    Lost,
    /// Being emptied; serves reads, gets nothing new.
    Draining,
    /// Empty and gone for good.
    Retired,
}

impl NodeState {
    /// Every state.
    pub const ALL: [NodeState; 6] = [
        NodeState::Up,
        NodeState::Suspect,
        NodeState::Down,
        NodeState::Lost,
        NodeState::Draining,
        NodeState::Retired,
    ];

    /// The one table of legal transitions.
    pub fn may_become(self, next: NodeState) -> bool {
        use NodeState::*;
        matches!(
            (self, next),
            (Up, Suspect | Draining)
                | (Suspect, Up | Down | Draining)
                | (Down, Up | Lost | Draining)
                | (Lost, Up | Draining | Retired)
                | (Draining, Up | Lost | Retired)
        )
    }
    /// New shards may be placed here.
    pub fn takes_shards(self) -> bool {
        self == NodeState::Up
    }
    /// Its shards count as existing: it is expected to come back or still serves.
    pub fn counts(self) -> bool {
        !matches!(self, NodeState::Lost | NodeState::Retired)
    }
    /// Its shards can be read now, as far as is known.
    pub fn answers(self) -> bool {
        matches!(self, NodeState::Up | NodeState::Suspect | NodeState::Draining)
    }
    /// Lower-case word used in JSON and tables.
    pub fn word(self) -> &'static str {
        match self {
            NodeState::Up => "up",
            NodeState::Suspect => "suspect",
            NodeState::Down => "down",
            NodeState::Lost => "lost",
            NodeState::Draining => "draining",
            NodeState::Retired => "retired",
        }
    }
}

/// A node as the catalogue knows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Derived from its key.
    pub id: NodeId,
    /// What people call it.
    pub name: Name,
    /// Its failure domain.
    pub region: Region,
    /// Finer domain inside the region, if any.
    pub zone: Option<Name>,
    /// `host:port` of its gRPC listener as others reach it.
    pub addr: String,
    /// Bytes it offers for shards; its weight in placement. 0 makes it a witness.
    pub capacity: u64,
    /// Where it is in its life.
    pub state: NodeState,
}

impl NodeRecord {
    /// Votes and holds the catalogue, and offers no room for shards.
    pub fn is_witness(&self) -> bool {
        self.capacity == 0
    }
    /// New shards may be placed here.
    pub fn takes_shards(&self) -> bool {
        self.state.takes_shards() && !self.is_witness()
    }
}

/// What an operator wants to become of a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Change {
    /// Its shards move to others; it is retired once it is empty.
    Drain(NodeId),
    /// It is not to be emptied after all.
    Keep(NodeId),
    /// It is gone for good: lost, or empty.
    Remove(NodeId),
}

impl Change {
    /// Whom it concerns.
    pub fn node(self) -> NodeId {
        match self {
            Change::Drain(node) | Change::Keep(node) | Change::Remove(node) => node,
        }
    }
    /// Lower-case word used on the wire and in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Change::Drain(_) => "drain",
            Change::Keep(_) => "keep",
            Change::Remove(_) => "remove",
        }
    }
    /// What [`Change::word`] named.
    pub fn of(word: &str, node: NodeId) -> Option<Self> {
        [Change::Drain(node), Change::Keep(node), Change::Remove(node)].into_iter().find(|c| c.word() == word)
    }
}

/// What operators have decided about the topology, and what they are about to.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Intent {
    /// Raised by every accepted change of the topology or of what is staged, so that nobody enacts what they have not seen.
    pub epoch: u64,
    /// Changes that were proposed and not enacted; at most one for each node.
    pub staged: Vec<Change>,
    /// Nodes that an operator wants emptied. One that was silent for long takes it up again when it is back.
    pub leaving: BTreeSet<NodeId>,
    /// Who raised the epoch last, as a number drawn by the caller: asking again is harmless.
    pub request: [u8; 16],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_checked() {
        assert_eq!("aws/eu-west-1".parse::<Region>().unwrap().provider(), "aws");
        for bad in ["", "aws", "aws/", "/x", "a/b/c", "a b/c", "a/..", "a/ü"] {
            assert!(bad.parse::<Region>().is_err(), "{bad:?}");
        }
        assert!("a/b".parse::<Name>().is_err());
    }

    #[test]
    fn retired_is_final_and_no_state_loops_to_itself() {
        for state in NodeState::ALL {
            assert!(!state.may_become(state));
            assert!(!NodeState::Retired.may_become(state));
        }
    }
}
