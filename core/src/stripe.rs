//! Coding a full pack into shards. The stripe is decoded once from other shards than it was made of, and compared, before
//! anything leaves.

use crate::catalogue::{PackCommit, ShardRecord};
use crate::erasure::{Codec, Scheme};
use crate::id::{ClusterId, PackId, RepoId, SessionId};
use crate::pack::{Pack, PackBuilder};
use crate::peer::ShardPut;
use crate::shard::{PackInfo, hash_shard};

/// Whose stripes, and how they are coded; the same for a whole run.
#[derive(Clone, Copy, Debug)]
pub struct Coding {
    /// Cluster they go to.
    pub cluster: ClusterId,
    /// Repository they belong to.
    pub repo: RepoId,
    /// Session under which their packs are committed; `None` if the cluster does it.
    pub session: Option<SessionId>,
    /// k, m and spread.
    pub scheme: Scheme,
}

/// A coded pack, ready to be sent.
pub struct Stripe {
    /// The pack.
    pub pack: Pack,
    /// Its shards, in the order of their indexes.
    pub puts: Vec<ShardPut>,
}

impl Stripe {
    /// What to commit, once its shards are where `shards` says.
    pub fn to_commit(&self, shards: Vec<ShardRecord>) -> PackCommit {
        let header = &self.puts.first().expect("a stripe has at least two shards").header;
        PackCommit {
            id: self.pack.id,
            kind: self.pack.kind,
            len: self.pack.bytes.len() as u64,
            chunks: self.pack.chunks.clone(),
            scheme: header.scheme,
            shard_len: header.payload_len,
            shards,
        }
    }
}

/// The shards do not give the pack back right after coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("stripe of pack {id} is wrong right after coding: the memory or processor of this machine is failing", id = .0.short())]
pub struct Miscoded(pub PackId);

/// Closes a pack and codes it. Touches every byte several times: run it through `compute`.
pub fn encode(coding: Coding, pack: PackBuilder) -> Result<Stripe, Miscoded> {
    let pack = pack.close();
    let codec = Codec::new(coding.scheme);
    let shards = codec.encode_pack(pack.bytes.clone());
    if !codec.verify_by_decoding(&shards, seed(&pack.id)) {
        return Err(Miscoded(pack.id));
    }
    let info = PackInfo {
        cluster: coding.cluster,
        repo: coding.repo,
        pack: pack.id,
        pack_len: pack.bytes.len() as u64,
        scheme: coding.scheme,
    };
    let put = |(index, payload): (usize, bytes::Bytes)| {
        let index = u8::try_from(index).expect("a scheme has at most 32 shards");
        let (hash, _) = hash_shard(info.shard(index), &payload);
        ShardPut { header: info.header(index, hash), payload, session: coding.session }
    };
    let puts = shards.into_iter().enumerate().map(put).collect();
    Ok(Stripe { pack, puts })
}

/// Varies from pack to pack which shards are decoded from which, and is the same for the same pack.
fn seed(pack: &PackId) -> u64 {
    pack.0.first_chunk().copied().map_or(0, u64::from_le_bytes)
}
