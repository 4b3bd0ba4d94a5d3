//! What operators ask about the topology: what a change would do, to stage it, to enact it. Any node answers: it looks at a
//! confirmed view, and the command is refused if the epoch has moved since.

use super::auth::actor;
use super::internal;
use crate::catalogue::View;
use crate::maintain::Shared;
use crate::plan::Routes;
use crate::plan::preview::{Coded, Outlook, Preview, PreviewScan, Strength, nodes_after, outlook};
use crate::raft::voters::can_spare;
use farshore_core::catalogue::{Command, Refusal, Reply};
use farshore_core::host::compute;
use farshore_core::id::PackNo;
use farshore_core::limits::{PAGE_ROWS_MAX, TOPOLOGY_CHANGES_MAX};
use farshore_core::policy::{Policy, PolicyError};
use farshore_core::topology::{Change, NodeRecord, NodeState, Region};
use farshore_core::units::Bytes;
use farshore_proto::convert::list;
use farshore_proto::status::ApiError;
use farshore_proto::tls::Caller;
use farshore_proto::wire::{
    ApplyTopologyRequest, CancelMigrationRequest, LinkBytes, MigrateRequest, NodeBytes, PackStrength,
    PlanTopologyReply, PlanTopologyRequest, PolicyCode, PolicyOutlook, StageTopologyRequest, TopologyChange,
    TopologyReply,
};
use std::collections::BTreeMap;

/// Looks, and changes nothing.
pub async fn plan(shared: &Shared, request: PlanTopologyRequest) -> Result<PlanTopologyReply, ApiError> {
    let asked = changes_of(request.changes)?;
    let added: Vec<NodeRecord> =
        list(request.added, TOPOLOGY_CHANGES_MAX, "nodes thought of", NodeRecord::try_from)?;
    let view = confirmed(shared).await?;
    let intent = view.intent().map_err(internal)?;
    let mut changes = if request.alone { Vec::new() } else { intent.staged };
    changes.retain(|staged| asked.iter().all(|change| change.node() != staged.node()));
    changes.extend(asked);
    let moved = moved_of(&request.migrate_from, &request.migrate_to)?;
    if let Some((from, _)) = &moved {
        let leaving = leaving(&view, from)?;
        changes.retain(|change| leaving.iter().all(|leaves| leaves.node() != change.node()));
        changes.extend(leaving);
    }
    let found = look(shared, &view, &changes, &added, moved.as_ref()).await?;
    Ok(found.into_wire(intent.epoch, changes))
}

/// Replaces what is staged.
pub async fn stage(
    shared: &Shared,
    caller: Caller,
    request: StageTopologyRequest,
) -> Result<TopologyReply, ApiError> {
    let (token, epoch) = (token(&request.request)?, request.epoch);
    let changes = changes_of(request.changes)?;
    done(shared, caller, epoch, Command::StageTopology { request: token, epoch, changes }).await
}

/// Enacts, if nothing speaks against it.
pub async fn apply(
    shared: &Shared,
    caller: Caller,
    request: ApplyTopologyRequest,
) -> Result<TopologyReply, ApiError> {
    let (token, epoch) = (token(&request.request)?, request.epoch);
    let view = confirmed(shared).await?;
    let intent = view.intent().map_err(internal)?;
    // Asked again after the answer was lost: what was staged is gone, and the command is known by its number.
    let again = intent.epoch.checked_sub(1) == Some(epoch) && intent.request == token;
    let changes = if request.staged { intent.staged } else { changes_of(request.changes)? };
    if !again && intent.epoch != epoch {
        return Err(Refusal::StaleTopology(intent.epoch).into());
    }
    if !again {
        if changes.is_empty() {
            return Err(ApiError::Invalid(
                "nothing is staged; `farshore cluster plan` stages changes".into(),
            ));
        }
        let found = look(shared, &view, &changes, &[], None).await?;
        if !found.refused.is_empty() {
            return Err(ApiError::Invalid(found.refused.join("; ")));
        }
    }
    done(shared, caller, epoch, Command::ChangeTopology { request: token, epoch, changes }).await
}

