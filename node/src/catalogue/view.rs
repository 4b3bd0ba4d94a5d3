//! Read-only questions to the catalogue at one applied entry. Every listing comes in pages, so that memory stays
//! bounded however large the catalogue is.

use super::error::CatalogueError;
use super::migrate::decode_key;
use super::read::{Payload, Read, Stored, audit_head};
use super::tables::*;
use crate::kv::record::{FrozenRecords, Row};
use farshore_core::catalogue::{
    AuditHead, ChunkRecord, Condemned, ExportRecord, Migration, PackRecord, RepoRecord, RepoSettings,
    SessionRecord, SnapshotMarks, SnapshotRecord, Subject, Upkeep, Verification, VerifiedStripe,
};
use farshore_core::host::kv::Table;
use farshore_core::id::{
    ChunkId, ClusterId, NodeId, Ordinal, PackId, PackNo, RepoId, SessionId, ShardId, SnapshotId, StripeId,
};
use farshore_core::limits::{
    EXPORT_ROWS_MAX, MIGRATIONS_MAX, NODES_MAX, PAGE_BYTES_MAX, PAGE_ROWS_MAX, STRIPE_SHARDS_MAX,
    VERIFICATIONS_MAX,
};
use farshore_core::mutant::{Mutant, mutant};
use farshore_core::topology::{Intent, NodeRecord};
use std::collections::{BTreeMap, BTreeSet};

/// The catalogue after one applied entry. Cheap to make; does not change.
pub struct View {
    records: FrozenRecords,
    generation: Generation,
    head: Head,
    state: State,
}

/// Part of a listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page<T, K> {
    /// In key order.
    pub rows: Vec<T>,
    /// Where the next page begins; `None` at the end.
    pub next: Option<K>,
}

/// Exact numbers of rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Nodes, in any state.
    pub nodes: u64,
    /// Repositories.
    pub repos: u64,
    /// Open sessions.
    pub sessions: u64,
    /// Packs.
    pub packs: u64,
    /// Bytes of all packs before coding.
    pub pack_bytes: u64,
    /// Distinct chunks.
    pub chunks: u64,
    /// Snapshots, those in the trash not counted.
    pub snapshots: u64,
    /// Snapshots in the trash.
    pub trash: u64,
    /// Packs condemned and not dropped yet.
    pub condemned_packs: u64,
    /// Packs listed as below full strength. Packs of a node that was lost join the list as the planner looks at them.
    pub under_target: u64,
    /// Copies still to be swept.
    pub condemned: u64,
}

impl View {
    pub(crate) fn new(records: FrozenRecords, generation: Generation, head: Head, state: State) -> Self {
        View { records, generation, head, state }
    }

