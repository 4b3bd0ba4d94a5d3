//! Which exports to build from. Pure: from what the parts say of themselves to one base and the increments on top of it.

use crate::catalogue::part::{ExportTag, export_tag};
use crate::catalogue::{PartHeader, StateHash};
use farshore_core::id::{ExportId, StripeId};
use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;

/// An export as far as it was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Export {
    /// Which.
    pub id: ExportId,
    /// A whole catalogue.
    pub base: bool,
    /// Last log entry before it.
    pub from: u64,
    /// Last log entry in it.
    pub to: u64,
    /// Catalogue time after it.
    pub time_ms: u64,
    /// State hash after it.
    pub state_hash: StateHash,
    /// Snapshots after it.
    pub snapshots: u64,
    /// Packs after it.
    pub packs: u64,
    /// Era in which it was made.
    pub era: u32,
    /// Which export it goes on from, as far as it says so.
    pub after: ExportTag,
    /// Its parts in order, if it is complete.
    pub parts: Vec<StripeId>,
    /// Why it is not.
    pub complete: Result<(), String>,
}

/// Puts parts together. A part found twice (coded twice, say) counts once.
pub fn assemble(parts: impl IntoIterator<Item = (PartHeader, StripeId)>) -> Vec<Export> {
    let mut found = BTreeMap::<ExportId, Vec<(PartHeader, StripeId)>>::new();
    for (header, stripe) in parts {
        found.entry(header.export).or_default().push((header, stripe));
    }
    found.into_values().map(export_of).collect()
}

fn export_of(mut parts: Vec<(PartHeader, StripeId)>) -> Export {
    parts.sort_by_key(|(header, _)| header.number);
    parts.dedup_by_key(|(header, _)| header.number);
    let (first, _) = parts[0];
    let same =
        |header: &PartHeader| PartHeader { number: first.number, last: first.last, ..*header } == first;
    let in_order = parts.iter().zip(0..).all(|((header, _), number)| header.number == number);
    let ends = parts.last().is_some_and(|(header, _)| header.last);
    let complete = match (parts.iter().all(|(header, _)| same(header)), in_order && ends) {
        (false, _) => Err("its parts contradict each other".into()),
        (true, false) => Err(format!("only {} of its parts can be read", parts.len())),
        (true, true) => Ok(()),
    };
    Export {
        id: first.export,
        base: first.base,
        from: first.from,
        to: first.to,
        time_ms: first.time_ms,
        state_hash: first.state_hash,
        snapshots: first.snapshots,
        packs: first.packs,
        era: first.era,
        after: first.after,
        parts: parts.into_iter().map(|(_, stripe)| stripe).collect(),
        complete,
    }
}

/// A base and what is replayed on top, as positions in the list of exports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chain {
    /// The base.
    pub base: usize,
    /// Increments in order. They may overlap; entries that are there already are skipped.
    pub increments: Vec<usize>,
}

impl Chain {
    /// The export it ends with.
    pub fn last<'a>(&self, exports: &'a [Export]) -> &'a Export {
        &exports[self.increments.last().copied().unwrap_or(self.base)]
    }
}

impl Export {
    /// How far it leads: an entry of a later era is later, whatever its index.
    pub fn end(&self) -> (u32, u64) {
        (self.era, self.to)
    }
}

/// Which increments may be replayed on which state.
struct Links(BTreeMap<ExportTag, (u32, u64)>);

impl Links {
    /// Every export that was seen counts, complete or not: it is only to say where another goes on from.
    fn of(exports: &[Export]) -> Self {
        Links(exports.iter().map(|export| (export_tag(export.id), export.end())).collect())
    }

    /// Within an era there is one log, so that increments may overlap. What a later era names as its beginning is common
    /// history; anything else that it shares with an earlier era are indices that were given out twice.
    fn may_follow(&self, next: &Export, before: &Export) -> bool {
        if next.base || next.to <= before.to {
            return false;
        }
        match next.era.cmp(&before.era) {
            Ordering::Less => false,
            Ordering::Equal => next.from <= before.to,
            Ordering::Greater => next.from == before.to && self.0.get(&next.after) == Some(&before.end()),
        }
    }
}

/// The best way to one export.
#[derive(Clone, Copy)]
struct Way {
    /// The one before it; `None` for a base.
    before: Option<usize>,
    base: usize,
    steps: usize,
}

