//! Invariant 9. Source: DESIGN 13.9 and 8.
//!
//! Names, contents and the passphrase are looked for, as bytes: all along in what nodes write to files and stores, where
//! TLS hides nothing any more, and in what goes over the network; at the end in everything that nodes keep.

use super::{Invariant, Moment, Scene};
use crate::cluster::Cluster;
use crate::taint::Taint;
use farshore_core::host::KvRole;

/// Nodes know nothing, and neither does whoever listens.
#[derive(Default)]
pub struct Blind {
    /// Bytes looked at before.
    scanned: u64,
}

impl Invariant for Blind {
    fn name(&self) -> &'static str {
        "blind"
    }
    fn statement(&self) -> &'static str {
        "no plaintext, name or key outside the client"
    }
    fn check(&mut self, scene: &mut Scene<'_>) -> Result<u64, String> {
        let taint = scene.cluster.world.taint();
        if scene.moment == Moment::End {
            search(scene.cluster, taint);
        }
        match taint.leak() {
            Some(leak) => Err(leak),
            None => Ok(taint.scanned() - std::mem::replace(&mut self.scanned, taint.scanned())),
        }
    }
}

/// Looks through all that nodes keep: names of files, files, keys and values.
fn search(cluster: &Cluster, taint: &Taint) {
    for machine in &cluster.machines {
        let label = machine.label;
        for name in machine.disk.names("") {
            taint.watch(name.as_bytes(), || format!("a name on p{label}"));
            if let Some(bytes) = machine.disk.visible(&name) {
                taint.watch(&bytes, || format!("{name} on p{label}"));
            }
        }
        for role in [KvRole::Catalogue, KvRole::Index] {
            for (table, key, value) in machine.stores.scan_all(role) {
                taint.watch(&key, || format!("a key of {table:?} on p{label}"));
                taint.watch(&value, || format!("a value of {table:?} on p{label}"));
            }
        }
    }
}
