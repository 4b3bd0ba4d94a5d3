//! What follows when chunks move, appear or go: the ordinals of a pack, and which ordinals are absent or condemned.
//! Every change of either is here.

use super::super::error::CatalogueError;
use super::super::ordinals::{Bits, Ordinals, Segment, segment_of};
use super::super::read::Read;
use super::super::tables::*;
use super::super::tx::Tx;
use farshore_core::catalogue::PackRecord;
use farshore_core::id::{Ordinal, RepoId};

/// Ordinals of the chunks that live in this pack.
pub(super) fn of_pack(tx: &Tx, pack: &PackRecord) -> Result<Ordinals, CatalogueError> {
    let moved = tx.get::<PackOrdinals>(&pack.no)?;
    Ok(moved.unwrap_or_else(|| given_to(pack)))
}

/// What a pack was given at its commit.
fn given_to(pack: &PackRecord) -> Ordinals {
    Ordinals::range(pack.first_ordinal, pack.chunks)
}

pub(super) fn set_of_pack(tx: &mut Tx, pack: &PackRecord, set: &Ordinals) -> Result<(), CatalogueError> {
    if *set == given_to(pack) {
        return tx.remove::<PackOrdinals>(&pack.no);
    }
    tx.put::<PackOrdinals>(&pack.no, set)
}

/// No chunk is there under these any more, or never was.
pub(super) fn set_absent(
    tx: &mut Tx,
    repo: RepoId,
    which: impl IntoIterator<Item = Ordinal>,
) -> Result<(), CatalogueError> {
    change(tx, repo, which, |segment, at| {
        segment.absent.set(at);
        segment.condemned.clear(at);
    })
}

pub(super) fn set_condemned(
    tx: &mut Tx,
    repo: RepoId,
    which: impl IntoIterator<Item = Ordinal>,
) -> Result<(), CatalogueError> {
    change(tx, repo, which, |segment, at| segment.condemned.set(at))
}

/// Neither absent nor condemned.
pub(super) fn set_present(
    tx: &mut Tx,
    repo: RepoId,
    which: impl IntoIterator<Item = Ordinal>,
) -> Result<(), CatalogueError> {
    change(tx, repo, which, |segment, at| {
        segment.absent.clear(at);
        segment.condemned.clear(at);
    })
}

/// Reads and writes each segment once for each run of neighbours in it.
fn change(
    tx: &mut Tx,
    repo: RepoId,
    which: impl IntoIterator<Item = Ordinal>,
    each: impl Fn(&mut Segment, u16),
) -> Result<(), CatalogueError> {
    let mut open: Option<(Ordinal, Segment)> = None;
    for ordinal in which {
        let (no, at) = segment_of(ordinal);
        if open.as_ref().is_none_or(|(known, _)| *known != no) {
            if let Some((no, segment)) = open.take() {
                put(tx, repo, no, &segment)?;
            }
            open = Some((no, tx.get::<Segments>(&(repo, no))?.unwrap_or_default()));
        }
        if let Some((_, segment)) = &mut open {
            each(segment, at);
        }
    }
    open.map_or(Ok(()), |(no, segment)| put(tx, repo, no, &segment))
}

fn put(tx: &mut Tx, repo: RepoId, no: Ordinal, segment: &Segment) -> Result<(), CatalogueError> {
    if segment.is_empty() {
        return tx.remove::<Segments>(&(repo, no));
    }
    tx.put::<Segments>(&(repo, no), segment)
}

/// Every segment of a repository in which some ordinal is not plainly present: one row for 65,536 chunks.
pub(super) fn segments(tx: &Tx, repo: RepoId) -> Result<Vec<(Ordinal, Segment)>, CatalogueError> {
    let rows = tx.scan::<Segments>(&Span::within(&repo), usize::MAX / 2)?;
    Ok(rows.into_iter().map(|((_, no), segment)| (no, segment)).collect())
}

/// The ordinals set in both.
pub(super) fn common(no: Ordinal, a: &Bits, b: &Bits) -> Vec<Ordinal> {
    let first = no.0 * super::super::ordinals::SEGMENT;
    a.common(b).map(|at| Ordinal(first + u64::from(at))).collect()
}
