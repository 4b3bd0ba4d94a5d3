//! What is really on the disks, told by the disks themselves and never by the code under test: the contents each shard
//! file was first published with, which copies faults have damaged, and which are durable right now.

use crate::cluster::{Cluster, Violation, file_of, is_shard};
use crate::contents::is_whole;
use crate::world::fold;
use farshore_core::catalogue::PackRecord;
use std::collections::{BTreeMap, BTreeSet};

/// A copy of a shard: machine and file name without its directory.
pub type Copy = (usize, String);

/// How long after its last error a disk may still have its good copies called bad: three looks and a command.
const DOUBT_US: u64 = 30_000_000;

/// Ground truth about shard files.
#[derive(Default)]
pub struct Truth {
    /// Hash of the contents by file name, and the path, both from its first publication on any machine.
    published: BTreeMap<String, (u64, String)>,
    /// Copies that a fault has spoilt, or may have.
    damaged: BTreeSet<Copy>,
    /// Copies seen durable and whole since their machine's last power loss.
    proven: BTreeSet<Copy>,
    /// Machines whose syncs of shards are lies now: what is published meanwhile is not there.
    lying: BTreeSet<usize>,
    /// Machines whose disk gives one error after the other, and until when a copy there may be called bad by mistake.
    failing: BTreeMap<usize, u64>,
    now_us: u64,
    /// Copies removed since the last look, with whether their file is there again.
    removed: Vec<Copy>,
    /// Machines that lost power since this was last asked.
    dark: BTreeSet<usize>,
}

impl Truth {
    /// Takes in what the disks did since the last call. Nobody may publish other bytes under a known name.
    pub fn look(&mut self, cluster: &Cluster) -> Result<(), Violation> {
        self.removed.clear();
        self.now_us = cluster.world.now_us();
        for (at, machine) in cluster.machines.iter().enumerate() {
            for path in machine.disk.take_named() {
                self.publish(cluster, at, path)?;
            }
            for path in machine.disk.take_removed().into_iter().filter(|path| is_shard(path)) {
                let copy = (at, file_of(&path).to_string());
                self.proven.remove(&copy);
                self.removed.push(copy);
            }
        }
        Ok(())
    }

    fn publish(&mut self, cluster: &Cluster, at: usize, path: String) -> Result<(), Violation> {
        let machine = &cluster.machines[at];
        if !is_shard(&path) {
            return Ok(());
        }
        let copy = (at, file_of(&path).to_string());
        self.proven.remove(&copy);
        // Renamed and gone again.
        let Some(bytes) = machine.disk.visible(&path) else { return Ok(()) };
        match self.lying.contains(&at) {
            true => drop(self.damaged.insert(copy.clone())),
            false => drop(self.damaged.remove(&copy)),
        }
        // Torn by a power cut before we looked: that is for `whole` to judge.
        if self.dark.contains(&at) && !is_whole(&bytes) {
            return Ok(());
        }
        let hash = fold(0, &bytes);
        let (first, _) = self.published.entry(copy.1.clone()).or_insert((hash, path));
        if *first != hash && !self.damaged.contains(&copy) {
            return Err(format!(
                "whole: p{} publishes {} with other bytes than before",
                machine.label, copy.1
            ));
        }
        Ok(())
    }

    /// Copies removed between the last two calls of [`Truth::look`].
    pub fn removed(&self) -> &[Copy] {
        &self.removed
    }