/// The chain that leads furthest in the latest era; among equals the one with the newest base, and then the one of the
/// fewest increments. `None` if there is no base to use.
pub fn choose(exports: &[Export], unusable: &BTreeMap<ExportId, String>) -> Option<Chain> {
    let links = Links::of(exports);
    let usable = |at: &usize| exports[*at].complete.is_ok() && !unusable.contains_key(&exports[*at].id);
    let mut order: Vec<usize> = (0..exports.len()).filter(usable).collect();
    // Every step leads to a later end, so whatever an export may follow has been settled before it.
    order.sort_by_key(|at| exports[*at].end());
    let newness = |way: &Way| (exports[way.base].end(), Reverse(way.steps));
    let mut ways = BTreeMap::<usize, Way>::new();
    for at in order {
        let over = ways.iter().filter(|(before, _)| links.may_follow(&exports[at], &exports[**before]));
        let over = over.map(|(before, way)| Way { before: Some(*before), steps: way.steps + 1, ..*way });
        let begun = exports[at].base.then_some(Way { before: None, base: at, steps: 0 });
        if let Some(best) = over.chain(begun).max_by_key(newness) {
            ways.insert(at, best);
        }
    }
    let (last, way) = ways.iter().max_by_key(|(at, way)| (exports[**at].end(), newness(way)))?;
    let mut increments = Vec::with_capacity(way.steps);
    let mut at = *last;
    while let Some(before) = ways[&at].before {
        increments.push(at);
        at = before;
    }
    increments.reverse();
    Some(Chain { base: way.base, increments })
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_core::id::ClusterId;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn header(id: u8, base: bool, from: u64, to: u64, number: u32, last: bool) -> PartHeader {
        PartHeader {
            cluster: ClusterId([1; 16]),
            export: ExportId([id; 16]),
            base,
            last,
            number,
            from,
            to,
            time_ms: to * 10,
            state_hash: StateHash([to as u8; 16]),
            snapshots: 0,
            packs: 0,
            era: 0,
            after: ExportTag::default(),
        }
    }
    fn stripe(id: u8, number: u32) -> StripeId {
        StripeId([id.wrapping_mul(16).wrapping_add(number as u8); 16])
    }
    fn whole(id: u8, base: bool, from: u64, to: u64) -> Export {
        assemble([(header(id, base, from, to, 0, true), stripe(id, 0))]).remove(0)
    }
    /// Of a later era, after the export with this id.
    fn later(id: u8, era: u32, from: u64, to: u64, after: u8) -> Export {
        let after = export_tag(ExportId([after; 16]));
        Export { era, after, ..whole(id, false, from, to) }
    }
    fn without(ids: &[u8]) -> BTreeMap<ExportId, String> {
        ids.iter().map(|id| (ExportId([*id; 16]), String::new())).collect()
    }
    fn ids(exports: &[Export], chain: &Chain) -> Vec<u8> {
        let all = std::iter::once(&chain.base).chain(&chain.increments);
        all.map(|at| exports[*at].id.0[0]).collect()
    }

    #[test]
    fn an_export_is_complete_with_all_parts_up_to_the_last() {
        let part = |number, last| (header(1, true, 0, 9, number, last), stripe(1, number));
        let complete = |parts: &[(PartHeader, StripeId)]| {
            let exports = assemble(parts.iter().copied());
            assert_eq!(exports.len(), 1);
            exports[0].complete.is_ok().then(|| exports[0].parts.clone())
        };
        let all = [part(2, true), part(0, false), part(1, false), part(1, false)];
        assert_eq!(complete(&all), Some(vec![stripe(1, 0), stripe(1, 1), stripe(1, 2)]));
        assert_eq!(complete(&all[1..]), None, "the last is missing");
        assert_eq!(complete(&[all[0], all[2]]), None, "the first is missing");
        assert_eq!(complete(&[all[0], all[1]]), None, "one between is missing");
        let mut other = all;
        other[0].0.state_hash = StateHash([0; 16]);
        assert_eq!(complete(&other), None, "they do not belong together");
    }

    #[test]
    fn the_chain_that_leads_furthest_is_taken() {
        let exports = [
            whole(1, true, 0, 10),
            whole(2, false, 10, 15),
            whole(3, true, 0, 20),
            whole(4, false, 15, 22),
            whole(5, false, 20, 25),
            whole(6, false, 26, 30),
        ];
        let chosen = |unusable: &[u8]| {
            choose(&exports, &without(unusable)).map(|chain| (ids(&exports, &chain), chain.last(&exports).to))
        };
        assert_eq!(chosen(&[]), Some((vec![3, 5], 25)), "26 is missing");
        assert_eq!(chosen(&[3]), Some((vec![1, 2, 4, 5], 25)), "an older base with more on top is as good");
        assert_eq!(chosen(&[3, 2]), Some((vec![1], 10)));
        assert_eq!(chosen(&[5]), Some((vec![3, 4], 22)));
        assert_eq!(chosen(&[1, 3]), None);
    }

    /// A recovery took up entry 12 of era 0 again as entry 13 of era 5, and the lost replicas had gone on to 40.
    #[test]
    fn an_abandoned_history_is_no_way_to_the_later_era_and_never_preferred_to_it() {
        let exports = [
            whole(1, true, 0, 10),
            whole(2, false, 10, 12),
            whole(3, false, 12, 15),
            whole(4, false, 15, 40),
            later(5, 5, 12, 15, 2),
            later(6, 5, 14, 20, 5),
            Export { era: 5, ..whole(7, true, 0, 18) },
            later(8, 9, 15, 22, 5),
        ];
        let chosen = |unusable: &[u8]| {
            let chain = choose(&exports, &without(unusable)).unwrap();
            (ids(&exports, &chain), chain.last(&exports).end())
        };
        assert_eq!(chosen(&[]), (vec![1, 2, 5, 8], (9, 22)));
        assert_eq!(chosen(&[8]), (vec![7, 6], (5, 20)), "40 entries of an earlier era are less");
        assert_eq!(chosen(&[8, 7]), (vec![1, 2, 5, 6], (5, 20)));
        assert_eq!(
            chosen(&[7, 5]),
            (vec![1, 2, 3, 4], (0, 40)),
            "entry 15 of era 0 is not what 8 goes on from"
        );
        let unnamed = [whole(1, true, 0, 10), later(2, 5, 10, 12, 77)];
        assert_eq!(ids(&unnamed, &choose(&unnamed, &without(&[])).unwrap()), [1], "it names another");
        let twin = [whole(1, true, 0, 10), whole(2, false, 3, 10), later(3, 5, 10, 12, 2)];
        assert_eq!(
            ids(&twin, &choose(&twin, &without(&[])).unwrap()),
            [1, 3],
            "as far in the same era is the same"
        );
    }

    /// How far eras follow each other: the one before, and the last entry taken over from it.
    type Eras = Vec<(usize, u64)>;

    /// Who wrote entry `index` of the history of an era.
    fn writer(eras: &Eras, era: usize, index: u64) -> usize {
        match eras.get(era.wrapping_sub(1)) {
            Some((before, kept)) if index <= *kept => writer(eras, *before, index),
            _ => era,
        }
    }
    /// Both have the same entries up to this one.
    fn agree(eras: &Eras, a: u32, b: u32, upto: u64) -> bool {
        (1..=upto).all(|index| writer(eras, a as usize, index) == writer(eras, b as usize, index))
    }

    proptest! {
        #[test]
        fn no_chain_leads_further_and_each_is_without_gaps(
            spans in prop::collection::vec((any::<bool>(), 0..12u64, 1..6u64), 0..10)
        ) {
            let exports: Vec<Export> = spans
                .iter()
                .zip(1u8..)
                .map(|((base, from, len), id)| whole(id, *base, if *base { 0 } else { *from }, from + len))
                .collect();
            // Everything that can be reached, step by step.
            let mut reached: BTreeSet<u64> = exports.iter().filter(|e| e.base).map(|e| e.to).collect();
            for _ in 0..exports.len() {
                let more: Vec<u64> = exports
                    .iter()
                    .filter(|e| !e.base && reached.iter().any(|at| e.from <= *at && *at <= e.to))
                    .map(|e| e.to)
                    .collect();
                reached.extend(more);
            }
            let chain = choose(&exports, &BTreeMap::new());
            prop_assert_eq!(chain.as_ref().map(|chain| chain.last(&exports).to), reached.last().copied());
            if let Some(chain) = chain {
                let mut at = exports[chain.base].to;
                prop_assert!(exports[chain.base].base);
                for step in &chain.increments {
                    prop_assert!(exports[*step].from <= at && exports[*step].to > at);
                    at = exports[*step].to;
                }
                // Going as far as possible at each step, which is right within one era, ends there from no newer base.
                let greedy = |base: &Export| {
                    let mut to = base.to;
                    while let Some(next) =
                        exports.iter().filter(|e| !e.base && e.from <= to && e.to > to).map(|e| e.to).max()
                    {
                        to = next;
                    }
                    (to, base.to)
                };
                let best = exports.iter().filter(|e| e.base).map(greedy).max();
                prop_assert_eq!(best, Some((at, exports[chain.base].to)));
            }
        }

        #[test]
        fn no_chain_leads_through_a_fork(
            forks in prop::collection::vec((0..4usize, 1..12u64), 0..4),
            made in prop::collection::vec((0..5usize, any::<bool>(), 0..12u64, 1..6u64), 1..12),
        ) {
            let eras: Eras = forks.iter().enumerate().map(|(at, (before, kept))| ((*before).min(at), *kept)).collect();
            let mut exports: Vec<Export> = Vec::new();
            for ((era, base, from, len), id) in made.into_iter().zip(1u8..) {
                let (era, to) = (era.min(eras.len()) as u32, from + len);
                // What a leader exports goes on from an export that its own history knows of.
                let known = |e: &&Export| e.to == from && agree(&eras, e.era, era, e.to);
                let after = exports.iter().filter(|_| !base).find(known).map(|e| export_tag(e.id));
                exports.push(match (base, after) {
                    (false, Some(after)) => Export { era, after, ..whole(id, false, from, to) },
                    _ => Export { era, ..whole(id, base, if base { 0 } else { from }, to) },
                });
            }
            if let Some(chain) = choose(&exports, &BTreeMap::new()) {
                let last = chain.last(&exports);
                for at in std::iter::once(&chain.base).chain(&chain.increments) {
                    prop_assert!(agree(&eras, exports[*at].era, last.era, exports[*at].to));
                }
                let bases = exports.iter().filter(|e| e.base).map(Export::end);
                prop_assert!(bases.max() <= Some(last.end()));
            } else {
                prop_assert!(exports.iter().all(|e| !e.base));
            }
        }
    }
}
