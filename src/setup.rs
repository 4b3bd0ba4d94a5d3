//! Lays out a new cluster as files: its authority, one directory a node with configuration and keys, and the
//! operator's profile. Secrets are readable by their owner only. `dev`, `demo` and `cluster init` share it.

use crate::exit::Exit;
use farshore_core::host::{Entropy, WallClock, random, real};
use farshore_core::id::{ClusterId, NodeId};
use farshore_core::topology::{Name, Region};
use farshore_proto::pki::{Authority, Validity};
use farshore_proto::profile::Profile;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A node to be set up.
#[derive(Clone, Debug)]
pub struct NewNode {
    /// What people call it; also the name of its directory.
    pub name: Name,
    /// Its failure domain.
    pub region: Region,
    /// `host:port` it listens on.
    pub listen: String,
    /// `host:port` under which others reach it.
    pub advertise: String,
}

/// Where a node's files will lie when it runs, and what else goes into its configuration.
pub struct Placing<'a> {
    /// Directory of `ca.pem`, `node.pem`, `node.key`, by node name.
    pub config_dir: &'a dyn Fn(&Name) -> PathBuf,
    /// Directory of everything the node keeps, by node name.
    pub data_dir: &'a dyn Fn(&Name) -> PathBuf,
    /// Bytes each node offers, as text, such as `100G`.
    pub capacity: &'a str,
    /// TOML added at the end, such as a `[timing]` table.
    pub extra: &'a str,
}

/// One of the first voters, as written to `bootstrap.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Founder {
    /// Node id in hexadecimal.
    pub id: String,
    /// `host:port`.
    pub addr: String,
}

/// Name of the file that makes a node found the cluster. It lies beside exactly one node's configuration, and that
/// node puts it away once the cluster has formed, so that a node with an empty disk can never found a second one.
pub const BOOTSTRAP: &str = "bootstrap.json";

/// Writes a whole new cluster below `dir`. Returns the ids, in the order given.
pub fn write_cluster(dir: &Path, nodes: &[NewNode], placing: &Placing<'_>) -> Result<Vec<NodeId>, Exit> {
    check(nodes)?;
    let now = real::SystemClock.now_ms();
    let validity = Validity::ten_years(now);
    let cluster = ClusterId(random(&real::OsEntropy as &dyn Entropy));
    let authority = Authority::create(cluster, validity).map_err(Exit::failure)?;

    let pki = dir.join("pki");
    make_dir(&pki)?;
    write(&pki.join("ca.pem"), authority.ca_cert_pem(), false)?;
    write(&pki.join("ca.key"), &authority.ca_key_pem(), true)?;

    let mut ids = Vec::new();
    for node in nodes {
        ids.push(write_keys(&node_dir(dir, &node.name), &authority, validity)?);
    }
    for node in nodes {
        let text = configuration(cluster, node, nodes, &ids, placing);
        write(&node_dir(dir, &node.name).join("node.toml"), &text, false)?;
    }
    let founders = founders(nodes);
    let seeds: Vec<Founder> = founders
        .iter()
        .map(|&at| Founder { id: ids[at].to_string(), addr: nodes[at].advertise.clone() })
        .collect();
    let text = serde_json::to_string_pretty(&seeds).map_err(Exit::failure)?;
    write(&node_dir(dir, &nodes[founders[0]].name).join(BOOTSTRAP), &text, false)?;

    let operator: Name = "operator".parse().map_err(Exit::failure)?;
    let issued = authority.issue_client(&operator, validity).map_err(Exit::failure)?;
    let profile = Profile {
        cluster,
        // Clients ask them in this order, and wait for each that is silent.
        endpoints: by_turns(nodes).into_iter().map(|at| nodes[at].advertise.clone()).collect(),
        ca_cert: authority.ca_cert_pem().into(),
        cert: issued.cert_pem,
        key: issued.key_pem,
    };
    write(&dir.join("profile.toml"), &profile.to_toml(), true)?;
    Ok(ids)
}

/// Gives the node in `dir/nodes/NAME` a new key, and so a new identity: what a machine with a new disk needs.
pub fn renew_identity(dir: &Path, name: &Name) -> Result<NodeId, Exit> {
    let read = |file: &str| {
        let path = dir.join("pki").join(file);
        fs::read_to_string(&path).map_err(|e| Exit::failure(format!("cannot read {}: {e}", path.display())))
    };
    let authority = Authority::load(&read("ca.pem")?, &read("ca.key")?).map_err(Exit::failure)?;
    write_keys(&node_dir(dir, name), &authority, Validity::ten_years(real::SystemClock.now_ms()))
}

/// Directory of one node's configuration and keys.
pub fn node_dir(dir: &Path, name: &Name) -> PathBuf {
    dir.join("nodes").join(name.as_str())
}

fn write_keys(dir: &Path, authority: &Authority, validity: Validity) -> Result<NodeId, Exit> {
    let issued = authority.issue_node(validity).map_err(Exit::failure)?;
    make_dir(dir)?;
    write(&dir.join("ca.pem"), authority.ca_cert_pem(), false)?;
    write(&dir.join("node.pem"), &issued.cert_pem, false)?;
    write(&dir.join("node.key"), &issued.key_pem, true)?;
    Ok(issued.id)
}

fn check(nodes: &[NewNode]) -> Result<(), Exit> {
    let mut seen = BTreeSet::new();
    if nodes.is_empty() {
        return Err(Exit::failure("a cluster needs at least one node"));
    }
    match nodes.iter().find(|n| !seen.insert(n.name.as_str()) || !seen.insert(&n.advertise)) {
        Some(twice) => Err(Exit::failure(format!("node {} or its address is given twice", twice.name))),
        None => Ok(()),
    }
}

