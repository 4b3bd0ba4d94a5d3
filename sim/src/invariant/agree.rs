//! Invariant 4. Source: DESIGN 13.4; Raft's election safety, leader completeness and state machine safety (Ongaro and
//! Ousterhout 2014); openraft's own simulation tests. Linearizability of the clients' history is `linear`.

use super::{Invariant, Moment, Scene};
use farshore_node::catalogue::{ImageWriter, StateHash};
use std::collections::BTreeMap;

/// Hashes remembered by index.
const HASHES_KEPT: usize = 20_000;

/// One history for all replicas.
#[derive(Default)]
pub struct Agree {
    /// State hash by applied index, over the whole run.
    hashes: BTreeMap<u64, (StateHash, u64)>,
    /// Who led in a term.
    leaders: BTreeMap<u64, u64>,
    /// Highest term seen on a machine, and whose disks it had then.
    terms: BTreeMap<u64, (u64, u64)>,
}

impl Invariant for Agree {
    fn name(&self) -> &'static str {
        "agree"
    }
    fn statement(&self) -> &'static str {
        "same applied index, same catalogue hash; catalogue operations are linearizable"
    }
    fn check(&mut self, scene: &mut Scene<'_>) -> Result<u64, String> {
        let mut facts = 0;
        for (at, machine) in scene.cluster.machines.iter().enumerate() {
            let Some(node) = scene.cluster.node(at) else { continue };
            let leadership = node.consensus().standing().leadership;
            if leadership.own {
                let leader = *self.leaders.entry(leadership.term).or_insert(machine.label);
                if leader != machine.label {
                    return Err(format!(
                        "p{leader} and p{} both lead term {}",
                        machine.label, leadership.term
                    ));
                }
            }
            let (id, term) = self.terms.entry(machine.label).or_default();
            if *id == machine.id.0 && leadership.term < *term {
                return Err(format!("p{} is back at term {} after {term}", machine.label, leadership.term));
            }
            (*id, *term) = (machine.id.0, leadership.term);
            let Ok(view) = node.view() else { continue };
            facts += 2;
            let (hash, label) =
                *self.hashes.entry(view.applied()).or_insert_with(|| (view.state_hash(), machine.label));
            if hash != view.state_hash() {
                let applied = view.applied();
                return Err(format!("p{label} and p{} differ at index {applied}", machine.label));
            }
        }
        while self.hashes.len() > HASHES_KEPT {
            self.hashes.pop_first();
        }
        if scene.moment == Moment::End {
            facts += rehash(scene)?;
        }
        if scene.moment == Moment::End && scene.cluster.check_agreement().is_err() {
            return Err("replicas differ in a quiet cluster".into());
        }
        Ok(facts)
    }
}

/// A hash that follows every change says nothing of rows that were never there: at the end all are counted anew.
fn rehash(scene: &Scene<'_>) -> Result<u64, String> {
    let mut facts = 0;
    for (at, machine) in scene.cluster.machines.iter().enumerate() {
        let Some(node) = scene.cluster.node(at) else { continue };
        let writer = ImageWriter::begin(node.consensus().catalogue()).map_err(|e| e.to_string())?;
        let kept = writer.state_hash();
        let counted = writer.rehash().map_err(|e| e.to_string())?;
        if kept != counted {
            return Err(format!(
                "p{} says that its rows hash to {kept}, and they hash to {counted}",
                machine.label
            ));
        }
        facts += 1;
    }
    Ok(facts)
}