    /// Machines that lost power since the last call.
    pub fn take_dark(&mut self) -> BTreeSet<usize> {
        std::mem::take(&mut self.dark)
    }
    /// A machine lost power: what it has must be proven anew.
    pub fn lost_power(&mut self, at: usize) {
        self.dark.insert(at);
        self.proven.retain(|(machine, _)| *machine != at);
    }
    /// A machine lost its disks.
    pub fn wiped(&mut self, at: usize) {
        self.lost_power(at);
        self.damaged.retain(|(machine, _)| *machine != at);
        self.failing.remove(&at);
    }
    /// A fault has spoilt this file.
    pub fn damage(&mut self, at: usize, path: &str) {
        let copy = (at, file_of(path).to_string());
        self.proven.remove(&copy);
        self.damaged.insert(copy);
    }
    /// Syncs of a machine are lies from now on. What has its name already and is not durable yet may never be.
    pub fn begins_to_lie(&mut self, cluster: &Cluster, at: usize) {
        self.lying.insert(at);
        for path in cluster.machines[at].disk.names("shards/").iter().filter(|path| is_shard(path)) {
            let file = file_of(path);
            if !self.is_durable(cluster, at, file) {
                self.damaged.insert((at, file.to_string()));
            }
        }
    }
    /// Syncs of a machine are true again.
    pub fn lies_no_more(&mut self, at: usize) {
        self.lying.remove(&at);
    }
    /// A machine's disk gives one error after the other from now on. A single one is no excuse: a node looks again.
    pub fn fails(&mut self, at: usize) {
        self.failing.insert(at, u64::MAX);
    }
    /// And no longer; what was found bad meanwhile may be told a little later.
    pub fn fails_no_more(&mut self, at: usize) {
        if let Some(until) = self.failing.get_mut(&at) {
            *until = self.now_us + DOUBT_US;
        }
    }
    /// Whether this machine may have called a good copy bad.
    pub fn may_err(&self, at: usize) -> bool {
        self.failing.get(&at).is_some_and(|until| *until > self.now_us)
    }
    /// Whether a fault has spoilt any copy that the catalogue counts on.
    pub fn is_any_damaged(&self, cluster: &Cluster, packs: &[PackRecord]) -> bool {
        let places = packs.iter().flat_map(|pack| Self::places(cluster, pack)).flatten();
        !self.damaged.is_empty() && places.into_iter().any(|copy| self.damaged.contains(&copy))
    }
    /// Copies that a fault has spoilt, or may have.
    pub fn damaged(&self) -> &BTreeSet<Copy> {
        &self.damaged
    }
    /// Whether a fault has spoilt this copy, or may have.
    pub fn is_damaged(&self, at: usize, file: &str) -> bool {
        self.damaged.contains(&(at, file.to_string()))
    }

    /// Whether a copy would survive a power cut right now, with the bytes it was first published with.
    pub fn is_durable(&mut self, cluster: &Cluster, at: usize, file: &str) -> bool {
        let copy = (at, file.to_string());
        if self.proven.contains(&copy) {
            return true;
        }
        let Some((hash, path)) = self.published.get(file) else { return false };
        let durable = cluster.machines[at].disk.durable(path);
        let whole = durable.is_some_and(|bytes| fold(0, &bytes) == *hash);
        if whole {
            self.proven.insert(copy);
        }
        whole
    }

    /// When a copy was last read from its disk, microseconds.
    pub fn last_read_us(&self, cluster: &Cluster, at: usize, file: &str) -> Option<u64> {
        let (_, path) = self.published.get(file)?;
        cluster.machines[at].disk.last_read_us(path)
    }

    /// Whether somebody who reads this copy now finds it spoilt, or does not find it.
    pub fn reads_badly(&self, cluster: &Cluster, at: usize, file: &str) -> bool {
        let Some((_, path)) = self.published.get(file) else { return true };
        !cluster.machines[at].disk.visible(path).is_some_and(|bytes| is_whole(&bytes))
    }

    /// Where each recorded shard of a pack lies, by index; `None` if it has no place or its node's disks are lost.
    pub fn places(cluster: &Cluster, pack: &PackRecord) -> Vec<Option<Copy>> {
        let place = |(index, node): (usize, Option<_>)| {
            let at = cluster.machine_of(node?)?;
            Some((at, format!("{}-{index}.shard", pack.stripe.id)))
        };
        pack.stripe.shards.iter().map(|shard| shard.node).enumerate().map(place).collect()
    }

    /// How many shards of a pack a further fault may count on: good ones on machines that `admit` admits, whose disks
    /// neither lie nor give errors. A disk that fails to read a good shard again and again has lost it, too.
    pub fn sure(&mut self, cluster: &Cluster, pack: &PackRecord, admit: impl Fn(usize) -> bool) -> usize {
        let failing = self.failing.keys().copied().filter(|at| self.may_err(*at));
        let doubtful: BTreeSet<usize> = failing.chain(self.lying.iter().copied()).collect();
        self.good(cluster, pack, |at| admit(at) && !doubtful.contains(&at))
    }

    /// How many shards of a pack are good on machines that `admit` admits. What was durable before a machine began to
    /// lie still is.
    pub fn good(&mut self, cluster: &Cluster, pack: &PackRecord, admit: impl Fn(usize) -> bool) -> usize {
        let places = Self::places(cluster, pack).into_iter().flatten().filter(|(at, _)| admit(*at));
        places.filter(|(at, file)| !self.is_damaged(*at, file) && self.is_durable(cluster, *at, file)).count()
    }
}