/// Positions of all nodes, one of each region after the other, so that neighbours do not fail together.
fn by_turns(nodes: &[NewNode]) -> Vec<usize> {
    let mut rounds = BTreeMap::<&str, usize>::new();
    let mut ranked: Vec<(usize, usize)> = nodes
        .iter()
        .enumerate()
        .map(|(at, node)| {
            let round = rounds.entry(node.region.as_str()).or_default();
            *round += 1;
            (*round, at)
        })
        .collect();
    ranked.sort_unstable();
    ranked.into_iter().map(|(_, at)| at).collect()
}

/// Positions of the first voters: one per region while there are regions, in the order given, an odd number of them,
/// at most five. More voters would only make every commit wait for more machines.
fn founders(nodes: &[NewNode]) -> Vec<usize> {
    let regions = nodes.iter().map(|node| node.region.as_str()).collect::<BTreeSet<_>>().len();
    let wanted = match nodes.len().min(regions.clamp(3, 5)) {
        even if even % 2 == 0 => even - 1,
        odd => odd,
    };
    by_turns(nodes).into_iter().take(wanted).collect()
}

fn configuration(
    cluster: ClusterId,
    node: &NewNode,
    nodes: &[NewNode],
    ids: &[NodeId],
    placing: &Placing<'_>,
) -> String {
    let config = (placing.config_dir)(&node.name);
    let file = |name: &str| quoted(&config.join(name).to_string_lossy());
    let mut text = String::from("# A Farshore node. Every key is explained in docs/operations.md.\n");
    let _ = writeln!(text, "cluster = \"{cluster}\"");
    let _ = writeln!(text, "name = \"{}\"", node.name);
    let _ = writeln!(text, "region = \"{}\"", node.region);
    let _ = writeln!(text, "listen = {}", quoted(&node.listen));
    let _ = writeln!(text, "advertise = {}", quoted(&node.advertise));
    let _ = writeln!(text, "data_dir = {}", quoted(&(placing.data_dir)(&node.name).to_string_lossy()));
    let _ = writeln!(text, "capacity = {}", quoted(placing.capacity));
    let (ca, cert, key) = (file("ca.pem"), file("node.pem"), file("node.key"));
    let _ = writeln!(text, "\n[credentials]\nca = {ca}\ncert = {cert}\nkey = {key}");
    for (peer, id) in nodes.iter().zip(ids).filter(|(peer, _)| peer.name != node.name) {
        let _ = writeln!(text, "\n[[peers]]\nid = \"{id}\"\naddr = {}", quoted(&peer.advertise));
    }
    let _ = write!(text, "\n{}", placing.extra);
    text
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    toml::Value::String(text.into()).to_string()
}

fn make_dir(dir: &Path) -> Result<(), Exit> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|e| Exit::failure(format!("cannot create {}: {e}", dir.display())))
}

/// Writes a file whole or not at all.
pub fn write(path: &Path, text: &str, secret: bool) -> Result<(), Exit> {
    let temp = path.with_extension("new");
    let failed = |e: std::io::Error| Exit::failure(format!("cannot write {}: {e}", path.display()));
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(if secret { 0o600 } else { 0o644 });
    let mut file = options.open(&temp).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&temp, path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(regions: usize, each: usize) -> Vec<NewNode> {
        (0..regions * each)
            .map(|i| NewNode {
                name: format!("n{i}").parse().unwrap(),
                region: format!("cloud/r{}", i / each).parse().unwrap(),
                listen: format!("127.0.0.1:{}", 7000 + i),
                advertise: format!("127.0.0.1:{}", 7000 + i),
            })
            .collect()
    }

    #[test]
    fn first_voters_are_spread_and_odd() {
        assert_eq!(founders(&nodes(3, 2)), [0, 2, 4]);
        assert_eq!(founders(&nodes(5, 3)), [0, 3, 6, 9, 12]);
        assert_eq!(founders(&nodes(4, 2)).len(), 3);
        assert_eq!(founders(&nodes(2, 3)), [0, 3, 1]);
        assert_eq!(founders(&nodes(1, 1)), [0]);
        assert_eq!(founders(&nodes(1, 2)), [0]);
        assert_eq!(by_turns(&nodes(3, 2)), [0, 2, 4, 1, 3, 5]);
    }

    #[test]
    fn a_written_cluster_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let nodes = nodes(3, 2);
        let place = |name: &Name| node_dir(dir.path(), name);
        let data = |name: &Name| node_dir(dir.path(), name).join("data");
        let placing = Placing { config_dir: &place, data_dir: &data, capacity: "1G", extra: "" };
        let ids = write_cluster(dir.path(), &nodes, &placing).unwrap();
        for (node, id) in nodes.iter().zip(&ids) {
            let text = fs::read_to_string(place(&node.name).join("node.toml")).unwrap();
            let config = farshore_node::config::Config::parse(&text).unwrap();
            assert_eq!(config.peers.len(), 5);
            assert!(config.peers.iter().all(|peer| peer.id != *id));
        }
        let profile = fs::read_to_string(dir.path().join("profile.toml")).unwrap();
        assert_eq!(Profile::parse(&profile).unwrap().endpoints.len(), 6);
        let founding = nodes.iter().filter(|n| place(&n.name).join(BOOTSTRAP).exists()).count();
        assert_eq!(founding, 1, "exactly one node founds the cluster");
        assert_ne!(renew_identity(dir.path(), &nodes[1].name).unwrap(), ids[1]);
    }
}
