//! What an operator may say about one node: as typed in TOML, and checked. Reading files is the caller's affair;
//! nothing here touches the disk.

use crate::disk::provider::{BucketOptions, BucketUrl};
use crate::kv::KvCache;
use crate::raft::RaftTuning;
use farshore_core::id::{ClusterId, NodeId};
use farshore_core::level::{FEATURE_LEVEL, LEVEL_FIRST};
use farshore_core::limits::{KV_CACHE_BYTES_MIN, NODES_MAX, SESSION_LEASE_MS, SPARSE_PERCENT_DEFAULT};
use farshore_core::topology::{Name, Region};
use farshore_core::units::{Bytes, parse_duration};
use serde::Deserialize;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// A configuration that cannot be used. The message names the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not TOML, a missing key, or a key nobody knows.
    #[error("configuration: {0}")]
    Syntax(String),
    /// One key's value is wrong.
    #[error("configuration key `{key}`: {why}")]
    Value {
        /// Dotted path of the key.
        key: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

/// Another node and where to find it until the catalogue knows better.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seed {
    /// Derived from its key.
    pub id: NodeId,
    /// `host:port`.
    pub addr: String,
}

/// PEM files of this node's identity; the caller reads them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CredentialFiles {
    /// Certificate of the cluster's authority.
    pub ca: PathBuf,
    /// This node's certificate.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// How fast the cluster notices and reacts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timing {
    /// A node tells the leader this often that it lives. Default 1 s: cheap, and a third of `suspect_after`.
    pub heartbeat: Duration,
    /// Silence after which a node gets no new shards while others can. Default 3 s.
    pub suspect_after: Duration,
    /// Silence after which a node is called down. Default 8 s: longer than a restart of the process.
    pub down_after: Duration,
    /// How long a down node is expected back before its shards are rebuilt elsewhere. Default 15 min: a reboot or a
    /// short network fault must not move terabytes.
    pub grace: Duration,
    /// Every shard is re-read within this time. Default 14 d.
    pub scrub_period: Duration,
    /// A session that is not renewed for this long is ended. Default 120 s, see `limits.rs`.
    pub session_lease: Duration,
    /// Pause between looks of the repair planner and the sweeper. Default 2 s.
    pub maintain_every: Duration,
    /// Least pause between looks for garbage. Default 1 min: nothing waits for it.
    pub collect_every: Duration,
    /// Packs of which less than this percentage of chunks is needed are emptied into new ones; 0 for never. Default 60.
    pub compact_below: u8,
    /// Shortest time between two exports of the catalogue into the shard stores: what was acknowledged longer ago than
    /// about this survives the loss of every replica. Default 10 s; 0 s turns exports off.
    pub export_every: Duration,
    /// Every row of this node's catalogue is re-read within about this time. Default 1 d.
    pub prove_every: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            heartbeat: Duration::from_secs(1),
            suspect_after: Duration::from_secs(3),
            down_after: Duration::from_secs(8),
            grace: Duration::from_secs(15 * 60),
            scrub_period: Duration::from_secs(14 * 86_400),
            session_lease: Duration::from_millis(SESSION_LEASE_MS),
            maintain_every: Duration::from_secs(2),
            collect_every: Duration::from_secs(60),
            compact_below: SPARSE_PERCENT_DEFAULT as u8,
            export_every: Duration::from_secs(10),
            prove_every: Duration::from_secs(86_400),
        }
    }
}

/// A checked configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Cluster this node belongs to; its certificate must agree.
    pub cluster: ClusterId,
    /// What people call the node.
    pub name: Name,
    /// Its failure domain.
    pub region: Region,
    /// Finer domain inside the region.
    pub zone: Option<Name>,
    /// `host:port` to listen on; port 0 picks a free one.
    pub listen: String,
    /// `host:port` under which others reach it; `None` means the address listened on.
    pub advertise: Option<String>,
    /// Everything the node keeps; the caller opens the disk and the stores below it.
    pub data_dir: PathBuf,
    /// Bytes offered for shards; also the node's weight in placement. 0 for a witness, which votes and holds the catalogue
    /// and nothing else.
    pub capacity: u64,
    /// A bucket for the shards; `None` keeps them in the data directory. Its credentials come from the environment.
    pub bucket: Option<BucketOptions>,
    /// Where the caller finds the PEM files.
    pub credentials: CredentialFiles,
    /// Nodes to talk to before the catalogue is known.
    pub peers: Vec<Seed>,
    /// Health, repair, scrub and leases.
    pub timing: Timing,
    /// Consensus.
    pub raft: RaftTuning,
    /// Feature level beyond which this node is held back; the cluster goes no further than all its nodes can. Default: what
    /// this program can do.
    pub feature_level_max: u32,
    /// Memory of the engines; the caller opens the stores with it.
    pub cache: KvCache,
    /// First voters of a new cluster. Never typed: the caller passes it to exactly one node on its first start; it is
    /// ignored once that node has state.
    pub bootstrap: Option<Vec<Seed>>,
}

