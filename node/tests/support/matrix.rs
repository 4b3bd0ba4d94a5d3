//! Every kind of damage, found in every way it can be: each is noticed, named, counted and mended, and no reader is given a
//! wrong byte meanwhile.

#![expect(clippy::disallowed_methods, reason = "this test damages files behind the nodes' backs")]

use super::harness::{Client, Cluster, eventually, scheme, shard_file, state_of};
use bytes::Bytes;
use farshore_core::catalogue::PackRecord;
use farshore_core::id::{RepoId, SessionId};
use farshore_core::peer::{ShardError, ShardIo};
use farshore_core::shard::ShardRange;
use farshore_core::topology::NodeState;
use farshore_proto::wire;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const SESSION: SessionId = SessionId([9; 16]);
/// The node whose disk suffers.
const VICTIM: usize = 1;
const LEN: usize = 40_000;

/// Different in every byte from pack to pack, so that no two shards are alike.
fn contents(tag: u8) -> Bytes {
    let next = |i: u32| (i.wrapping_mul(2_654_435_761).wrapping_mul(u32::from(tag) * 2 + 1) >> 13) as u8;
    let mut bytes: Vec<u8> = (1..=LEN as u32).map(next).collect();
    bytes[0] = tag;
    bytes.into()
}

/// What happens to a shard's file. The second file is that of another shard.
type Damage = fn(&Path, &Path);

const KINDS: [(&str, Damage); 8] = [
    ("bit flip", |file, _| {
        edit(file, |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 4;
        })
    }),
    ("one byte cut off", |file, _| edit(file, |bytes| _ = bytes.pop())),
    ("zeroed tail", |file, _| {
        edit(file, |bytes| {
            let tail = bytes.len() - 512;
            bytes[tail..].fill(0);
        })
    }),
    ("swapped files", |file, other| {
        let (one, two) = (fs::read(file).unwrap(), fs::read(other).unwrap());
        fs::write(file, two).unwrap();
        fs::write(other, one).unwrap();
    }),
    ("another shard in its place", |file, other| _ = fs::copy(other, file).unwrap()),
    ("wrong header", |file, _| edit(file, |bytes| bytes[..64].fill(0x5a))),
    ("missing", |file, _| fs::remove_file(file).unwrap()),
    // The file system answers with an error, as for a sector that is gone.
    ("unreadable", |file, _| {
        fs::remove_file(file).unwrap();
        fs::create_dir(file).unwrap();
    }),
];

fn edit(file: &Path, how: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(file).unwrap();
    how(&mut bytes);
    fs::write(file, bytes).unwrap();
}

/// Three regions of two nodes; one pack for each kind of damage, and as many more whose shards serve as the other file.
async fn stored() -> (Cluster, Client, RepoId) {
    let mut cluster = Cluster::new(&["x/a", "x/b", "x/c", "x/a", "x/b", "x/c"]);
    for at in [1, 2, 3, 4, 5] {
        cluster.start(at, None).await;
    }
    cluster.start(0, Some(&[0, 1, 2])).await;
    cluster.node(0).formed().await;
    let mut client = cluster.client("backup", 2);
    eventually(20, "all nodes are up", || async {
        let mut admin = client.admin.clone();
        let status = admin.status(wire::StatusRequest {}).await;
        status.is_ok_and(|status| {
            let status = status.into_inner();
            let up = |n: &wire::NodeStatus| n.node.as_ref().is_some_and(|n| n.state == "up");
            !status.stale && status.nodes.len() == 6 && status.nodes.iter().all(up)
        })
    })
    .await;
    let repo = client.create_repo().await;
    client.open_session(repo, SESSION).await;
    let homes = [0, VICTIM, 2].map(|at| cluster.id(at));
    for tag in tags().chain(tags().map(other_of)) {
        let commit = client.upload(repo, SESSION, &contents(tag), &homes).await;
        client.commit(SESSION, vec![commit]).await;
    }
    eventually(10, "every replica has heard of all packs", || async {
        (0..6).all(|at| cluster.node(at).view().unwrap().counts().packs == 2 * KINDS.len() as u64)
    })
    .await;
    (cluster, client, repo)
}

fn tags() -> impl Iterator<Item = u8> {
    1..=KINDS.len() as u8
}
fn other_of(tag: u8) -> u8 {
    tag + 20
}

/// A pack, and the index of the shard of its that the victim holds.
async fn held(cluster: &Cluster, client: &Client, repo: RepoId, tag: u8) -> Option<(PackRecord, u8)> {
    let pack = client.again().locate(repo, tag).await?;
    let victim = cluster.id(VICTIM);
    let index = (0u8..).zip(&pack.stripe.shards).find(|(_, shard)| shard.node == Some(victim))?.0;
    Some((pack, index))
}