/// Empties a region into another, if nothing speaks against it.
pub async fn migrate(
    shared: &Shared,
    caller: Caller,
    request: MigrateRequest,
) -> Result<TopologyReply, ApiError> {
    let (token, epoch, cold) = (token(&request.request)?, request.epoch, request.cold);
    let moved = moved_of(&request.from, &request.to)?;
    let moved = moved.ok_or_else(|| ApiError::Invalid("a migration has two regions".into()))?;
    let view = confirmed(shared).await?;
    let intent = view.intent().map_err(internal)?;
    let again = intent.epoch.checked_sub(1) == Some(epoch) && intent.request == token;
    if !again {
        let changes = leaving(&view, &moved.0)?;
        let found = look(shared, &view, &changes, &[], Some(&moved)).await?;
        if !found.refused.is_empty() {
            return Err(ApiError::Invalid(found.refused.join("; ")));
        }
    }
    let (from, to) = moved;
    done(shared, caller, epoch, Command::Migrate { request: token, epoch, from, to, cold }).await
}

/// Ends a migration; what has moved stays where it is.
pub async fn cancel_migration(
    shared: &Shared,
    caller: Caller,
    request: CancelMigrationRequest,
) -> Result<TopologyReply, ApiError> {
    let (token, epoch, from) = (token(&request.request)?, request.epoch, request.from.parse()?);
    done(shared, caller, epoch, Command::EndMigration { request: token, epoch, from, keep: true }).await
}

/// The two regions, if a migration is meant.
fn moved_of(from: &str, to: &str) -> Result<Option<(Region, Region)>, ApiError> {
    match (from, to) {
        ("", "") => Ok(None),
        (from, to) => Ok(Some((from.parse()?, to.parse()?))),
    }
}

/// Every node of a region that can be emptied.
fn leaving(view: &View, from: &Region) -> Result<Vec<Change>, ApiError> {
    let nodes = view.nodes().map_err(internal)?.into_iter();
    let here = nodes.filter(|node| node.region == *from);
    Ok(here.filter(|node| node.state.counts()).map(|node| Change::Drain(node.id)).collect())
}

/// What speaks against emptying one region into another, besides what speaks against each drain.
fn no_way(nodes: &[NodeRecord], preview: &Preview, (from, to): &(Region, Region)) -> Vec<String> {
    let mut refused = Vec::new();
    if !nodes.iter().any(|node| node.region == *from && node.state.counts()) {
        refused.push(format!("region {from} has no node that could be emptied"));
    }
    let takers: Vec<_> = nodes.iter().filter(|node| node.region == *to && node.takes_shards()).collect();
    if takers.is_empty() || from == to {
        refused.push(format!(
            "region {to} has no node that could take what is in {from}; add nodes there first"
        ));
    }
    let astray = preview.links.iter().filter(|((begin, end), _)| begin == from && end != to);
    let astray = astray.map(|(_, bytes)| bytes).sum::<u64>();
    if astray > 0 && refused.is_empty() {
        refused.push(format!(
            "not all of it fits into {to} without weakening packs: {} would go elsewhere; add nodes there, or drain the nodes \
             of {from} (farshore cluster plan --drain)",
            Bytes(astray)
        ));
    }
    for node in takers {
        let (_, after) = preview.stored.get(&node.id).copied().unwrap_or_default();
        if after > node.capacity {
            refused.push(format!(
                "node {} would hold {} and offers {}; add nodes in {to} first",
                node.name,
                Bytes(after),
                Bytes(node.capacity)
            ));
        }
    }
    refused
}

async fn done(
    shared: &Shared,
    caller: Caller,
    epoch: u64,
    command: Command,
) -> Result<TopologyReply, ApiError> {
    match shared.consensus.propose_as(actor(caller)?, command).await? {
        Reply::Refused(refusal) => Err(refusal.into()),
        _ => Ok(TopologyReply { epoch: epoch + 1 }),
    }
}

async fn confirmed(shared: &Shared) -> Result<View, ApiError> {
    shared.consensus.read_index().await?;
    shared.view().map_err(internal)
}

fn token(bytes: &[u8]) -> Result<[u8; 16], ApiError> {
    let token: [u8; 16] =
        bytes.try_into().map_err(|_| ApiError::Invalid("a request's number has 16 bytes".into()))?;
    match token {
        none if none == [0; 16] => Err(ApiError::Invalid("a request's number is drawn at random".into())),
        _ => Ok(token),
    }
}

fn changes_of(changes: Vec<TopologyChange>) -> Result<Vec<Change>, ApiError> {
    list(changes, TOPOLOGY_CHANGES_MAX, "changes", Change::try_from)
}

/// What was found out about some changes.
struct Found {
    nodes: Vec<NodeRecord>,
    preview: Preview,
    policies: BTreeMap<Policy, (u64, Outlook)>,
    refused: Vec<String>,
    price_micros: u64,
}