impl Config {
    /// Reads and checks a configuration.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let typed: Typed =
            toml::from_str(text).map_err(|e| ConfigError::Syntax(e.to_string().trim().to_string()))?;
        typed.check()
    }
}

/// The configuration as typed. Optional keys take the defaults documented on the checked types.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Typed {
    cluster: String,
    name: String,
    region: String,
    zone: Option<String>,
    listen: String,
    advertise: Option<String>,
    data_dir: PathBuf,
    #[serde(default)]
    role: Role,
    capacity: Option<String>,
    feature_level_max: Option<u32>,
    store: Option<TypedStore>,
    credentials: TypedCredentials,
    #[serde(default)]
    peers: Vec<TypedSeed>,
    #[serde(default)]
    timing: TypedTiming,
    #[serde(default)]
    raft: TypedRaft,
    #[serde(default)]
    cache: TypedCache,
}

/// What a node is for.
#[derive(Deserialize, Clone, Copy, Default)]
#[serde(rename_all = "kebab-case")]
enum Role {
    /// It keeps shards.
    #[default]
    Storage,
    /// It votes.
    Witness,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TypedStore {
    url: String,
    endpoint: Option<String>,
    region: Option<String>,
    #[serde(default)]
    allow_http: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TypedCredentials {
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TypedSeed {
    id: String,
    addr: String,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct TypedTiming {
    heartbeat: Option<String>,
    suspect_after: Option<String>,
    down_after: Option<String>,
    grace: Option<String>,
    scrub_period: Option<String>,
    session_lease: Option<String>,
    maintain_every: Option<String>,
    collect_every: Option<String>,
    compact_below: Option<u8>,
    export_every: Option<String>,
    prove_every: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct TypedRaft {
    heartbeat: Option<String>,
    election_min: Option<String>,
    election_max: Option<String>,
    snapshot_logs: Option<u64>,
    keep_logs: Option<u64>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct TypedCache {
    catalogue: Option<String>,
    index: Option<String>,
}

impl Typed {
    fn check(self) -> Result<Config, ConfigError> {
        let credentials = self.credentials;
        if self.advertise.is_none() && is_any(&self.listen) {
            return Err(value("advertise", "is needed, since nobody can dial the address in `listen`"));
        }
        Ok(Config {
            cluster: read("cluster", &self.cluster)?,
            name: read("name", &self.name)?,
            region: read("region", &self.region)?,
            zone: self.zone.map(|z| read("zone", &z)).transpose()?,
            listen: address("listen", self.listen, true)?,
            advertise: self.advertise.map(|a| address("advertise", a, false)).transpose()?,
            data_dir: self.data_dir,
            capacity: capacity(self.role, self.capacity.as_deref())?,
            bucket: bucket(self.role, self.store)?,
            credentials: CredentialFiles { ca: credentials.ca, cert: credentials.cert, key: credentials.key },
            peers: seeds(self.peers)?,
            timing: self.timing.check()?,
            raft: self.raft.check()?,
            feature_level_max: feature_level(self.feature_level_max)?,
            cache: self.cache.check()?,
            bootstrap: None,
        })
    }
}

fn feature_level(typed: Option<u32>) -> Result<u32, ConfigError> {
    let level = typed.unwrap_or(FEATURE_LEVEL);
    if (LEVEL_FIRST..=FEATURE_LEVEL).contains(&level) {
        return Ok(level);
    }
    Err(value("feature_level_max", format!("this program can do {LEVEL_FIRST} to {FEATURE_LEVEL}")))
}

impl TypedTiming {
    fn check(self) -> Result<Timing, ConfigError> {
        let d = Timing::default();
        let timing = Timing {
            heartbeat: duration("timing.heartbeat", self.heartbeat, d.heartbeat)?,
            suspect_after: duration("timing.suspect_after", self.suspect_after, d.suspect_after)?,
            down_after: duration("timing.down_after", self.down_after, d.down_after)?,
            grace: duration("timing.grace", self.grace, d.grace)?,
            scrub_period: duration("timing.scrub_period", self.scrub_period, d.scrub_period)?,
            session_lease: duration("timing.session_lease", self.session_lease, d.session_lease)?,
            maintain_every: duration("timing.maintain_every", self.maintain_every, d.maintain_every)?,
            collect_every: duration("timing.collect_every", self.collect_every, d.collect_every)?,
            compact_below: self.compact_below.unwrap_or(d.compact_below),
            export_every: match self.export_every.as_deref() {
                Some("0" | "0s") => Duration::ZERO,
                _ => duration("timing.export_every", self.export_every, d.export_every)?,
            },
            prove_every: duration("timing.prove_every", self.prove_every, d.prove_every)?,
        };
        longer("timing.suspect_after", timing.suspect_after, "timing.heartbeat", timing.heartbeat)?;
        if timing.compact_below > 90 {
            return Err(value(
                "timing.compact_below",
                "must be at most 90: almost full packs are not worth copying",
            ));
        }
        longer("timing.down_after", timing.down_after, "timing.suspect_after", timing.suspect_after)?;
        Ok(timing)
    }
}

impl TypedRaft {
    fn check(self) -> Result<RaftTuning, ConfigError> {
        let d = RaftTuning::default();
        let ms = Duration::from_millis;
        let heartbeat = duration("raft.heartbeat", self.heartbeat, ms(d.heartbeat_ms))?;
        let election_min = duration("raft.election_min", self.election_min, ms(d.election_min_ms))?;
        let election_max = duration("raft.election_max", self.election_max, ms(d.election_max_ms))?;
        longer("raft.election_min", election_min, "raft.heartbeat", heartbeat)?;
        longer("raft.election_max", election_max, "raft.election_min", election_min)?;
        let snapshot_logs = self.snapshot_logs.unwrap_or(d.snapshot_logs);
        if snapshot_logs == 0 {
            return Err(value("raft.snapshot_logs", "must be at least 1"));
        }
        Ok(RaftTuning {
            heartbeat_ms: heartbeat.as_millis() as u64,
            election_min_ms: election_min.as_millis() as u64,
            election_max_ms: election_max.as_millis() as u64,
            snapshot_logs,
            keep_logs: self.keep_logs.unwrap_or(d.keep_logs),
            ..d
        })
    }
}

impl TypedCache {
    fn check(self) -> Result<KvCache, ConfigError> {
        let d = KvCache::default();
        Ok(KvCache {
            catalogue: cache("cache.catalogue", self.catalogue, d.catalogue)?,
            index: cache("cache.index", self.index, d.index)?,
        })
    }
}

fn cache(key: &'static str, text: Option<String>, default: u64) -> Result<u64, ConfigError> {
    match text.map_or(Ok(default), |text| size(key, &text))? {
        bytes if bytes < KV_CACHE_BYTES_MIN => {
            Err(value(key, format!("must be at least {}", Bytes(KV_CACHE_BYTES_MIN))))
        }
        bytes => Ok(bytes),
    }
}

fn value(key: &'static str, why: impl ToString) -> ConfigError {
    ConfigError::Value { key, why: why.to_string() }
}

fn read<T: FromStr<Err: ToString>>(key: &'static str, text: &str) -> Result<T, ConfigError> {
    text.parse().map_err(|e: T::Err| value(key, e))
}

fn size(key: &'static str, text: &str) -> Result<u64, ConfigError> {
    read::<Bytes>(key, text).map(|bytes| bytes.0)
}

fn capacity(role: Role, text: Option<&str>) -> Result<u64, ConfigError> {
    match (role, text) {
        (Role::Witness, None) => Ok(0),
        (Role::Witness, Some(_)) => Err(value("capacity", "a witness keeps no shards; leave it out")),
        (Role::Storage, None) => Err(value("capacity", "is needed: bytes offered for shards, such as 500G")),
        (Role::Storage, Some(text)) => match size("capacity", text)? {
            0 => Err(value(
                "capacity",
                "must be more than nothing; a node that only votes has role = \"witness\"",
            )),
            bytes => Ok(bytes),
        },
    }
}

fn bucket(role: Role, typed: Option<TypedStore>) -> Result<Option<BucketOptions>, ConfigError> {
    match (role, typed) {
        (_, None) => Ok(None),
        (Role::Witness, Some(_)) => Err(value("store", "a witness keeps no shards; leave it out")),
        (Role::Storage, Some(typed)) => typed.check().map(Some),
    }
}

impl TypedStore {
    fn check(self) -> Result<BucketOptions, ConfigError> {
        let url: BucketUrl = read("store.url", &self.url)?;
        if let Some(endpoint) = &self.endpoint {
            let plain = |rest: &str| !rest.is_empty() && !rest.contains(['@', '?', '#', ' ']);
            match endpoint.split_once("://") {
                Some(("https", rest)) if plain(rest) => {}
                Some(("http", rest)) if plain(rest) && self.allow_http => {}
                Some(("http", rest)) if plain(rest) => {
                    return Err(value(
                        "store.endpoint",
                        "is without TLS; `allow_http = true` if that is meant",
                    ));
                }
                _ => return Err(value("store.endpoint", "is not like https://host:port")),
            }
        }
        Ok(BucketOptions { url, endpoint: self.endpoint, region: self.region, allow_http: self.allow_http })
    }
}

fn duration(key: &'static str, text: Option<String>, default: Duration) -> Result<Duration, ConfigError> {
    let Some(text) = text else { return Ok(default) };
    match parse_duration(&text).map_err(|e| value(key, e))? {
        Duration::ZERO => Err(value(key, "must be longer than nothing")),
        time => Ok(time),
    }
}

fn longer(
    key: &'static str,
    time: Duration,
    other: &'static str,
    least: Duration,
) -> Result<(), ConfigError> {
    if time > least { Ok(()) } else { Err(value(key, format!("must be longer than `{other}`"))) }
}

/// Only the form: whether the address can be reached shows when it is used. Others cannot dial port 0.
fn address(key: &'static str, text: String, zero_port: bool) -> Result<String, ConfigError> {
    let port =
        text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, p)| p.parse::<u16>().ok());
    match port {
        Some(0) if !zero_port => Err(value(key, "needs a real port")),
        Some(_) => Ok(text),
        None => Err(value(key, format!("{text:?} is not host:port"))),
    }
}

/// Whether an address means every interface, which is nothing that others could dial.
fn is_any(addr: &str) -> bool {
    addr.rsplit_once(':').is_some_and(|(host, _)| matches!(host, "0.0.0.0" | "[::]" | "*"))
}

fn seeds(typed: Vec<TypedSeed>) -> Result<Vec<Seed>, ConfigError> {
    if typed.len() > NODES_MAX {
        return Err(value("peers", format!("more than {NODES_MAX} nodes")));
    }
    let seed =
        |s: TypedSeed| Ok(Seed { id: read("peers.id", &s.id)?, addr: address("peers.addr", s.addr, false)? });
    typed.into_iter().map(seed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        cluster = "000102030405060708090a0b0c0d0e0f"
        name = "a1"
        region = "aws/eu-west-1"
        listen = "127.0.0.1:0"
        data_dir = "/var/lib/farshore"
        capacity = "1.5TiB"
        [credentials]
        ca = "ca.pem"
        cert = "node.pem"
        key = "node.key"
        [[peers]]
        id = "0123456789abcdef"
        addr = "10.0.0.2:7400"
        [timing]
        grace = "20s"
    "#;

    #[test]
    fn a_short_file_takes_the_defaults() {
        let config = Config::parse(GOOD).unwrap();
        assert_eq!(config.capacity, 3 << 39);
        assert_eq!(config.timing, Timing { grace: Duration::from_secs(20), ..Timing::default() });
        assert_eq!(config.raft, RaftTuning::default());
        assert_eq!(config.cache, KvCache::default());
        assert_eq!(config.peers[0].id, NodeId(0x0123_4567_89ab_cdef));
        assert_eq!(config.bootstrap, None);
    }

    #[test]
    fn a_witness_offers_nothing() {
        let text = GOOD.replace("capacity = \"1.5TiB\"", "role = \"witness\"");
        assert_eq!(Config::parse(&text).unwrap().capacity, 0);
    }

    #[test]
    fn a_bucket_is_named_without_secrets() {
        let bucket =
            |text: &str| Config::parse(&format!("{GOOD}\n[store]\n{text}")).map(|c| c.bucket.unwrap());
        let plain = bucket("url = \"s3://shards/farshore/a1/\"").unwrap();
        assert_eq!((plain.url.bucket.as_str(), plain.url.prefix.as_str()), ("shards", "farshore/a1"));
        assert_eq!((plain.endpoint, plain.region, plain.allow_http), (None, None, false));
        let own =
            "url = \"s3://b\"\nregion = \"eu-1\"\nallow_http = true\nendpoint = \"http://127.0.0.1:9000\"";
        assert_eq!(bucket(own).unwrap().endpoint.as_deref(), Some("http://127.0.0.1:9000"));
        assert!(bucket("url = \"gs://b/p\"").is_ok() && bucket("url = \"az://b/p\"").is_ok());
        let complaint = |text: &str| bucket(text).unwrap_err().to_string();
        for bad in [
            "b/p",
            "ftp://b/p",
            "s3://",
            "s3:///p",
            "s3://key:secret@b/p",
            "s3://b/../p",
            "s3://b//p",
            "s3://b/p?x",
        ] {
            assert!(complaint(&format!("url = {bad:?}")).contains("`store.url`"), "{bad}");
        }
        for bad in ["http://h:1", "h:1", "https://", "https://key@h"] {
            let text = format!("url = \"s3://b\"\nendpoint = {bad:?}");
            assert!(complaint(&text).contains("`store.endpoint`"), "{bad}");
        }
        assert!(complaint("url = \"s3://b\"\nsecret_key = \"x\"").contains("secret_key"));
        let witness = GOOD.replace("capacity = \"1.5TiB\"", "role = \"witness\"");
        let refused = Config::parse(&format!("{witness}\n[store]\nurl = \"s3://b\"")).unwrap_err();
        assert!(refused.to_string().contains("`store`"));
    }

    #[test]
    fn caches_are_set_one_by_one() {
        let cache =
            |text: &str| Config::parse(&format!("{GOOD}\n[cache]\n{text}")).map(|config| config.cache);
        let default = KvCache::default();
        assert_eq!(cache("catalogue = \"256M\""), Ok(KvCache { catalogue: 256 << 20, ..default }));
        assert_eq!(cache("index = \"32MiB\""), Ok(KvCache { index: 32 << 20, ..default }));
        assert!(cache("index = \"1k\"").unwrap_err().to_string().contains("`cache.index`"));
        assert!(cache("indices = \"1M\"").is_err());
    }

    #[test]
    fn every_complaint_names_its_key() {
        let wrong = |from: &str, to: &str| {
            assert!(GOOD.contains(from));
            Config::parse(&GOOD.replace(from, to)).unwrap_err().to_string()
        };
        assert!(wrong("1.5TiB", "much").contains("`capacity`"));
        assert!(wrong("1.5TiB", "0").contains("`capacity`"));
        assert!(wrong("capacity = \"1.5TiB\"", "").contains("`capacity`"));
        assert!(wrong("name = \"a1\"", "name = \"a1\"\nrole = \"witness\"").contains("`capacity`"));
        assert!(wrong("name = \"a1\"", "name = \"a1\"\nrole = \"king\"").contains("role"));
        assert!(wrong("aws/eu-west-1", "aws").contains("`region`"));
        assert!(wrong("10.0.0.2:7400", "10.0.0.2:0").contains("`peers.addr`"));
        assert!(wrong("127.0.0.1:0", ":7").contains("`listen`"));
        assert!(wrong("127.0.0.1:0", "0.0.0.0:7").contains("`advertise`"));
        assert!(wrong("grace", "graze").contains("graze"));
        assert!(wrong("grace = \"20s\"", "down_after = \"2s\"").contains("`timing.down_after`"));
        assert!(wrong("name = \"a1\"", "").contains("name"));
    }
}
