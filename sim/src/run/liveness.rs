//! The liveness phase: all faults stop, and within a stated virtual time every node serves, every stripe is at full
//! strength, nothing is queued or condemned, every acknowledged snapshot restores bit for bit, new ones are accepted,
//! and all replicas are one.

use crate::agent::Agent;
use crate::cluster::{Violation, too_wide};
use crate::coverage::Tallies;
use crate::event;
use crate::invariant::Moment;
use crate::plan::Work;
use crate::run::{Newest, OPERATION, Run, orders};
use farshore_client::api::ClusterStatus;
use farshore_core::catalogue::{Migration, PackRecord};
use farshore_core::id::{NodeId, PackNo};
use farshore_core::limits::PAGE_ROWS_MAX;
use farshore_core::topology::NodeState;
use farshore_node::catalogue::CatalogueError;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::Instant;

/// Every node runs again by then.
const READY: Duration = Duration::from_secs(120);
/// Everything is at full strength again by then: detection, grace and rebuilding of what a small world holds.
const HEALED: Duration = Duration::from_secs(300);
/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// Operators look so often what else there is to do.
const TIDY_LOOKS: u64 = 10;
/// Scrubs until nothing more is found, at most.
const SCRUBS_MAX: u32 = 16;

impl Run<'_> {
    /// From the end of the last fault to the last check.
    pub(crate) async fn peace(&mut self) -> Result<(), Violation> {
        self.drop_queues();
        self.operators.rest();
        self.relent_all()?;
        self.nodes_run().await?;
        self.clients_finish().await?;
        let inspector = Agent::succeed_all(&mut self.cluster, self.plan.knobs.policies.len()).await?;
        self.tidied(&inspector).await?;
        self.healed(&inspector).await?;
        self.scrubbed(&inspector).await?;
        self.serves_again().await?;
        self.healed(&inspector).await?;
        inspector.check().await?;
        for promise in self.promises.clone() {
            inspector.verify(&promise).await?;
            Tallies::add(&mut self.tallies.checks, "durable");
        }
        self.settled().await?;
        if !self.plan.knobs.compact && !self.plan.knobs.recode {
            let report = self.cluster.history.check()?;
            event!(self.world, 0, "{report:?} {:?}", self.cluster.history.repeated());
            self.tallies.linear = (report.operations, report.undecided);
        }
        self.check(Moment::End)
    }

    /// Every machine's node runs.
    async fn nodes_run(&mut self) -> Result<(), Violation> {
        let deadline = Instant::now() + READY;
        while let Some(at) = self.cluster.one_not_running() {
            if Instant::now() > deadline {
                return Err(format!("live: p{} does not start", self.cluster.machines[at].label));
            }
            self.pass(LOOK).await?;
        }
        Ok(())
    }

    /// What clients had begun ends, one way or the other.
    async fn clients_finish(&mut self) -> Result<(), Violation> {
        let deadline = Instant::now() + OPERATION;
        while !self.idle() {
            if Instant::now() > deadline {
                return Err("live: clients do not come to an end".into());
            }
            self.pass(LOOK).await?;
        }
        Ok(())
    }

    /// Waits until every node is up, every stripe at full strength and nothing queued.
    async fn healed(&mut self, inspector: &Agent) -> Result<(), Violation> {
        let deadline = Instant::now() + HEALED;
        for look in 1u64.. {
            if look.is_multiple_of(TIDY_LOOKS) {
                self.tidied(inspector).await?;
                self.call_off_stuck(inspector).await?;
            }
            let status = self.status(inspector).await?;
            match status.map(|status| self.owed(&status)) {
                Ok(None) => return Ok(()),
                Ok(Some(owed)) if Instant::now() > deadline => return Err(format!("heals: {owed}")),
                Err(why) if Instant::now() > deadline => return Err(format!("live: no status: {why}")),
                _ => self.pass(LOOK).await?,
            }
        }
        Ok(())
    }

    /// Operators lift every limit, and say of nodes that a migration waits for and whose disks are lost that they are gone.
    async fn tidied(&mut self, inspector: &Agent) -> Result<(), Violation> {
        let deadline = Instant::now() + OPERATION;
        loop {
            let waits: BTreeSet<NodeId> = self.migrations().into_iter().flat_map(|m| m.nodes).collect();
            let gone = waits.into_iter().filter(|id| self.cluster.machine_of(*id).is_none()).collect();
            let client = inspector.client().clone();
            let done = inspector.begin_call(async move { Ok(orders::tidy(client, gone).await) });
            match tokio::time::timeout(OPERATION, done).await {
                Ok(Ok(Ok(()))) => return Ok(()),
                Ok(Ok(Err(why))) if Instant::now() > deadline => {
                    return Err(format!("live: operators are not heard: {why}"));
                }
                Ok(Ok(Err(_))) => self.pass(LOOK).await?,
                Ok(Err(failed)) => return Err(format!("live: operators are not heard: {failed:?}")),
                Err(_) => return Err("live: an order of the operators hangs".into()),
            }
        }
    }

    fn migrations(&self) -> Vec<Migration> {
        let newest = self.newest.as_ref();
        newest.and_then(|newest| newest.view.migrations().ok()).unwrap_or_default()
    }

    /// What cannot leave a region, since its stripe has no other place, keeps its migration from ending: operators end it.
    async fn call_off_stuck(&mut self, inspector: &Agent) -> Result<(), Violation> {
        for migration in self.migrations() {
            let Some(Newest { view, packs }) = &self.newest else { return Ok(()) };
            let inside = |pack: &&PackRecord| {
                pack.stripe.shards.iter().any(|s| s.node.is_some_and(|id| migration.nodes.contains(&id)))
            };
            if !packs.iter().filter(inside).any(|pack| too_wide(view, pack)) {
                continue;
            }
            let client = inspector.client().clone();
            let from = migration.from.clone();
            let ended = inspector.begin_call(async move { Ok(orders::cancel(&client, &from).await) });
            if matches!(tokio::time::timeout(OPERATION, ended).await, Ok(Ok(true))) {
                Tallies::add(&mut self.tallies.upkeep, "migrations stuck");
            }
        }
        Ok(())
    }

    /// Repositories with packs that wait to be coded for a policy that the nodes can give.
    fn waiting_for_code(&self) -> Result<usize, CatalogueError> {
        let Some(Newest { view, .. }) = &self.newest else { return Ok(1) };
        let (nodes, mut waiting) = (view.nodes()?, 0);
        for repo in view.repos(None, PAGE_ROWS_MAX)?.rows {
            let possible = farshore_core::policy::compile(&repo.policy, &nodes).is_ok();
            let (mut waits, mut from) = (false, Some(PackNo(0)));
            while let Some(start) = from.filter(|_| possible && !waits) {
                (waits, from) = view.waits_for_code(repo.id, start, PAGE_ROWS_MAX)?;
            }
            waiting += usize::from(waits);
        }
        Ok(waiting)
    }

    async fn status(&mut self, inspector: &Agent) -> Result<Result<ClusterStatus, String>, Violation> {
        let client = inspector.client().clone();
        let asked = inspector.begin_call(async move { client.status().await });
        match tokio::time::timeout(OPERATION, asked).await {
            Ok(answer) => Ok(answer.map_err(|e| format!("{e:?}"))),
            Err(_) => Err("live: a question for the cluster's state hangs".into()),
        }
    }

    /// What the cluster still owes, by its own account.
    fn owed(&self, status: &ClusterStatus) -> Option<String> {
        let machines = &self.cluster.machines;
        let here: BTreeSet<NodeId> = self.cluster.in_service().map(|at| machines[at].id).collect();
        let (known, gone): (Vec<_>, Vec<_>) = status.nodes.iter().partition(|n| here.contains(&n.node.id));
        let in_place = |s: NodeState| matches!(s, NodeState::Up | NodeState::Draining | NodeState::Retired);
        let away = known.iter().filter(|n| !in_place(n.node.state)).count();
        // Nodes whose disks are lost never come back; until that is declared their shards are not rebuilt.
        let missed = gone.iter().filter(|n| n.node.state.counts()).count();
        let draining =
            known.iter().filter(|n| n.node.state == NodeState::Draining && self.holds(n.node.id)).count();
        let ClusterStatus { stale, unreadable, repair, .. } = status;
        let under_target = self.under_target();
        let work = repair.queued + repair.running;
        let condemned = here.iter().filter(|id| self.owes_sweep(**id)).count();
        let moving = self.migrations().len();
        let recoding = self.waiting_for_code().unwrap_or(usize::MAX);
        // An odd number of voters, each in a region of its own as far as there are enough, and none of them gone.
        let voters = self.cluster.voters();
        let regions: BTreeSet<usize> = voters
            .iter()
            .filter(|id| here.contains(id))
            .filter_map(|id| self.cluster.machine_of(*id))
            .map(|at| machines[at].region_no)
            .collect();
        let stays = |s: NodeState| !matches!(s, NodeState::Draining | NodeState::Retired);
        let stay: BTreeSet<_> =
            status.nodes.iter().filter(|n| stays(n.node.state)).map(|n| &n.node.region).collect();
        let wanted = (stay.len() - usize::from(stay.len().is_multiple_of(2))).clamp(3, 7);
        let voting = voters.len() == wanted && regions.len() == wanted.min(stay.len());
        let garbage = self.cluster.garbage().unwrap_or_else(Some);
        let placed = voting && !stale && known.len() == here.len() && away + missed + draining == 0;
        let whole = under_target == 0 && *unreadable == 0 && work == 0 && condemned == 0;
        if placed && whole && garbage.is_none() && moving + recoding == 0 {
            return None;
        }
        Some(format!(
            "stale {stale}, {} voters, {} of {} nodes known, {away} away, {missed} not given up, {draining} not drained, \
             {under_target} packs under target, {unreadable} unreadable, {work} repairs to do, {condemned} nodes \
             have to sweep, {moving} regions moving, {recoding} repositories to be coded anew, garbage {garbage:?}, last error {:?}{}",
            voters.len(),
            known.len(),
            here.len(),
            repair.last_error,
            self.first_owed()
        ))
    }

    /// Packs that are not at full strength and could be. One that was coded when there were more nodes has to be coded
    /// anew for that, which is for the operator to decide.
    pub(crate) fn under_target(&self) -> usize {
        let Some(Newest { view, packs }) = &self.newest else { return usize::MAX };
        let owed =
            |pack: &&PackRecord| view.is_under_target(pack.no).unwrap_or(true) && !too_wide(view, pack);
        packs.iter().filter(owed).count()
    }

    /// What keeps the first pack under target from its strength: who holds it, in which regions, and how they are.
    fn first_owed(&self) -> String {
        let Some(Newest { view, packs }) = &self.newest else { return String::new() };
        let owed = |pack: &&PackRecord| view.is_under_target(pack.no).unwrap_or(false);
        let Some(pack) = packs.iter().find(owed) else { return String::new() };
        let place = |node: NodeId| {
            let at = self.cluster.machine_of(node).map_or(0, |at| self.cluster.machines[at].label);
            let known = view.node(node).ok().flatten();
            known.map_or("nobody".into(), |n| format!("p{at} {} {}", n.region, n.state.word()))
        };
        let holders = pack.stripe.shards.iter().map(|shard| shard.node.map_or("nobody".into(), place));
        let nodes = view.nodes().unwrap_or_default();
        format!(
            "; pack {} ({}) lies on [{}], nodes are [{}]",
            pack.id,
            pack.stripe.scheme,
            holders.collect::<Vec<_>>().join(", "),
            nodes.iter().map(|n| place(n.id)).collect::<Vec<_>>().join(", ")
        )
    }

    /// Whether a node still has to delete something.
    fn owes_sweep(&self, id: NodeId) -> bool {
        let owes =
            |newest: &Newest| newest.view.condemned(id, None, 1).is_ok_and(|page| !page.rows.is_empty());
        self.newest.as_ref().is_none_or(owes)
    }

    /// Whether the catalogue still counts on a node for a pack that other nodes could hold.
    fn holds(&self, id: NodeId) -> bool {
        let Some(Newest { view, packs }) = &self.newest else { return true };
        let held = |pack: &&PackRecord| pack.stripe.shards.iter().any(|shard| shard.node == Some(id));
        packs.iter().filter(held).any(|pack| !too_wide(view, pack))
    }

    /// Scrubs until nothing is found. What is found is reported and repaired.
    async fn scrubbed(&mut self, inspector: &Agent) -> Result<(), Violation> {
        for _ in 0..SCRUBS_MAX {
            let found = inspector.scrub().await?;
            self.nodes_run().await?;
            self.healed(inspector).await?;
            // A store that failed before may end its node only now that it is asked for something.
            if found.bad + found.missing == 0 && found.failed.is_empty() {
                return Ok(());
            }
            self.pass(LOOK * 5).await?;
        }
        Err(format!("heals: {SCRUBS_MAX} scrubs in turn failed or found bad or missing shards"))
    }

    /// Every client backs up at full strength and lists, and nothing excuses a refusal now.
    async fn serves_again(&mut self) -> Result<(), Violation> {
        self.pass(Duration::from_secs(25)).await?;
        while self.cluster.history.is_anybody_held() {
            self.pass(LOOK).await?;
        }
        self.strict = true;
        for seat in &mut self.seats {
            seat.ask(Work::Incremental);
            seat.ask(Work::List);
        }
        self.clients_finish().await?;
        for (number, seat) in self.seats.iter().enumerate() {
            if seat.agent.is_none() {
                return Err(format!("live: client {number} never came back"));
            }
        }
        Ok(())
    }

    /// All replicas reach the same index, and what was condemned while the snapshots were read again (shards are levelled at any
    /// time) is gone.
    async fn settled(&mut self) -> Result<(), Violation> {
        let deadline = Instant::now() + READY;
        loop {
            let (agreed, garbage) = (self.cluster.check_agreement()? == 1, self.cluster.garbage()?);
            if agreed && garbage.is_none() {
                break;
            }
            if Instant::now() > deadline {
                let agree = "agree: replicas do not reach the same index in a quiet cluster".to_string();
                return Err(garbage.filter(|_| agreed).map_or(agree, |garbage| format!("heals: {garbage}")));
            }
            self.pass(LOOK / 2).await?;
        }
        event!(self.world, 0, "{} snapshots restored, all is well", self.promises.len());
        Ok(())
    }
}