async fn look(
    shared: &Shared,
    view: &View,
    changes: &[Change],
    added: &[NodeRecord],
    moved: Option<&(Region, Region)>,
) -> Result<Found, ApiError> {
    let nodes = view.nodes().map_err(internal)?;
    let after = nodes_after(&nodes, changes, added);
    let routes = Routes::of(&view.migrations().map_err(internal)?).with(moved);
    let mut scan = PreviewScan::begin(&nodes, &after, routes);
    let mut from = Some(PackNo(0));
    while let Some(start) = from {
        let page = view.all_packs(start, PAGE_ROWS_MAX).map_err(internal)?;
        page.rows.iter().for_each(|pack| scan.feed(pack));
        from = page.next;
        tokio::task::yield_now().await;
    }
    let preview = scan.end();
    let mut policies = BTreeMap::<Policy, (u64, Vec<String>)>::new();
    let (mut at, mut more) = (None, true);
    while more {
        let page = view.repos(at, PAGE_ROWS_MAX).map_err(internal)?;
        for repo in page.rows {
            let known = policies.entry(repo.policy).or_default();
            known.0 += 1;
            // A name or two is enough to know which are meant.
            if known.1.len() < 2 {
                known.1.push(repo.name.to_string());
            }
        }
        (more, at) = (page.next.is_some(), page.next);
    }
    let (mut looked, mut names) = (BTreeMap::new(), BTreeMap::new());
    for (policy, (count, some)) in policies {
        let (before, after) = (nodes.clone(), after.clone());
        let seen = compute(shared.host.compute.as_ref(), move || outlook(&policy, &before, &after)).await;
        looked.insert(policy, (count, seen));
        names.insert(policy, some);
    }
    let mut refused = why_not(&nodes, changes, &preview);
    refused.extend(broken(&looked, &names));
    refused.extend(moved.into_iter().flat_map(|moved| no_way(&nodes, &preview, moved)));
    let voters = shared.consensus.standing().voters;
    let mut rest = nodes_after(&nodes, &[], added);
    for change in changes.iter().filter(|change| !matches!(change, Change::Keep(_))) {
        let id = change.node();
        if !can_spare(&rest, &voters, id) {
            let name = name_of(&nodes, *change);
            refused.push(format!("node {name} votes and no other can take its place; add a node first"));
        }
        rest.retain(|node| node.id != id);
    }
    let upkeep = view.upkeep().map_err(internal)?;
    let price = |(link, bytes): (&(Region, Region), &u64)| upkeep.price_micros(&link.0, &link.1, *bytes);
    let price_micros = preview.links.iter().map(price).sum();
    Ok(Found { nodes, preview, policies: looked, refused, price_micros })
}

fn name_of(nodes: &[NodeRecord], change: Change) -> String {
    let node = nodes.iter().find(|node| node.id == change.node());
    node.map_or_else(|| change.node().to_string(), |node| node.name.to_string())
}

/// What speaks against single changes, and what cannot be moved.
fn why_not(nodes: &[NodeRecord], changes: &[Change], preview: &Preview) -> Vec<String> {
    let mut refused = Vec::new();
    for change in changes {
        let name = name_of(nodes, *change);
        let state = nodes.iter().find(|node| node.id == change.node()).map(|node| node.state);
        let holds = preview.stored.get(&change.node()).is_some_and(|(before, _)| *before > 0);
        match (change, state) {
            (_, None) => refused.push(format!("there is no node {name}")),
            (Change::Drain(_), Some(NodeState::Lost)) => {
                refused.push(format!(
                    "node {name} is lost: its shards are rebuilt elsewhere already; remove it"
                ));
            }
            (Change::Drain(_), Some(NodeState::Retired)) => refused.push(format!("node {name} is retired")),
            (Change::Keep(_), Some(state)) if !matches!(state, NodeState::Draining | NodeState::Lost) => {
                refused.push(format!("node {name} is {}: it is not being emptied", state.word()));
            }
            (Change::Remove(_), Some(state)) if state.counts() && holds => {
                refused.push(format!("node {name} is {} and holds shards; drain it instead", state.word()));
            }
            _ => {}
        }
    }
    for (scheme, shards) in &preview.stuck {
        refused.push(format!(
            "{shards} shards of packs coded {scheme} would find no other node within the spread limit; add a node first, \
             best in the same region"
        ));
    }
    refused
}