    /// Log index of the last entry that is in this view; 0 before the first.
    pub fn applied(&self) -> u64 {
        self.head.applied
    }
    /// Equal on all replicas with the same applied index.
    pub fn state_hash(&self) -> StateHash {
        self.head.hash
    }
    /// The cluster, once it is formed.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.state.cluster
    }
    /// Feature level that the cluster uses.
    pub fn level(&self) -> u32 {
        self.state.level
    }
    /// Catalogue time in Unix milliseconds.
    pub fn time_ms(&self) -> u64 {
        self.state.time_ms
    }
    /// Exact numbers of rows.
    pub fn counts(&self) -> Counts {
        let rows = |table| self.state.rows_of(table);
        Counts {
            nodes: rows(Nodes::TABLE),
            repos: rows(Repos::TABLE),
            sessions: rows(Sessions::TABLE),
            packs: rows(Packs::TABLE),
            pack_bytes: self.state.pack_bytes,
            chunks: rows(Chunks::TABLE),
            snapshots: rows(Snapshots::TABLE),
            trash: rows(Trash::TABLE),
            condemned_packs: rows(CondemnedPacks::TABLE),
            under_target: rows(UnderTargets::TABLE),
            condemned: rows(Condemneds::TABLE),
        }
    }
    /// What the Raft glue kept.
    pub fn note(&self, key: NoteKey) -> Result<Option<Vec<u8>>, CatalogueError> {
        self.get::<Notes>(&key)
    }

    /// Every node, by id.
    pub fn nodes(&self) -> Result<Vec<NodeRecord>, CatalogueError> {
        Ok(values(self.scan::<Nodes>(&Span::all(), NODES_MAX)?))
    }
    /// One node.
    pub fn node(&self, id: NodeId) -> Result<Option<NodeRecord>, CatalogueError> {
        self.get::<Nodes>(&id)
    }

    /// What operators want of the topology.
    pub fn intent(&self) -> Result<Intent, CatalogueError> {
        Ok(self.get::<Intents>(&IntentKey)?.unwrap_or_default())
    }
    /// Regions that are being emptied into others, by name.
    pub fn migrations(&self) -> Result<Vec<Migration>, CatalogueError> {
        Ok(values(self.scan::<Migrations>(&Span::all(), MIGRATIONS_MAX)?))
    }
    /// Limits of the cluster's own work.
    pub fn upkeep(&self) -> Result<Upkeep, CatalogueError> {
        Ok(self.get::<Upkeeps>(&IntentKey)?.unwrap_or_default())
    }
    /// Subjects whose moved stripes were not all read again, ascending.
    pub fn moved_subjects(&self) -> Result<Vec<Subject>, CatalogueError> {
        let (mut subjects, mut span) = (Vec::new(), Span::all());
        while let Some(((subject, _), ())) = self.scan::<Moveds>(&span, 1)?.pop() {
            subjects.push(subject);
            span = Span::all().beyond(&(subject, PackNo(u64::MAX)));
        }
        Ok(subjects)
    }
    /// Packs whose stripes were moved for a subject and not read since, after `after`.
    pub fn moved(
        &self,
        subject: Subject,
        after: Option<PackNo>,
        limit: usize,
    ) -> Result<Vec<PackNo>, CatalogueError> {
        let span = Span::within(&subject);
        let span = after.map_or(span.clone(), |after| span.beyond(&(subject, after)));
        Ok(self.scan::<Moveds>(&span, limit)?.into_iter().map(|((_, pack), ())| pack).collect())
    }
    /// Records of what was read again, by number.
    pub fn verifications(&self) -> Result<Vec<(u64, Verification)>, CatalogueError> {
        let rows = self.scan::<Verifications>(&Span::all(), VERIFICATIONS_MAX + 1)?;
        Ok(rows.into_iter().map(|(key, row)| (key.0, row)).collect())
    }
    /// Stripes of one record, after `after`.
    pub fn verified_stripes(
        &self,
        number: u64,
        after: Option<PackNo>,
        limit: usize,
    ) -> Result<Vec<(PackNo, VerifiedStripe)>, CatalogueError> {
        let key = VerificationKey(number);
        let span = Span::within(&key);
        let span = after.map_or(span.clone(), |after| span.beyond(&(key, after)));
        Ok(self
            .scan::<VerifiedStripes>(&span, limit)?
            .into_iter()
            .map(|((_, pack), row)| (pack, row))
            .collect())
    }
    /// The number of each node's data directory.
    pub fn incarnations(&self) -> Result<BTreeMap<NodeId, u64>, CatalogueError> {
        Ok(self.scan::<Incarnations>(&Span::all(), NODES_MAX)?.into_iter().collect())
    }
    /// The feature level that each node's program can do.
    pub fn node_levels(&self) -> Result<BTreeMap<NodeId, u32>, CatalogueError> {
        Ok(self.scan::<NodeLevels>(&Span::all(), NODES_MAX)?.into_iter().collect())
    }

    /// Repositories after `after`, by id.
    pub fn repos(
        &self,
        after: Option<RepoId>,
        limit: usize,
    ) -> Result<Page<RepoRecord, RepoId>, CatalogueError> {
        let rows = self.page::<Repos>(Span::after(after.as_ref()), limit)?;
        Ok(paged(rows, limit, |repo| repo.id))
    }
    /// One repository.
    pub fn repo(&self, id: RepoId) -> Result<Option<RepoRecord>, CatalogueError> {
        self.get::<Repos>(&id)
    }
    /// One repository by its name.
    pub fn repo_by_name(&self, name: &str) -> Result<Option<RepoRecord>, CatalogueError> {
        match self.get::<RepoNames>(&NameKey(name.into()))? {
            Some(id) => self.repo(id),
            None => Ok(None),
        }
    }

    /// Open sessions after `after`, by id.
    pub fn sessions(
        &self,
        after: Option<SessionId>,
        limit: usize,
    ) -> Result<Page<SessionRecord, SessionId>, CatalogueError> {
        let rows = self.page::<Sessions>(Span::after(after.as_ref()), limit)?;
        Ok(paged(rows, limit, |session| session.id))
    }
    /// One session, if it is open.
    pub fn session(&self, id: SessionId) -> Result<Option<SessionRecord>, CatalogueError> {
        self.get::<Sessions>(&id)
    }

    /// Where chunks lie: one answer per id, in order.
    pub fn lookup(&self, repo: RepoId, ids: &[ChunkId]) -> Result<Vec<Option<ChunkRecord>>, CatalogueError> {
        ids.iter().map(|id| self.get::<Chunks>(&(repo, *id))).collect()
    }

    /// The ordinals under which chunks need not be sent again: those of packs that are condemned or lost are not offered.
    /// One answer per id, in order.
    pub fn offered(&self, repo: RepoId, ids: &[ChunkId]) -> Result<Vec<Option<Ordinal>>, CatalogueError> {
        let mut gone = BTreeMap::<PackNo, bool>::new();
        // Exact counts: while nothing is condemned or weak, there is nothing to ask.
        let rows = |table| self.state.rows_of(table);
        let all_good = rows(CondemnedPacks::TABLE) == 0 && rows(UnderTargets::TABLE) == 0;
        let mut nodes = None;
        let mut offered = Vec::with_capacity(ids.len());
        for found in self.lookup(repo, ids)? {
            let Some(chunk) = found else {
                offered.push(None);
                continue;
            };
            let is_gone = match gone.get(&chunk.pack) {
                _ if all_good => false,
                Some(known) => *known,
                None => {
                    let is_gone = self.is_gone(repo, chunk.pack, &mut nodes)?;
                    gone.insert(chunk.pack, is_gone);
                    is_gone
                }
            };
            offered.push((!is_gone).then_some(chunk.ordinal));
        }
        Ok(offered)
    }

    fn is_gone(
        &self,
        repo: RepoId,
        no: PackNo,
        nodes: &mut Option<BTreeSet<NodeId>>,
    ) -> Result<bool, CatalogueError> {
        if self.has::<CondemnedPacks>(&(repo, no))? {
            return Ok(!mutant(Mutant::OfferCondemned));
        }
        if !self.is_under_target(no)? {
            return Ok(false);
        }
        let Some(pack) = self.pack(no)? else { return Ok(true) };
        if nodes.is_none() {
            let counting = self.nodes()?.into_iter().filter(|node| node.state.counts());
            *nodes = Some(counting.map(|node| node.id).collect());
        }
        Ok(pack.stripe.is_lost(|node| nodes.as_ref().is_some_and(|nodes| nodes.contains(&node))))
    }

    /// One pack.
    pub fn pack(&self, no: PackNo) -> Result<Option<PackRecord>, CatalogueError> {
        self.get::<Packs>(&no)
    }
    /// One pack by what it holds.
    pub fn pack_by_id(&self, repo: RepoId, id: PackId) -> Result<Option<PackRecord>, CatalogueError> {
        self.pack_at(self.get::<PackIds>(&(repo, id))?)
    }
    /// The pack that a stripe codes.
    pub fn pack_of_stripe(&self, stripe: StripeId) -> Result<Option<PackRecord>, CatalogueError> {
        self.pack_at(self.get::<Stripes>(&stripe)?)
    }
    /// Packs by their stripes, from one id to another and both included.
    pub fn packs_of_stripes(
        &self,
        first: StripeId,
        last: StripeId,
        limit: usize,
    ) -> Result<Vec<PackNo>, CatalogueError> {
        Ok(values(self.scan::<Stripes>(&Span::from(&first).up_to(&last), limit)?))
    }
    /// Packs of a repository by what they hold, from one id to another and both included.
    pub fn packs_by_ids(
        &self,
        repo: RepoId,
        first: PackId,
        last: PackId,
        limit: usize,
    ) -> Result<Vec<PackNo>, CatalogueError> {
        Ok(values(self.scan::<PackIds>(&Span::from(&(repo, first)).up_to(&(repo, last)), limit)?))
    }
    /// Whether a pack waits to be deleted.
    pub fn is_condemned_pack(&self, repo: RepoId, no: PackNo) -> Result<bool, CatalogueError> {
        self.has::<CondemnedPacks>(&(repo, no))
    }
    /// Packs of every repository from number `from` on.
    pub fn all_packs(&self, from: PackNo, limit: usize) -> Result<Page<PackRecord, PackNo>, CatalogueError> {
        let rows = self.page::<Packs>(Span::from(&from), limit)?;
        Ok(paged(rows, limit, |pack| PackNo(pack.no.0 + 1)))
    }
    /// Packs of one repository from number `from` on.
    pub fn packs(
        &self,
        repo: RepoId,
        from: PackNo,
        limit: usize,
    ) -> Result<Page<PackRecord, PackNo>, CatalogueError> {
        let limit = limit.clamp(1, PAGE_ROWS_MAX);
        let span = Span::within(&repo).starting(&(repo, self.ordinal_from(repo, from)?));
        let found = self.scan::<OrdinalPacks>(&span, limit)?;
        let mut rows = Vec::with_capacity(found.len());
        for (_, no) in found {
            rows.extend(self.pack(no)?);
        }
        let next = rows.last().filter(|_| rows.len() >= limit).map(|pack| PackNo(pack.no.0 + 1));
        Ok(Page { rows, next })
    }
    /// An ordinal above those of all packs of a repository below number `from`, and not above those of any other.
    /// Numbers and ordinals of a repository ascend together, so that halving finds it, even if the pack of that number was
    /// dropped or is another repository's.
    fn ordinal_from(&self, repo: RepoId, from: PackNo) -> Result<Ordinal, CatalogueError> {
        if let Some(pack) = self.pack(from)?.filter(|pack| pack.repo == repo) {
            return Ok(pack.first_ordinal);
        }
        let (mut low, mut high) = (0, self.next_ordinal(repo)?.0);
        while low < high {
            let middle = low + (high - low) / 2;
            let span = Span::within(&repo).starting(&(repo, Ordinal(middle)));
            match self.scan::<OrdinalPacks>(&span, 1)?.pop() {
                Some(((_, first), no)) if no < from => low = first.0 + 1,
                _ => high = middle,
            }
        }
        Ok(Ordinal(low))
    }

    /// Snapshots of a repository after `after`, by id; their live sets only if asked for.
    pub fn snapshots(
        &self,
        repo: RepoId,
        after: Option<SnapshotId>,
        limit: usize,
        with_live: bool,
    ) -> Result<Page<SnapshotRecord, SnapshotId>, CatalogueError> {
        self.records::<Snapshots>(repo, after, limit, with_live)
    }
    /// One snapshot with its live set.
    pub fn snapshot(&self, repo: RepoId, id: SnapshotId) -> Result<Option<SnapshotRecord>, CatalogueError> {
        let Some(row) = self.get::<Snapshots>(&(repo, id))? else { return Ok(None) };
        Ok(Some(SnapshotRecord { live: self.live(&(repo, id))?, ..row }))
    }
    /// Snapshots in the trash after `after`, by id, without their live sets.
    pub fn trash(
        &self,
        repo: RepoId,
        after: Option<SnapshotId>,
        limit: usize,
    ) -> Result<Page<SnapshotRecord, SnapshotId>, CatalogueError> {
        self.records::<Trash>(repo, after, limit, false)
    }
    /// A page of either: it ends when its rows have come to many bytes, too.
    fn records<R: Rows<Key = (RepoId, SnapshotId), Value = SnapshotRecord>>(
        &self,
        repo: RepoId,
        after: Option<SnapshotId>,
        limit: usize,
        with_live: bool,
    ) -> Result<Page<SnapshotRecord, SnapshotId>, CatalogueError> {
        let mut span = Span::within(&repo);
        if let Some(after) = after {
            span = span.beyond(&(repo, after));
        }
        let limit = limit.clamp(1, PAGE_ROWS_MAX);
        let mut page = Page { rows: Vec::new(), next: None };
        let mut bytes = 0;
        while page.rows.len() < limit {
            let Some((key, mut row)) = self.scan::<R>(&span, 1)?.pop() else { return Ok(page) };
            if with_live {
                row.live = self.live(&key)?;
            }
            bytes += row.sealed.len() + row.live.len();
            if bytes > PAGE_BYTES_MAX && !page.rows.is_empty() {
                break;
            }
            span = span.beyond(&key);
            page.rows.push(row);
        }
        page.next = page.rows.last().map(|row| row.id);
        Ok(page)
    }
    /// What is kept beside a snapshot.
    pub fn marks(&self, repo: RepoId, id: SnapshotId) -> Result<SnapshotMarks, CatalogueError> {
        Ok(self.get::<Marks>(&(repo, id))?.unwrap_or_default())
    }
    /// What is kept beside a repository.
    pub fn settings(&self, repo: RepoId) -> Result<RepoSettings, CatalogueError> {
        Ok(self.get::<Settings>(&repo)?.unwrap_or_default())
    }
    fn live(&self, key: &(RepoId, SnapshotId)) -> Result<Vec<u8>, CatalogueError> {
        self.get::<LiveSets>(key)?.ok_or(CatalogueError::Torn("a snapshot lacks its live set"))
    }

    /// Packs listed as below full strength, from number `from` on.
    pub fn under_target(&self, from: PackNo, limit: usize) -> Result<Page<PackNo, PackNo>, CatalogueError> {
        let rows = self.scan::<UnderTargets>(&Span::from(&from), limit)?;
        let rows = rows.into_iter().map(|(no, _)| no).collect();
        Ok(paged(rows, limit, |no| PackNo(no.0 + 1)))
    }
    /// Whether a pack is listed as below full strength.
    pub fn is_under_target(&self, no: PackNo) -> Result<bool, CatalogueError> {
        self.has::<UnderTargets>(&no)
    }
    /// Packs of which a node is the recorded holder of a shard, and a bit for each shard index, from number `from` on.
    pub fn packs_held_by(
        &self,
        node: NodeId,
        from: PackNo,
        limit: usize,
    ) -> Result<Page<(PackNo, u32), PackNo>, CatalogueError> {
        let rows = self.scan::<Holders>(&Span::within(&node).starting(&(node, from)), limit)?;
        let rows = rows.into_iter().map(|((_, no), held)| (no, held)).collect();
        Ok(paged(rows, limit, |(no, _)| PackNo(no.0 + 1)))
    }
    /// Copies that a node should delete, after `after`.
    pub fn condemned(
        &self,
        node: NodeId,
        after: Option<ShardId>,
        limit: usize,
    ) -> Result<Page<Condemned, ShardId>, CatalogueError> {
        let mut span = Span::within(&node);
        if let Some(after) = after {
            span = span.beyond(&(node, after));
        }
        let rows = self.scan::<Condemneds>(&span, limit)?;
        let rows = rows.into_iter().map(|((node, shard), ())| Condemned { node, shard }).collect();
        Ok(paged(rows, limit, |copy| copy.shard))
    }
    /// Copies of one stripe's shards that a node should delete.
    pub fn condemned_of_stripe(
        &self,
        node: NodeId,
        stripe: StripeId,
    ) -> Result<Vec<Condemned>, CatalogueError> {
        let rows = self.scan::<Condemneds>(&Span::within(&(node, stripe)), STRIPE_SHARDS_MAX)?;
        Ok(rows.into_iter().map(|((node, shard), ())| Condemned { node, shard }).collect())
    }
    /// Whether this copy is to be deleted.
    pub fn is_condemned(&self, copy: Condemned) -> Result<bool, CatalogueError> {
        self.has::<Condemneds>(&(copy.node, copy.shard))
    }

    /// Next ordinal of a repository: every ordinal below it was given out.
    pub fn next_ordinal(&self, repo: RepoId) -> Result<Ordinal, CatalogueError> {
        Ok(self.get::<NextOrdinals>(&repo)?.unwrap_or_default())
    }

    /// Exports of the catalogue that are kept, the newest last.
    pub fn exports(&self) -> Result<Vec<ExportRecord>, CatalogueError> {
        Ok(values(self.scan::<Exports>(&Span::all(), EXPORT_ROWS_MAX)?))
    }

    /// Audit records from number `from` on, as they are stored: version byte, then postcard. Whoever checks the chain reads
    /// them itself, so that a record which does not decode is named and not hidden behind an error of ours.
    pub fn audit(&self, from: u64, limit: usize) -> Result<Vec<(u64, Vec<u8>)>, CatalogueError> {
        let rows = self.raw_scan(Audits::TABLE, &Span::from(&AuditKey(from)), limit.min(PAGE_ROWS_MAX))?;
        let row = |row: Row| {
            let AuditKey(seq) = decode_key::<Audits>(&row.key)?;
            Ok((seq, [&[row.version], row.payload.as_slice()].concat()))
        };
        rows.into_iter().map(row).collect()
    }
    /// Where the audit chain ends.
    pub fn audit_head(&self) -> Result<AuditHead, CatalogueError> {
        audit_head(self, &self.state)
    }

    fn pack_at(&self, no: Option<PackNo>) -> Result<Option<PackRecord>, CatalogueError> {
        no.map_or(Ok(None), |no| self.pack(no))
    }
    fn page<R: Rows>(&self, span: Span, limit: usize) -> Result<Vec<R::Value>, CatalogueError> {
        Ok(values(self.scan::<R>(&span, limit)?))
    }
    fn stored(&self) -> Stored<'_, dyn farshore_core::host::KvRead> {
        Stored { records: &self.records, generation: self.generation }
    }
}

fn values<K, V>(rows: Vec<(K, V)>) -> Vec<V> {
    rows.into_iter().map(|(_, value)| value).collect()
}

/// A full page may have a next one; a short page is the last.
fn paged<T, K>(rows: Vec<T>, limit: usize, next: impl Fn(&T) -> K) -> Page<T, K> {
    let next = rows.last().filter(|_| rows.len() >= limit.min(PAGE_ROWS_MAX)).map(next);
    Page { rows, next }
}

impl Read for View {
    fn raw_get(&self, table: Table, key: &[u8]) -> Result<Option<Payload>, CatalogueError> {
        self.stored().raw_get(table, key)
    }
    fn raw_scan(&self, table: Table, span: &Span, limit: usize) -> Result<Vec<Row>, CatalogueError> {
        self.stored().raw_scan(table, span, limit.min(PAGE_ROWS_MAX.max(NODES_MAX).max(EXPORT_ROWS_MAX)))
    }
}
