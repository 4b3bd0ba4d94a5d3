//! Which exports to build from. Pure: from what the parts say of themselves to one base and the increments on top of it.

use crate::catalogue::{PartHeader, StateHash};
use farshore_core::id::{ExportId, StripeId};
use std::collections::{BTreeMap, BTreeSet};

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
    /// Last log entry it leads to.
    pub fn to(&self, exports: &[Export]) -> u64 {
        self.increments.last().map_or(exports[self.base].to, |at| exports[*at].to)
    }
}

/// The chain that leads furthest; among equals the one with the newest base. `None` if there is no base to use.
pub fn choose(exports: &[Export], unusable: &BTreeSet<ExportId>) -> Option<Chain> {
    let usable = |export: &&Export| export.complete.is_ok() && !unusable.contains(&export.id);
    let bases = (0..exports.len()).filter(|at| exports[*at].base && usable(&&exports[*at]));
    let chains = bases.map(|base| {
        let mut chain = Chain { base, increments: Vec::new() };
        loop {
            let to = chain.to(exports);
            let next = exports.iter().enumerate().filter(|(_, export)| usable(export) && !export.base);
            // From the same place the longest stride; equal ones are the same entries.
            let next = next.filter(|(_, export)| export.from <= to && export.to > to);
            match next.max_by_key(|(_, export)| export.to) {
                Some((at, _)) => chain.increments.push(at),
                None => return chain,
            }
        }
    });
    chains.max_by_key(|chain| (chain.to(exports), exports[chain.base].to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_core::id::ClusterId;
    use proptest::prelude::*;

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
        }
    }
    fn stripe(id: u8, number: u32) -> StripeId {
        StripeId([id.wrapping_mul(16).wrapping_add(number as u8); 16])
    }
    fn whole(id: u8, base: bool, from: u64, to: u64) -> Export {
        assemble([(header(id, base, from, to, 0, true), stripe(id, 0))]).remove(0)
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
            let unusable = unusable.iter().map(|id| ExportId([*id; 16])).collect();
            choose(&exports, &unusable).map(|chain| (ids(&exports, &chain), chain.to(&exports)))
        };
        assert_eq!(chosen(&[]), Some((vec![3, 5], 25)), "26 is missing");
        assert_eq!(chosen(&[3]), Some((vec![1, 2, 4, 5], 25)), "an older base with more on top is as good");
        assert_eq!(chosen(&[3, 2]), Some((vec![1], 10)));
        assert_eq!(chosen(&[5]), Some((vec![3, 4], 22)));
        assert_eq!(chosen(&[1, 3]), None);
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
            let chain = choose(&exports, &BTreeSet::new());
            prop_assert_eq!(chain.as_ref().map(|chain| chain.to(&exports)), reached.last().copied());
            if let Some(chain) = chain {
                let mut at = exports[chain.base].to;
                prop_assert!(exports[chain.base].base);
                for step in &chain.increments {
                    prop_assert!(exports[*step].from <= at && exports[*step].to > at);
                    at = exports[*step].to;
                }
            }
        }
    }
}