/// Policies that can be kept now and could not be then.
fn broken(policies: &BTreeMap<Policy, (u64, Outlook)>, names: &BTreeMap<Policy, Vec<String>>) -> Vec<String> {
    let mut refused = Vec::new();
    for (policy, (count, seen)) in policies {
        if let (Ok(_), Err(why)) = (&seen.before, &seen.after) {
            let names = names.get(policy).map_or_else(String::new, |names| names.join(", "));
            let more = if *count > 2 { format!(" and {} more", count - 2) } else { String::new() };
            refused.push(format!("repository {names}{more}: {why}"));
        }
    }
    refused
}

impl Found {
    fn into_wire(self, epoch: u64, changes: Vec<Change>) -> PlanTopologyReply {
        let Found { nodes, preview, policies, refused, price_micros } = self;
        let stored = nodes.into_iter().filter_map(|node| {
            let (before, after) = preview.stored.get(&node.id).copied()?;
            Some(NodeBytes { node: Some(node.into()), before, after })
        });
        let links = preview.links.into_iter().map(link_bytes);
        let policies = policies.into_values().map(|(repositories, seen)| PolicyOutlook {
            survive: seen.policy.to_string(),
            repositories,
            before: Some(code(seen.before)),
            after: Some(code(seen.after)),
        });
        PlanTopologyReply {
            epoch,
            changes: changes.into_iter().map(Into::into).collect(),
            packs: preview.packs,
            moves: preview.moves,
            moved_bytes: preview.moved_bytes,
            links: links.collect(),
            nodes: stored.collect(),
            policies: policies.collect(),
            before: Some(strength(preview.before)),
            after: Some(strength(preview.after)),
            refused,
            price_micros,
        }
    }
}

fn code(coded: Result<Coded, PolicyError>) -> PolicyCode {
    match coded {
        Err(why) => PolicyCode { impossible: why.to_string(), ..PolicyCode::default() },
        Ok(Coded { scheme, nodes_alone, with_regions }) => PolicyCode {
            impossible: String::new(),
            scheme: Some(scheme.into()),
            loss_nodes: nodes_alone,
            loss_regions: with_regions,
        },
    }
}

fn strength(strength: Strength) -> PackStrength {
    let Strength { at_target, spare, spare_after_region } = strength;
    PackStrength { at_target, spare, spare_after_region }
}

/// A link as the wire gives it.
pub(super) fn link_bytes(((from, to), bytes): ((Region, Region), u64)) -> LinkBytes {
    LinkBytes { from: from.into(), to: to.into(), bytes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_core::id::NodeId;

    fn node(id: u64, region: &str, state: NodeState) -> NodeRecord {
        NodeRecord {
            id: NodeId(id),
            name: format!("n{id}").parse().unwrap(),
            region: region.parse().unwrap(),
            zone: None,
            addr: "h:1".into(),
            capacity: 1,
            state,
        }
    }

    #[test]
    fn a_policy_is_broken_only_by_what_breaks_it() {
        let nodes: Vec<_> =
            (0..6).map(|id| node(id + 1, ["p/a", "p/b", "p/c"][id as usize % 3], NodeState::Up)).collect();
        let two = Policy { regions: 2, ..Policy::default() };
        let three = Policy { regions: 3, ..Policy::default() };
        let gone = [Change::Drain(NodeId(1)), Change::Drain(NodeId(4))];
        let after = nodes_after(&nodes, &gone, &[]);
        let looked = [two, three].map(|policy| (policy, (5, outlook(&policy, &nodes, &after))));
        let names = BTreeMap::from([(two, vec!["a".to_string(), "b".to_string()])]);
        let refused = broken(&looked.into(), &names);
        let [one] = refused.as_slice() else { panic!("{refused:?}") };
        assert!(one.contains("repository a, b and 3 more") && one.contains("nearest possible goal"), "{one}");
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let states = [NodeState::Up, NodeState::Lost, NodeState::Retired];
        let nodes: Vec<_> = (1..).zip(states).map(|(id, state)| node(id, "p/a", state)).collect();
        let mut preview = Preview::default();
        preview.stored.insert(NodeId(1), (5, 0));
        let ids = [1, 2, 3, 9].map(NodeId);
        let count =
            |change: fn(NodeId) -> Change| ids.map(|id| why_not(&nodes, &[change(id)], &preview).len());
        assert_eq!(count(Change::Drain), [0, 1, 1, 1]);
        assert_eq!(count(Change::Keep), [1, 0, 1, 1]);
        assert_eq!(count(Change::Remove), [1, 0, 0, 1]);
    }

    #[test]
    fn a_request_has_a_number_of_its_own() {
        assert!(token(&[1; 16]).is_ok() && token(&[0; 16]).is_err() && token(&[1; 15]).is_err());
    }
}
