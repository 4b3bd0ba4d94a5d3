//! openraft's generics, spelled out here and nowhere else, and the runtime it runs on.
//!
//! The runtime spawns through the host's seam and draws its random election timeouts from the running task's own
//! stream, so that a simulated run is repeatable and a simulated crash ends every task of a node.

use super::image::Image;
use bytes::Bytes;
use farshore_core::catalogue::command::COMMAND_VERSION;
use farshore_core::catalogue::{Proposal, Reply};
use farshore_core::host::Entropy;
use farshore_core::host::task;
use farshore_core::limits::COMMAND_BYTES_MAX;
use openraft::{AsyncRuntime, OptionalSend, TokioRuntime};
use serde::{Deserialize, Serialize};
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

openraft::declare_raft_types!(
    /// What Farshore puts into openraft's generics.
    pub Types:
        D = Payload,
        R = Reply,
        NodeId = u64,
        Node = openraft::BasicNode,
        SnapshotData = Image,
        AsyncRuntime = ScopedRuntime,
);

/// A running Raft replica.
pub type Replica = openraft::Raft<Types>;
/// Position of an entry: the leader that wrote it, and its index.
pub type LogId = openraft::LogId<u64>;
/// Whom a replica follows.
pub type Vote = openraft::Vote<u64>;
/// What an entry carries.
pub type EntryPayload = openraft::EntryPayload<Types>;
/// One entry of the log.
pub type Entry = openraft::Entry<Types>;
/// Voters and learners, and the entry that named them.
pub type StoredMembership = openraft::StoredMembership<u64, openraft::BasicNode>;
/// What a catalogue image says about itself.
pub type SnapshotMeta = openraft::SnapshotMeta<u64, openraft::BasicNode>;
/// A catalogue image and what it says about itself.
pub type Snapshot = openraft::Snapshot<Types>;
/// Ends the replica: it must not go on with a store that lies.
pub type StorageError = openraft::StorageError<u64>;
/// What openraft tells about itself.
pub type Metrics = openraft::RaftMetrics<u64, openraft::BasicNode>;

/// An encoded [`Proposal`]: version byte, then postcard. The log keeps commands encoded, so that a replica never has
/// to understand an entry in order to store it or pass it on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Payload(pub Bytes);

/// Why an encoded command cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// Written by a newer release. A replica that meets one must stop: to skip what others apply would fork it.
    #[error("command has version {0}, this node knows up to {COMMAND_VERSION}: upgrade this node")]
    Newer(u8),
    /// Not a command.
    #[error("command does not decode")]
    Garbage,
    /// Above [`COMMAND_BYTES_MAX`].
    #[error("command has {0} bytes, the limit is {COMMAND_BYTES_MAX}")]
    TooLarge(usize),
}

/// Version byte in front of every message between replicas.
pub const MESSAGE_VERSION: u8 = 1;

/// Encodes a value behind a version byte.
pub fn seal_message<T: Serialize>(version: u8, value: &T) -> Bytes {
    let bytes = postcard::to_extend(value, vec![version]).expect("our own types always encode into memory");
    Bytes::from(bytes)
}

/// Decodes what [`seal_message`] made; every byte must be used up.
pub fn open_message<T: for<'a> Deserialize<'a>>(version: u8, bytes: &[u8]) -> Result<T, PayloadError> {
    match bytes.split_first() {
        Some((v, body)) if *v == version => match postcard::take_from_bytes(body) {
            Ok((value, [])) => Ok(value),
            _ => Err(PayloadError::Garbage),
        },
        Some((v, _)) if *v > version => Err(PayloadError::Newer(*v)),
        _ => Err(PayloadError::Garbage),
    }
}

impl Payload {
    /// Encodes a proposal.
    pub fn seal(proposal: &Proposal) -> Result<Self, PayloadError> {
        let bytes = seal_message(COMMAND_VERSION, proposal);
        if bytes.len() > COMMAND_BYTES_MAX {
            Err(PayloadError::TooLarge(bytes.len()))
        } else {
            Ok(Payload(bytes))
        }
    }
    /// Decodes the proposal.
    pub fn open(&self) -> Result<Proposal, PayloadError> {
        open_message(COMMAND_VERSION, &self.0)
    }
}

