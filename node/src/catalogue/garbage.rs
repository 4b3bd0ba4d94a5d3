//! What garbage collection asks of a view: what a repository's snapshots need, which sessions are open, and how much of
//! each pack is needed. Exact arithmetic on sets of ordinals; no keys, no tree is walked.

use super::error::CatalogueError;
use super::live::LiveSet;
use super::ordinals::Ordinals;
use super::read::Read;
use super::tables::*;
use super::view::{Page, View};
use farshore_core::catalogue::{CondemnedPack, PackKind, PackRecord, Recoding};
use farshore_core::id::{ChunkId, PackNo, RepoId};
use farshore_core::limits::{PAGE_ROWS_MAX, SESSIONS_OPEN_MAX};
use farshore_core::policy::Policy;

/// What a repository needs, as of one applied index.
#[derive(Clone, PartialEq, Debug)]
pub struct RepoUse {
    /// Which repository.
    pub repo: RepoId,
    /// Applied index of the view.
    pub looked: u64,
    /// Everything that its snapshots need, those in the trash included.
    pub live: LiveSet,
    /// Packs from here on may belong to an open session.
    pub first_own: Option<PackNo>,
    /// Log index at which the oldest open session was opened.
    pub oldest_session: Option<u64>,
    /// Open sessions.
    pub sessions: u64,
    /// A change of policy, and the policy of now.
    pub recoding: Option<(Recoding, Policy)>,
}

/// How much of a pack is needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PackUse {
    /// Which pack.
    pub no: PackNo,
    /// What it is filled with.
    pub kind: PackKind,
    /// Bytes before coding.
    pub len: u64,
    /// Chunks in its table, those that live elsewhere or nowhere included.
    pub chunks: u64,
    /// Chunks that some snapshot needs and that live here.
    pub live: u64,
    /// Log index of its condemnation, if it is condemned.
    pub condemned: Option<u64>,
    /// Not at full strength.
    pub weak: bool,
    /// Coded in another way than the policy asks for now.
    pub other_code: bool,
}

impl PackUse {
    /// Name and condemnation together, if it is condemned.
    pub fn as_condemned(&self) -> Option<CondemnedPack> {
        self.condemned.map(|at| CondemnedPack { no: self.no, at })
    }
}

impl View {
    /// What a repository needs. Holds the union of its live sets, a bit or less for each chunk.
    pub fn repo_use(&self, repo: RepoId) -> Result<RepoUse, CatalogueError> {
        let mut live = LiveSet::default();
        let mut span = Span::within(&repo);
        while let Some((key, bytes)) = self.scan::<LiveSets>(&span, 1)?.pop() {
            let set = LiveSet::decode(&bytes).map_err(|_| CatalogueError::Torn("a live set is no set"))?;
            live.add(&set);
            span = Span::within(&repo).beyond(&key);
        }
        let all = self.scan::<Sessions>(&Span::all(), SESSIONS_OPEN_MAX as usize)?;
        let open: Vec<_> = all.into_iter().map(|(_, s)| s).filter(|s| s.repo == repo).collect();
        let policy = self.repo(repo)?.map(|repo| repo.policy);
        Ok(RepoUse {
            repo,
            recoding: self.get::<Recodings>(&repo)?.zip(policy),
            looked: self.applied(),
            live,
            first_own: open.iter().map(|session| session.first_pack).min(),
            oldest_session: open.iter().map(|session| session.opened).min(),
            sessions: open.len() as u64,
        })
    }

    /// Whether some of these packs of a repository, from number `from` on, wait to be coded anew; and where to go on.
    pub fn waits_for_code(
        &self,
        repo: RepoId,
        from: PackNo,
        limit: usize,
    ) -> Result<(bool, Option<PackNo>), CatalogueError> {
        let policy = self.repo(repo)?.map(|repo| repo.policy);
        let Some((recoding, policy)) = self.get::<Recodings>(&repo)?.zip(policy) else {
            return Ok((false, None));
        };
        let page = self.packs(repo, from, limit)?;
        let waits = |pack: &PackRecord| recoding.concerns(pack.no, pack.stripe.scheme, &policy);
        Ok((page.rows.iter().any(waits), page.next))
    }

    /// How much is needed of the repository's packs, from number `from` on.
    pub fn pack_uses(
        &self,
        of: &RepoUse,
        from: PackNo,
        limit: usize,
    ) -> Result<Page<PackUse, PackNo>, CatalogueError> {
        let page = self.packs(of.repo, from, limit.min(PAGE_ROWS_MAX))?;
        let rows = page.rows.iter().map(|pack| self.pack_use(of, pack)).collect::<Result<_, _>>()?;
        Ok(Page { rows, next: page.next })
    }

    fn pack_use(&self, of: &RepoUse, pack: &PackRecord) -> Result<PackUse, CatalogueError> {
        Ok(PackUse {
            no: pack.no,
            kind: pack.kind,
            len: pack.len,
            chunks: u64::from(pack.chunks),
            live: of.live.count(&self.ordinals_of(pack)?),
            condemned: self.get::<CondemnedPacks>(&(pack.repo, pack.no))?,
            weak: self.is_under_target(pack.no)?,
            other_code: of
                .recoding
                .is_some_and(|(recoding, policy)| recoding.concerns(pack.no, pack.stripe.scheme, &policy)),
        })
    }

    /// Ordinals of the chunks that live in a pack.
    pub fn ordinals_of(&self, pack: &PackRecord) -> Result<Ordinals, CatalogueError> {
        let moved = self.get::<PackOrdinals>(&pack.no)?;
        Ok(moved.unwrap_or_else(|| Ordinals::range(pack.first_ordinal, pack.chunks)))
    }

    /// Chunks of a pack in the order of its table.
    pub fn chunks_of(&self, no: PackNo) -> Result<Vec<ChunkId>, CatalogueError> {
        Ok(self.get::<PackChunks>(&no)?.unwrap_or_default())
    }
}
