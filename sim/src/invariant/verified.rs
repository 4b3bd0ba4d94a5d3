//! Invariant 3. Source: DESIGN 13.3; the end-to-end argument (Saltzer et al. 1984).
//!
//! Every restore of a run is compared byte by byte with the tree that was backed up (`agent.rs`). Here, once scrubs
//! have found nothing more: no copy that a fault has spoilt is still counted as good. And a record that a stripe was read
//! again after it moved is true: each shard that it calls good was read from its disk since then, and was not spoilt
//! already when the stripe moved.

use super::{Invariant, Moment, Scene};
use crate::truth::{Copy, Truth};
use farshore_core::catalogue::{Subject, VerifiedStripe};
use farshore_core::id::PackNo;
use farshore_core::limits::{PAGE_ROWS_MAX, VERIFIED_STRIPES_MAX};
use std::collections::{BTreeMap, BTreeSet};

/// A bad shard counts as missing.
#[derive(Default)]
pub struct Verified {
    last_us: u64,
    applied: u64,
    /// Stripes that wait to be read, and when we last looked and they did not.
    waiting: BTreeMap<(Subject, PackNo), u64>,
    /// Since when copies are spoilt.
    spoilt: BTreeMap<Copy, u64>,
    /// Stripes recorded as read, by record.
    read: BTreeSet<(u64, PackNo, u64, u64)>,
}

impl Verified {
    /// What was recorded since the last look.
    fn check_records(&mut self, scene: &Scene<'_>) -> Result<u64, String> {
        self.note_spoilt(scene);
        if scene.view.applied() <= self.applied {
            self.last_us = scene.now_us;
            return Ok(0);
        }
        let (mut facts, failed) = (0, |e: farshore_node::catalogue::CatalogueError| e.to_string());
        for (number, row) in scene.view.verifications().map_err(failed)? {
            let mut after = None;
            loop {
                let page =
                    scene.view.verified_stripes(number, after, VERIFIED_STRIPES_MAX).map_err(failed)?;
                for (no, stripe) in &page {
                    if self.read.insert((number, *no, stripe.generation, stripe.at_ms)) {
                        facts += self.check_record(scene, row.subject, *no, stripe)?;
                    }
                }
                after = page.last().map(|(no, _)| *no);
                if page.len() < VERIFIED_STRIPES_MAX {
                    break;
                }
            }
        }
        self.note_waiting(scene)?;
        (self.applied, self.last_us) = (scene.view.applied(), scene.now_us);
        Ok(facts)
    }

    fn check_record(
        &self,
        scene: &Scene<'_>,
        subject: Subject,
        no: PackNo,
        stripe: &VerifiedStripe,
    ) -> Result<u64, String> {
        let moved = |pack: &&farshore_core::catalogue::PackRecord| {
            pack.no == no && pack.stripe.generation == stripe.generation
        };
        let Some(pack) = scene.packs.iter().find(moved) else { return Ok(0) };
        let since_us = self.waiting.get(&(subject, no)).copied().unwrap_or(self.last_us);
        let mut facts = 0;
        for (index, place) in Truth::places(scene.cluster, pack).into_iter().enumerate() {
            let Some((at, file)) = place.filter(|_| stripe.good & 1 << index != 0) else { continue };
            facts += 1;
            let label = scene.cluster.machines[at].label;
            if scene.truth.last_read_us(scene.cluster, at, &file).is_none_or(|read| read < since_us) {
                return Err(format!(
                    "{file} on p{label} is recorded as read and good, and nobody has read it"
                ));
            }
            if self.spoilt.get(&(at, file.clone())).is_some_and(|spoilt| *spoilt < since_us) {
                return Err(format!(
                    "{file} on p{label} is recorded as good, and was spoilt before it was read"
                ));
            }
        }
        Ok(facts)
    }

    /// Copies that whoever reads them now finds spoilt, all along.
    fn note_spoilt(&mut self, scene: &Scene<'_>) {
        let bad = |(at, file): &&Copy| scene.truth.reads_badly(scene.cluster, *at, file);
        let now: Vec<Copy> = scene.truth.damaged().iter().filter(bad).cloned().collect();
        self.spoilt.retain(|copy, _| now.binary_search(copy).is_ok());
        for copy in now {
            self.spoilt.entry(copy).or_insert(scene.now_us);
        }
    }

    fn note_waiting(&mut self, scene: &Scene<'_>) -> Result<(), String> {
        let mut now = BTreeMap::new();
        for subject in scene.view.moved_subjects().map_err(|e| e.to_string())? {
            let mut after = None;
            loop {
                let page = scene.view.moved(subject, after, PAGE_ROWS_MAX).map_err(|e| e.to_string())?;
                for no in &page {
                    let key = (subject, *no);
                    now.insert(key, self.waiting.get(&key).copied().unwrap_or(self.last_us));
                }
                after = page.last().copied();
                if page.len() < PAGE_ROWS_MAX {
                    break;
                }
            }
        }
        self.waiting = now;
        Ok(())
    }
}

impl Invariant for Verified {
    fn name(&self) -> &'static str {
        "verified"
    }
    fn statement(&self) -> &'static str {
        "no byte leaves a store or reaches a restored file unchecked; a bad shard counts as missing"
    }
    fn check(&mut self, scene: &mut Scene<'_>) -> Result<u64, String> {
        let records = self.check_records(scene)?;
        if scene.moment != Moment::End {
            return Ok(records);
        }
        let (cluster, mut facts) = (scene.cluster, records);
        for pack in scene.packs {
            for (at, file) in Truth::places(cluster, pack).into_iter().flatten() {
                facts += 1;
                if !scene.truth.is_durable(cluster, at, &file) {
                    let label = cluster.machines[at].label;
                    return Err(format!(
                        "after clean scrubs {file} on p{label} is still not what was stored"
                    ));
                }
            }
        }
        Ok(facts)
    }
}
