//! Whose data directory this is. A node that starts on the disk of another node, or of another cluster, would answer
//! for shards and votes that are not its own; it refuses instead.

use farshore_core::host::{Disk, publish};
use farshore_core::id::{ClusterId, NodeId, hash_parts};
use std::io;

/// Where the identity lives below the data directory.
pub const IDENTITY_FILE: &str = "identity";
const IDENTITY_TEMP: &str = "identity.new";
const MAGIC: [u8; 8] = *b"FSNODE\0\x01";
/// Magic, cluster, node, checksum.
const LEN: usize = 8 + ClusterId::LEN + 8 + SUM;
const SUM: usize = 16;

/// Who a data directory belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
}

/// Why a data directory is refused.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The disk failed.
    #[error("read or write `{IDENTITY_FILE}` in the data directory: {0}")]
    Io(#[from] io::Error),
    /// The file is not what this or any release writes.
    #[error("`{IDENTITY_FILE}` in the data directory is damaged or from a newer release")]
    Damaged,
    /// The directory is another node's.
    #[error("the data directory belongs to node {} of cluster {}, but this is node {} of cluster {}", .found.node, .found.cluster, .own.node, .own.cluster)]
    Foreign {
        /// Who the directory belongs to.
        found: Identity,
        /// Who wanted to use it.
        own: Identity,
    },
}

/// What opening a data directory found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opened {
    /// It was nobody's and is ours now.
    Fresh,
    /// It was ours.
    Ours,
}

impl Identity {
    /// Whether the directory was ever claimed by anybody.
    pub async fn is_claimed(disk: &dyn Disk) -> Result<bool, IdentityError> {
        Ok(disk.len(IDENTITY_FILE).await?.is_some())
    }

    /// Claims the directory or checks that it was claimed by us. Written whole or not at all, and before anything
    /// else, so that no state ever lies in a directory without an owner.
    pub async fn claim(self, disk: &dyn Disk) -> Result<Opened, IdentityError> {
        if disk.len(IDENTITY_FILE).await?.is_some() {
            let found = Identity::decode(&disk.read(IDENTITY_FILE, 0, LEN + 1).await?)?;
            if found != self {
                return Err(IdentityError::Foreign { found, own: self });
            }
            return Ok(Opened::Ours);
        }
        let mut file = disk.create(IDENTITY_TEMP).await?;
        file.append(self.encode().into()).await?;
        publish(disk, file, IDENTITY_TEMP, IDENTITY_FILE).await?;
        Ok(Opened::Fresh)
    }

    fn encode(self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(self.cluster.as_bytes());
        bytes.extend_from_slice(&self.node.0.to_be_bytes());
        let sum = checksum(&bytes);
        bytes.extend_from_slice(&sum);
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, IdentityError> {
        let damaged = |_| IdentityError::Damaged;
        let bytes: &[u8; LEN] = bytes.try_into().map_err(damaged)?;
        let (body, sum) = bytes.split_at(LEN - SUM);
        let Some(fields) = body.strip_prefix(&MAGIC).filter(|_| checksum(body) == *sum) else {
            return Err(IdentityError::Damaged);
        };
        let (cluster, node) = fields.split_at(ClusterId::LEN);
        let cluster = ClusterId::from_slice(cluster).map_err(|_| IdentityError::Damaged)?;
        let node = NodeId(u64::from_be_bytes(node.try_into().map_err(damaged)?));
        Ok(Identity { cluster, node })
    }
}

fn checksum(body: &[u8]) -> [u8; SUM] {
    let mut sum = [0; SUM];
    sum.copy_from_slice(&hash_parts(&[b"farshore node identity", body])[..SUM]);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_round_trips_and_every_flipped_byte_is_noticed() {
        let own = Identity { cluster: ClusterId([7; 16]), node: NodeId(9) };
        let bytes = own.encode();
        assert_eq!(Identity::decode(&bytes).unwrap(), own);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(matches!(Identity::decode(&damaged), Err(IdentityError::Damaged)), "byte {at}");
        }
        assert!(Identity::decode(&bytes[..LEN - 1]).is_err());
    }
}