/// Damages one shard of the victim in each way; what was damaged, the shards that were swapped along included.
async fn damage(
    cluster: &Cluster,
    client: &Client,
    repo: RepoId,
    kinds: &[&str],
) -> Vec<(PackRecord, u8, &'static str)> {
    let (mut damaged, dir) = (Vec::new(), cluster.dir(VICTIM));
    for (tag, (kind, how)) in tags().zip(KINDS).filter(|(_, (kind, _))| kinds.contains(kind)) {
        let (pack, index) = held(cluster, client, repo, tag).await.expect("the victim holds a shard of it");
        let (other, at) = held(cluster, client, repo, other_of(tag)).await.expect("and of the other");
        let file = |pack: &PackRecord, index| -> PathBuf { shard_file(&dir, pack, index) };
        how(&file(&pack, index), &file(&other, at));
        damaged.push((pack, index, kind));
        if kind == "swapped files" {
            damaged.push((other, at, kind));
        }
    }
    damaged
}

/// Waits until every pack is whole again, on other copies than the damaged ones, with a shard on the victim for the next
/// round.
async fn mended(client: &Client, repo: RepoId, damaged: &[(PackRecord, u8, &str)]) {
    for (pack, _, kind) in damaged {
        eventually(60, &format!("{kind}: the stripe is whole again"), || async {
            let now = client.again().status().await;
            let all = client.again();
            let packs = tags().chain(tags().map(other_of));
            let mut found = None;
            for tag in packs {
                let located = all.again().locate(repo, tag).await;
                found = found.or(located.filter(|now| now.no == pack.no));
            }
            let Some(found) = found else { return false };
            let held: BTreeSet<_> = found.stripe.shards.iter().filter_map(|shard| shard.node).collect();
            let up = held.iter().all(|node| state_of(&now, *node) == NodeState::Up);
            found.stripe.generation > pack.stripe.generation
                && held.len() == scheme().n()
                && up
                && now.under_target == 0
        })
        .await;
    }
    for tag in tags().chain(tags().map(other_of)) {
        assert!(client.again().read_pack(repo, tag).await == Some(contents(tag)), "pack {tag}");
    }
}

fn all() -> Vec<&'static str> {
    KINDS.iter().map(|(kind, _)| *kind).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scrub_finds_and_names_every_kind_of_damage() {
    let (cluster, client, repo) = stored().await;
    let before = client.again().status().await.repair.unwrap().bad_found;
    let damaged = damage(&cluster, &client, repo, &all()).await;
    let mut victim = cluster.client("operator", VICTIM);
    let report = victim.scrub().await;
    // A directory in its place is no file: the shard is gone.
    let is_gone = |kind: &str| ["missing", "unreadable"].contains(&kind);
    let missing = damaged.iter().filter(|(.., kind)| is_gone(kind)).count() as u64;
    let named: BTreeSet<_> = report.named.iter().map(|n| (n.stripe.to_vec(), n.index, n.missing)).collect();
    for (pack, index, kind) in &damaged {
        let name = (pack.stripe.id.as_bytes().to_vec(), u32::from(*index), is_gone(kind));
        assert!(named.contains(&name), "{kind} is not named: {report:?}");
    }
    assert_eq!(
        (report.bad + report.missing, named.len()),
        (damaged.len() as u64, damaged.len()),
        "{report:?}"
    );
    assert_eq!(report.missing, missing, "{report:?}");
    mended(&client, repo, &damaged).await;
    eventually(20, "all are counted", || async {
        let counted = client.again().status().await.repair.unwrap().bad_found - before;
        counted >= damaged.len() as u64
    })
    .await;
    assert_eq!(victim.scrub().await.named.len(), 0, "nothing of it is left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_notices_every_kind_of_damage_and_is_given_no_wrong_byte() {
    let (cluster, client, repo) = stored().await;
    let damaged = damage(&cluster, &client, repo, &all()).await;
    for (pack, index, kind) in &damaged {
        let shard = pack.stripe.shard(repo, *index).unwrap();
        let whole = ShardRange { offset: 0, len: pack.stripe.shard_len };
        let read = client.shards.get(cluster.id(VICTIM), shard, &[whole]).await;
        let noticed = matches!(read, Err(ShardError::Corrupt(..) | ShardError::Missing(..)));
        assert!(noticed, "{kind}: {:?}", read.map(|pieces| pieces.len()));
    }
    // Whoever restores gets the right bytes all the same.
    for tag in tags() {
        assert!(client.again().read_pack(repo, tag).await == Some(contents(tag)), "pack {tag}");
    }
    mended(&client, repo, &damaged).await;
}

/// The audit reads no payload, since a node with a million shards shall start soon; so it finds what a directory and a header
/// can show.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_audit_at_start_finds_what_shows_without_reading_payloads() {
    let (mut cluster, client, repo) = stored().await;
    cluster.stop(VICTIM).await;
    let damaged = damage(&cluster, &client, repo, &["one byte cut off", "missing", "unreadable"]).await;
    cluster.start(VICTIM, None).await;
    // Nobody reads and nobody scrubs: the audit alone has told.
    mended(&client, repo, &damaged).await;
}
