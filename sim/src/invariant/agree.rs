//! Invariant 4. Source: DESIGN 13.4; Raft's leader completeness and state machine safety (Ongaro and Ousterhout 2014);
//! openraft's own simulation tests. Linearizability of the clients' history is `linear`.
//!
//! Raft's election safety has no place here: openraft orders leaders by term and node, so that a term may see a second
//! leader, with a greater id, while the first one has not heard of it yet. What matters is what gets committed: at one
//! index all replicas must have applied the entry of one leader, and have one state.

use super::{Invariant, Moment, Scene};
use farshore_node::catalogue::{ImageWriter, NoteKey, StateHash};
use std::collections::BTreeMap;

/// States remembered by index.
const STATES_KEPT: usize = 20_000;

/// A replica at one index: its hash, and the id of the entry it applied last, which names the leader.
type State = (StateHash, Option<Vec<u8>>);

/// One history for all replicas.
#[derive(Default)]
pub struct Agree {
    /// State by applied index, over the whole run, and who showed it first.
    states: BTreeMap<u64, (State, u64)>,
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
            let (id, term) = self.terms.entry(machine.label).or_default();
            if *id == machine.id.0 && leadership.term < *term {
                return Err(format!("p{} is back at term {} after {term}", machine.label, leadership.term));
            }
            (*id, *term) = (machine.id.0, leadership.term);
            let Ok(view) = node.view() else { continue };
            facts += 3;
            let state = (view.state_hash(), view.note(NoteKey::Applied).map_err(|e| e.to_string())?);
            let (first, label) =
                self.states.entry(view.applied()).or_insert_with(|| (state.clone(), machine.label));
            if *first != state {
                let applied = view.applied();
                return Err(format!("p{label} and p{} differ at index {applied}", machine.label));
            }
        }
        while self.states.len() > STATES_KEPT {
            self.states.pop_first();
        }
        if scene.moment == Moment::End {
            facts += rehash(scene)?;
            scene.cluster.check_audit()?;
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
