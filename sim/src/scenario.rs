//! The first scenario: a cluster through its worst day. Backups, a region that loses power in the middle of one,
//! restores while it is gone, its return, bit rot, a power cut of everything, repair. What was acknowledged must
//! restore, bit for bit, at every step; at the end every stripe must be at full strength and all replicas agree.

use crate::agent::Agent;
use crate::clock::EPOCH_MS;
use crate::cluster::{Cluster, Violation};
use crate::entropy::Rng;
use crate::event;
use crate::tree;
use crate::world::{Digest, World};
use farshore_client::api::ClusterStatus;
use farshore_core::host::task::set_strict;
use std::time::Duration;
use tokio::time::Instant;

/// Regions and nodes in each.
const REGIONS: usize = 3;
const PER_REGION: usize = 2;
/// A healthy cluster is ready by then.
const READY: Duration = Duration::from_secs(60);
/// When faults stop, everything is at full strength again by then: grace, detection and rebuilding of a few packs.
const HEALED: Duration = Duration::from_secs(600);

/// What to run.
pub struct Options {
    /// Decides everything.
    pub seed: u64,
    /// Receives every event, if given.
    pub trace: Option<Box<dyn std::io::Write + Send>>,
}

/// How a run ended.
pub struct Outcome {
    /// What was run.
    pub seed: u64,
    /// Fold of all events.
    pub digest: Digest,
    /// How long it took in the simulated world.
    pub virtual_seconds: f64,
    /// The first promise that was broken, if any.
    pub violation: Option<Violation>,
    /// The last events.
    pub recent: Vec<String>,
}

/// Runs one seed to its end, in this thread.
pub fn run(options: &mut Options) -> Outcome {
    set_strict(true);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without I/O needs nothing from the system");
    let outcome = runtime.block_on(async {
        let world = World::new(options.seed, options.trace.take());
        let violation = day(&world).await.err();
        if let Some(violation) = &violation {
            event!(world, 0, "violation: {violation}");
        }
        Outcome {
            seed: options.seed,
            digest: world.digest(),
            virtual_seconds: world.now_us() as f64 / 1e6,
            violation,
            recent: world.recent(),
        }
    });
    set_strict(false);
    outcome
}

async fn day(world: &World) -> Result<(), Violation> {
    let mut rng = Rng::new(world.seed(), 0x5343);
    let mut cluster = Cluster::new(world.clone(), REGIONS, PER_REGION)?;
    let low = rng.range(200, 20_000);
    cluster.hub.set_latency(low, low * rng.range(1, 4));
    for at in 0..cluster.machines.len() {
        cluster.start(at);
    }
    let agent = Agent::enter(&mut cluster, REGIONS * PER_REGION, READY).await?;

    // Two backups in peace: everything, then nothing new.
    let mut tree = tree::grow(&mut rng, 40, now_secs(world));
    let mut promises = Vec::new();
    let refused = |e| format!("live: a backup in peace was refused: {e}");
    promises.push(agent.back_up(&tree).await?.map_err(refused)?);
    agent.take_bytes_read();
    promises.push(agent.back_up(&tree).await?.map_err(refused)?);
    if agent.take_bytes_read() > 0 {
        return Err("unchanged: a second backup of an unchanged tree read file contents".into());
    }
    agent.verify_all(&promises).await?;

    // A region loses power while a third backup runs. Whether it is accepted is not promised; if it is, it holds.
    tree::edit(&mut rng, &mut tree, now_secs(world));
    let region = rng.below(REGIONS as u64) as usize;
    let lost = region * PER_REGION..(region + 1) * PER_REGION;
    let delay = Duration::from_millis(rng.range(1, 1_500));
    let third = {
        let cut = async {
            tokio::time::sleep(delay).await;
            lost.clone().for_each(|at| cluster.crash(at, true));
        };
        let (third, ()) = futures_util::join!(agent.back_up(&tree), cut);
        third?
    };
    promises.extend(third);
    agent.verify_all(&promises).await?;

    // Something new while the region is gone: accepted in degraded form.
    tree::edit(&mut rng, &mut tree, now_secs(world));
    let refused = |e| format!("floor: a degraded backup was refused: {e}");
    promises.push(agent.back_up(&tree).await?.map_err(refused)?);
    agent.verify_all(&promises).await?;

    // The region comes back, then a bit rots elsewhere, and everything heals. Not earlier: with a region gone, rot
    // elsewhere is more than the policy names.
    lost.clone().for_each(|at| cluster.start(at));
    ready(&agent).await?;
    let rotten = (lost.end + rng.below(PER_REGION as u64) as usize) % cluster.machines.len();
    cluster.machines[rotten].disk.rot("shards/");
    agent.verify_all(&promises).await?;
    healed(&agent, &cluster).await?;

    // Power fails everywhere at once.
    for at in 0..cluster.machines.len() {
        cluster.crash(at, true);
    }
    for at in 0..cluster.machines.len() {
        cluster.start(at);
    }
    ready(&agent).await?;
    agent.verify_all(&promises).await?;
    healed(&agent, &cluster).await?;
    agreed(&cluster).await
}

fn now_secs(world: &World) -> i64 {
    ((EPOCH_MS + world.now_us() / 1_000) / 1_000) as i64
}

/// Waits until every node is up and a leader confirms it.
async fn ready(agent: &Agent) -> Result<(), Violation> {
    let up = |s: &ClusterStatus| !s.stale && s.nodes.iter().all(|n| n.node.state.takes_shards());
    agent.until(READY, "live: the cluster does not come back", up).await
}

/// Waits until every stripe is at full strength and nothing is queued.
async fn healed(agent: &Agent, cluster: &Cluster) -> Result<(), Violation> {
    let whole = |s: &ClusterStatus| {
        !s.stale
            && s.under_target == 0
            && s.unreadable == 0
            && s.repair.queued + s.repair.running == 0
            && s.nodes.iter().all(|n| n.node.state.takes_shards())
    };
    agent.until(HEALED, "heals: not at full strength in time", whole).await?;
    cluster.check_agreement().map(|_| ())
}

/// In a quiet cluster all replicas reach the same index and the same state.
async fn agreed(cluster: &Cluster) -> Result<(), Violation> {
    let deadline = Instant::now() + READY;
    loop {
        if cluster.check_agreement()? == 1 {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err("agree: replicas do not reach the same index in a quiet cluster".into());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without the program's replaced libc the run is not the same each time, but its promises hold each time.
    #[test]
    fn a_day_ends_well() {
        let outcome = run(&mut Options { seed: 1, trace: None });
        assert_eq!(outcome.violation, None, "last events: {:#?}", outcome.recent);
        assert!(outcome.digest.events > 1_000, "something happened");
    }
}
