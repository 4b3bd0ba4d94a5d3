//! What to do about packs that nobody needs: pure, from what a view says of one repository.

use crate::catalogue::{PackUse, RepoUse};
use farshore_core::id::PackNo;
use farshore_core::mutant::{Mutant, mutant};

/// What there is in a repository, in packs and bytes before coding.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// All packs.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packs without a live chunk that may go on to be condemned.
    pub dead: u64,
    /// Their bytes.
    pub dead_bytes: u64,
    /// Packs condemned before, and dead still.
    pub condemned: u64,
    /// Their bytes.
    pub condemned_bytes: u64,
    /// Of those, packs that wait for a session opened before their condemnation.
    pub waiting: u64,
    /// Packs without a live chunk that may belong to an open session.
    pub in_use: u64,
    /// Their bytes.
    pub in_use_bytes: u64,
    /// Packs of which so little is needed that it is worth copying.
    pub sparse: u64,
    /// Bytes that copying them would free.
    pub sparse_bytes: u64,
    /// Packs that are coded in another way than the policy asks for now.
    pub recode: u64,
    /// Their bytes.
    pub recode_bytes: u64,
}

/// What to propose.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct GarbagePlan {
    /// To be condemned.
    pub condemn: Vec<PackNo>,
    /// Condemned, and needed after all.
    pub revive: Vec<PackNo>,
    /// Condemned before this look, dead still, and nobody is waited for.
    pub drop: Vec<PackUse>,
    /// Worth copying: so little is needed of them, or they are to be coded in another way. Ascending.
    pub sparse: Vec<PackUse>,
    /// To be coded in another way, and not at full strength.
    pub recode_weak: Vec<PackUse>,
}

/// Sorts packs of one repository by what is to be done about them, and counts them. `sparse_percent`: packs of which less
/// is needed are worth copying.
pub fn plan_garbage(
    of: &RepoUse,
    packs: &[PackUse],
    sparse_percent: u64,
    totals: &mut Totals,
) -> GarbagePlan {
    let mut plan = GarbagePlan::default();
    for pack in packs {
        totals.packs += 1;
        totals.bytes += pack.len;
        match pack.as_condemned() {
            Some(_) if pack.live > 0 && !mutant(Mutant::OfferCondemned) => plan.revive.push(pack.no),
            Some(condemned) => {
                totals.condemned += 1;
                totals.condemned_bytes += pack.len;
                let waits = of.oldest_session.is_some_and(|opened| opened <= condemned.at);
                if waits && !mutant(Mutant::DropUnderSession) && !mutant(Mutant::TakeGone) {
                    totals.waiting += 1;
                } else if condemned.at <= of.looked {
                    plan.drop.push(*pack);
                }
            }
            None if may_be_own(of, pack.no) && pack.live == 0 => {
                totals.in_use += 1;
                totals.in_use_bytes += pack.len;
            }
            None if may_be_own(of, pack.no) => {}
            None if pack.live == 0 => {
                totals.dead += 1;
                totals.dead_bytes += pack.len;
                plan.condemn.push(pack.no);
            }
            None if pack.other_code => {
                totals.recode += 1;
                totals.recode_bytes += pack.len;
                // A code that does not fit the nodes may be what keeps it weak: still, those at full strength come first.
                if pack.weak { plan.recode_weak.push(*pack) } else { plan.sparse.push(*pack) }
            }
            // What is weak is repaired first: copying needs its shards as well.
            None if pack.live * 100 < pack.chunks * sparse_percent && !pack.weak => {
                totals.sparse += 1;
                totals.sparse_bytes += pack.len * (pack.chunks - pack.live) / pack.chunks;
                plan.sparse.push(*pack);
            }
            None => {}
        }
    }
    plan
}

fn may_be_own(of: &RepoUse, no: PackNo) -> bool {
    of.first_own.is_some_and(|first| no >= first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::LiveSet;
    use farshore_core::catalogue::PackKind;
    use farshore_core::id::RepoId;

    fn pack(no: u64, live: u64, condemned: Option<u64>) -> PackUse {
        PackUse {
            no: PackNo(no),
            kind: PackKind::Data,
            len: 100,
            chunks: 10,
            live,
            condemned,
            weak: false,
            other_code: false,
        }
    }

    fn repo(first_own: Option<u64>, oldest_session: Option<u64>) -> RepoUse {
        RepoUse {
            repo: RepoId([1; 16]),
            looked: 50,
            live: LiveSet::default(),
            first_own: first_own.map(PackNo),
            oldest_session,
            sessions: 0,
            recoding: None,
        }
    }

    #[test]
    fn each_pack_gets_what_is_due() {
        let packs = [
            pack(1, 0, None),
            pack(2, 5, None),
            pack(3, 6, None),
            pack(4, 0, Some(20)),
            pack(5, 0, Some(40)),
            pack(6, 1, Some(20)),
            PackUse { weak: true, ..pack(7, 5, None) },
            pack(8, 0, None),
            pack(9, 1, None),
        ];
        let mut totals = Totals::default();
        let plan = plan_garbage(&repo(Some(8), Some(30)), &packs, 60, &mut totals);
        assert_eq!(plan.condemn, [PackNo(1)]);
        assert_eq!(plan.revive, [PackNo(6)]);
        assert_eq!(plan.drop, [packs[3]], "5 waits for the session of 30");
        assert_eq!(plan.sparse, [packs[1]], "3 is full enough, 7 is weak, 9 may be a session's own");
        let expected = Totals {
            packs: 9,
            bytes: 900,
            dead: 1,
            dead_bytes: 100,
            condemned: 2,
            condemned_bytes: 200,
            waiting: 1,
            in_use: 1,
            in_use_bytes: 100,
            sparse: 1,
            sparse_bytes: 50,
            ..Totals::default()
        };
        assert_eq!(totals, expected);
        let plan = plan_garbage(&repo(None, None), &packs, 60, &mut Totals::default());
        assert_eq!(plan.drop.len(), 2, "nobody is waited for");
        assert_eq!(plan.condemn, [PackNo(1), PackNo(8)]);
    }

    #[test]
    fn packs_of_another_code_are_copied_however_full_and_the_weak_ones_last() {
        let other = |no, live, weak| PackUse { other_code: true, weak, ..pack(no, live, None) };
        let packs = [
            other(1, 10, true),
            other(2, 10, false),
            other(3, 0, false),
            other(9, 10, false),
            pack(4, 10, None),
        ];
        let mut totals = Totals::default();
        let plan = plan_garbage(&repo(Some(8), None), &packs, 60, &mut totals);
        assert_eq!((plan.sparse, plan.recode_weak), (vec![packs[1]], vec![packs[0]]));
        assert_eq!((totals.recode, totals.recode_bytes, totals.sparse), (2, 200, 0));
        assert_eq!(plan.condemn, [PackNo(3)], "what nobody needs is not copied");
    }

    #[test]
    fn a_session_opened_by_the_condemnation_itself_is_waited_for() {
        let plan = plan_garbage(&repo(None, Some(20)), &[pack(4, 0, Some(20))], 60, &mut Totals::default());
        assert!(plan.drop.is_empty());
        let plan = plan_garbage(&repo(None, Some(21)), &[pack(4, 0, Some(20))], 60, &mut Totals::default());
        assert_eq!(plan.drop.len(), 1);
        let young = plan_garbage(&repo(None, None), &[pack(4, 0, Some(51))], 60, &mut Totals::default());
        assert!(young.drop.is_empty(), "condemned after this look");
    }
}