/// openraft's runtime over the host's seam.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ScopedRuntime;

/// Counter behind random numbers of tasks outside any scope, which exist only in production.
static UNSCOPED: AtomicU64 = AtomicU64::new(0);

/// Odd, so that the counter visits every value; see SplitMix64 in `host::task`.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

impl ScopedRuntime {
    /// Seeds what tasks outside any scope draw from. Called once as a replica starts.
    pub fn seed(entropy: &dyn Entropy) {
        UNSCOPED.fetch_xor(u64::from_le_bytes(farshore_core::host::random(entropy)), Ordering::Relaxed);
    }
}

/// Random numbers of the running task. They only spread election timeouts; nothing secret comes from here.
pub struct TaskRng;

impl rand08::RngCore for TaskRng {
    fn next_u32(&mut self) -> u32 {
        (self.next_u64() >> 32) as u32
    }
    fn next_u64(&mut self) -> u64 {
        task::task_random()
            .unwrap_or_else(|| task::splitmix(UNSCOPED.fetch_add(GAMMA, Ordering::Relaxed), GAMMA))
    }
    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let value = self.next_u64().to_le_bytes();
            chunk.iter_mut().zip(value).for_each(|(to, from)| *to = from);
        }
    }
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), rand08::Error> {
        self.fill_bytes(bytes);
        Ok(())
    }
}

impl AsyncRuntime for ScopedRuntime {
    type JoinError = tokio::task::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = tokio::task::JoinHandle<T>;
    type Sleep = tokio::time::Sleep;
    type Instant = tokio::time::Instant;
    type TimeoutError = tokio::time::error::Elapsed;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = tokio::time::Timeout<T>;
    type ThreadLocalRng = TaskRng;
    type OneshotSender<T: OptionalSend> = <TokioRuntime as AsyncRuntime>::OneshotSender<T>;
    type OneshotReceiver<T: OptionalSend> = <TokioRuntime as AsyncRuntime>::OneshotReceiver<T>;
    type OneshotReceiverError = <TokioRuntime as AsyncRuntime>::OneshotReceiverError;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        task::spawn(future)
    }
    fn sleep(duration: Duration) -> Self::Sleep {
        tokio::time::sleep(duration)
    }
    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        tokio::time::sleep_until(deadline)
    }
    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        tokio::time::timeout(duration, future)
    }
    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        at: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        tokio::time::timeout_at(at, future)
    }
    fn is_panic(error: &Self::JoinError) -> bool {
        error.is_panic()
    }
    fn thread_rng() -> Self::ThreadLocalRng {
        TaskRng
    }
    fn oneshot<T: OptionalSend>() -> (Self::OneshotSender<T>, Self::OneshotReceiver<T>) {
        TokioRuntime::oneshot()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_core::catalogue::{Actor, Command};
    use farshore_core::id::{ClusterId, NodeId};
    use proptest::prelude::*;

    fn proposal() -> Proposal {
        Proposal {
            time_ms: 7,
            actor: Actor::Node(NodeId(1)),
            command: Command::FormCluster { cluster: ClusterId([3; 16]) },
        }
    }

    #[test]
    fn a_newer_command_is_told_from_garbage() {
        let sealed = Payload::seal(&proposal()).unwrap();
        assert_eq!(sealed.open(), Ok(proposal()));
        let mut newer = sealed.0.to_vec();
        newer[0] = COMMAND_VERSION + 1;
        assert_eq!(Payload(newer.into()).open(), Err(PayloadError::Newer(COMMAND_VERSION + 1)));
        let mut longer = sealed.0.to_vec();
        longer.push(0);
        assert_eq!(Payload(longer.into()).open(), Err(PayloadError::Garbage));
        assert_eq!(Payload(Bytes::new()).open(), Err(PayloadError::Garbage));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn rubbish_never_panics(bytes: Vec<u8>) {
            let _ = Payload(bytes.into()).open();
        }
    }
}
