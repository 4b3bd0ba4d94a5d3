//! A client that sends nonsense among sense: a pack that could be right and one on a node that does not exist, in one
//! commit. The refusal must leave nothing of either behind.

use farshore_client::{Client, Error, Repository};
use farshore_core::catalogue::{ChunkSpan, PackCommit, PackKind, ShardRecord};
use farshore_core::erasure::Scheme;
use farshore_core::host::{Entropy, random};
use farshore_core::id::{ChunkId, NodeId, PackId, SessionId, ShardHash};
use farshore_core::policy;
use farshore_core::topology::NodeRecord;

/// Bytes of a pack that does not exist.
const PACK_BYTES: u32 = 4_096;

/// Tries it. True if the catalogue took any of it.
pub async fn half_a_commit(client: Client, repository: Repository) -> Result<bool, Error> {
    let mut api = None;
    let _ = client.with_catalogue(|inner| api.insert(inner).clone());
    let Some(api) = api else { return Ok(false) };
    let entropy = repository.host().entropy.as_ref();
    let topology = api.topology().await?;
    let nodes = topology.nodes;
    let scheme = policy::compile(&repository.policy(), &nodes).map_err(|e| Error::Policy(e.to_string()))?;
    let session = SessionId(random(entropy));
    api.open_session(session, repository.id(), topology.applied).await?;
    let sense =
        pack(entropy, scheme, |index| nodes.get(index % nodes.len()).map(|node: &NodeRecord| node.id));
    let stranger = NodeId(u64::from_le_bytes(random(entropy)));
    let nonsense = pack(entropy, scheme, |_| Some(stranger));
    let ids: Vec<ChunkId> = [&sense, &nonsense].iter().flat_map(|p| p.chunks.iter().map(|c| c.id)).collect();
    let taken = api.commit_packs(session, vec![sense, nonsense]).await.is_ok();
    let found = api.lookup(session, repository.id(), &ids).await?;
    api.close_session(session).await?;
    Ok(taken || found.iter().any(Option::is_some))
}

fn pack(entropy: &dyn Entropy, scheme: Scheme, holder: impl Fn(usize) -> Option<NodeId>) -> PackCommit {
    let shard = |index| ShardRecord { node: holder(index), hash: ShardHash(random(entropy)) };
    PackCommit {
        id: PackId(random(entropy)),
        kind: PackKind::Data,
        len: PACK_BYTES.into(),
        chunks: vec![ChunkSpan { id: ChunkId(random(entropy)), offset: 0, len: PACK_BYTES }],
        scheme,
        shard_len: scheme.shard_len(PACK_BYTES.into()),
        shards: (0..scheme.n()).map(shard).collect(),
    }
}
