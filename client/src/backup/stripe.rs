//! Coding a full pack into shards. The stripe is decoded once from other shards than it was made of, and compared, before
//! anything leaves.

use crate::error::{Error, Result};
use crate::format::{Pack, PackBuilder};
use farshore_core::erasure::{Codec, Scheme};
use farshore_core::id::{ClusterId, PackId, RepoId, SessionId};
use farshore_core::peer::ShardPut;
use farshore_core::shard::{PackInfo, hash_shard};

/// Whose stripes, and how they are coded; the same for a whole run.
#[derive(Clone, Copy, Debug)]
pub struct Coding {
    /// Cluster they go to.
    pub cluster: ClusterId,
    /// Repository they belong to.
    pub repo: RepoId,
    /// Session under which their packs are committed.
    pub session: SessionId,
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

/// Closes a pack and codes it. Touches every byte several times: run it through `compute`.
pub fn encode(coding: Coding, pack: PackBuilder) -> Result<Stripe> {
    let pack = pack.close();
    let codec = Codec::new(coding.scheme);
    let shards = codec.encode_pack(pack.bytes.clone());
    if !codec.verify_by_decoding(&shards, seed(&pack.id)) {
        return Err(Error::corrupt(
            format!("stripe of pack {} right after coding", pack.id.short()),
            "the memory or processor of this machine is failing",
        ));
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
        ShardPut { header: info.header(index, hash), payload, session: Some(coding.session) }
    };
    let puts = shards.into_iter().enumerate().map(put).collect();
    Ok(Stripe { pack, puts })
}

/// Varies from pack to pack which shards are decoded from which, and is the same for the same pack.
fn seed(pack: &PackId) -> u64 {
    pack.0.first_chunk().copied().map_or(0, u64::from_le_bytes)
}
