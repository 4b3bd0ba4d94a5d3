//! Whose data directory this is. A node that starts on the disk of another node, or of another cluster, would answer
//! for shards and votes that are not its own; it refuses instead.

use farshore_core::host::{Disk, Entropy, publish, random};
use farshore_core::id::{ClusterId, NodeId, hash_parts};
use std::io;

/// Where the identity lives below the data directory.
pub const IDENTITY_FILE: &str = "identity";
const IDENTITY_TEMP: &str = "identity.new";
const MAGIC: [u8; 8] = *b"FSNODE\0\x02";
/// Of the first release: it ends behind the node.
const MAGIC_1: [u8; 8] = *b"FSNODE\0\x01";
/// Magic, cluster, node, incarnation, formation, checksum.
const LEN: usize = 8 + ClusterId::LEN + 3 * 8 + SUM;
const LEN_1: usize = 8 + ClusterId::LEN + 8 + SUM;
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
    #[error("the data directory belongs to {found}, but this is {own}")]
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

/// A data directory that is ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Claim {
    /// Who owns it.
    pub owner: Identity,
    /// Drawn when the directory was new. The cluster remembers it: a directory that was emptied since has another one.
    pub incarnation: u64,
    /// Which founding of the cluster it takes part in; 0 until it has met one.
    pub formation: u64,
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "node {} of cluster {}", self.node, self.cluster)
    }
}

impl Identity {
    /// Whether the directory was ever claimed by anybody.
    pub async fn is_claimed(disk: &dyn Disk) -> Result<bool, IdentityError> {
        Ok(disk.len(IDENTITY_FILE).await?.is_some())
    }

    /// Claims the directory or checks that it was claimed by us. Written whole or not at all, and before anything
    /// else, so that no state ever lies in a directory without an owner.
    pub async fn claim(
        self,
        disk: &dyn Disk,
        entropy: &dyn Entropy,
    ) -> Result<(Claim, Opened), IdentityError> {
        let fresh =
            || Claim { owner: self, incarnation: u64::from_le_bytes(random(entropy)) | 1, formation: 0 };
        let (claim, opened) = match disk.len(IDENTITY_FILE).await? {
            None => (fresh(), Opened::Fresh),
            Some(_) => match Claim::decode(&disk.read(IDENTITY_FILE, 0, LEN + 1).await?)? {
                found if found.owner != self => {
                    return Err(IdentityError::Foreign { found: found.owner, own: self });
                }
                found if found.incarnation != 0 => return Ok((found, Opened::Ours)),
                // Of the first release, which drew no number.
                _ => (fresh(), Opened::Ours),
            },
        };
        claim.write(disk).await?;
        Ok((claim, opened))
    }
}

impl Claim {
    /// The same directory, from now on part of this founding. Durable when this returns.
    pub async fn join(self, formation: u64, disk: &dyn Disk) -> Result<Claim, IdentityError> {
        let claim = Claim { formation, ..self };
        claim.write(disk).await?;
        Ok(claim)
    }

    async fn write(self, disk: &dyn Disk) -> Result<(), IdentityError> {
        let mut file = disk.create(IDENTITY_TEMP).await?;
        file.append(self.encode().into()).await?;
        Ok(publish(disk, file, IDENTITY_TEMP, IDENTITY_FILE).await?)
    }

    fn encode(self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(self.owner.cluster.as_bytes());
        for number in [self.owner.node.0, self.incarnation, self.formation] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        let sum = checksum(&bytes);
        bytes.extend_from_slice(&sum);
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, IdentityError> {
        let (body, sum) = bytes.split_at_checked(bytes.len().saturating_sub(SUM)).unwrap_or_default();
        if checksum(body) != *sum {
            return Err(IdentityError::Damaged);
        }
        let fields = match bytes.len() {
            LEN => body.strip_prefix(&MAGIC),
            LEN_1 => body.strip_prefix(&MAGIC_1),
            _ => None,
        };
        let (cluster, numbers) = fields.ok_or(IdentityError::Damaged)?.split_at(ClusterId::LEN);
        let cluster = ClusterId::from_slice(cluster).map_err(|_| IdentityError::Damaged)?;
        let mut numbers = numbers.chunks_exact(8).map(|part| {
            let part = part.try_into().expect("every chunk has exactly 8 bytes");
            u64::from_be_bytes(part)
        });
        let node = NodeId(numbers.next().unwrap_or(0));
        let (incarnation, formation) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        Ok(Claim { owner: Identity { cluster, node }, incarnation, formation })
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
    use crate::testkit::Fixtures;

    const OWNER: Identity = Identity { cluster: ClusterId([7; 16]), node: NodeId(9) };

    #[test]
    fn it_round_trips_and_every_flipped_byte_is_noticed() {
        let own = Claim { owner: OWNER, incarnation: 3, formation: 4 };
        let bytes = own.encode();
        assert_eq!(Claim::decode(&bytes).unwrap(), own);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(matches!(Claim::decode(&damaged), Err(IdentityError::Damaged)), "byte {at}");
        }
        for len in 0..bytes.len() {
            assert!(Claim::decode(&bytes[..len]).is_err());
        }
    }

    #[test]
    fn files_of_both_versions_are_read() {
        let mut fixtures = Fixtures::of("identity");
        let own = Claim { owner: OWNER, incarnation: 3, formation: 4 };
        assert_eq!(Claim::decode(&fixtures.kept("version 2", &own.encode())).unwrap(), own);

        let mut first = MAGIC_1.to_vec();
        first.extend_from_slice(OWNER.cluster.as_bytes());
        first.extend_from_slice(&OWNER.node.0.to_be_bytes());
        first.extend_from_slice(&checksum(&first));
        let first = fixtures.kept("version 1", &first);
        assert_eq!(Claim::decode(&first).unwrap(), Claim { owner: OWNER, incarnation: 0, formation: 0 });
        fixtures.end();
    }
}
