//! `farshore node`: run one, or have it leave. `run` reads the configuration and keys, builds the real seams, and runs the node until told to stop.

use crate::args::{DrainArgs, Global, NodeCommand, NodeLeaveArgs, NodeRunArgs};
use crate::exit::Exit;
use crate::recovery;
use crate::setup::{BOOTSTRAP, Founder};
use farshore_core::host::{Host, real};
use farshore_node::config::{Config, Seed};
use farshore_node::disk::RealDisk;
use farshore_node::disk::bucket::BucketDisk;
use farshore_node::disk::mount::Mount;
use farshore_node::kv::RealKv;
use farshore_node::store::{SHARDS_DIR, TEMP_DIR};
use farshore_proto::tls::Credentials;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};

/// Runs the sub-command.
pub async fn run(command: NodeCommand, global: &Global) -> Result<u8, Exit> {
    match command {
        NodeCommand::Run(args) => run_node(args).await,
        NodeCommand::Leave(args) => leave(args, global).await,
        NodeCommand::Recover(args) => recovery::serve_shards(args).await,
        NodeCommand::RecoverQuorum(args) => recovery::recover_quorum(args).await,
        NodeCommand::Rejoin(args) => recovery::rejoin(args).await,
    }
}

/// The operator's order to drain, for whoever sits at the node's own machine.
async fn leave(args: NodeLeaveArgs, global: &Global) -> Result<u8, Exit> {
    let text = read(&args.config)?;
    let config =
        Config::parse(&text).map_err(|e| Exit::failure(format!("{}: {e}", args.config.display())))?;
    let drain = DrainArgs { node: config.name.to_string(), cancel: false, wait: args.wait };
    crate::topology::drain(&drain, global).await
}

/// What every command about a node on this machine begins with.
pub struct Prepared {
    /// The real seams, below the node's data directory.
    pub host: Host,
    /// The node's configuration.
    pub config: Config,
    /// Its keys.
    pub credentials: Credentials,
    /// Where the permission to found the cluster lies, if there is one.
    founding: PathBuf,
}

/// Reads configuration and keys.
pub async fn prepare(path: &Path) -> Result<Prepared, Exit> {
    let text = read(path)?;
    let mut config = Config::parse(&text).map_err(|e| Exit::failure(format!("{}: {e}", path.display())))?;
    let beside = path.parent().unwrap_or(Path::new("."));
    let founding = beside.join(BOOTSTRAP);
    if founding.exists() {
        config.bootstrap = Some(read_founders(&founding)?);
    }
    let credentials = Credentials {
        cluster: config.cluster,
        ca_pem: read(&beside.join(&config.credentials.ca))?,
        cert_pem: read(&beside.join(&config.credentials.cert))?,
        key_pem: read(&beside.join(&config.credentials.key))?,
    };
    let mut host = host(&config)?;
    if let Some(bucket) = &config.bucket {
        let owner = farshore_node::run::owner(&config, &credentials, host.clock.clone());
        let bucket = BucketDisk::open(bucket, owner.map_err(Exit::failure)?.to_string());
        let bucket = Arc::new(bucket.await.map_err(Exit::failure)?);
        host.disk = Arc::new(Mount::new(host.disk, bucket, SHARDS_DIR, TEMP_DIR));
    }
    Ok(Prepared { host, config, credentials, founding })
}

async fn run_node(args: NodeRunArgs) -> Result<u8, Exit> {
    if args.with_parent {
        end_with_parent()?;
    }
    let Prepared { host, config, credentials, founding } = prepare(&args.config).await?;
    let node = farshore_node::Node::start(host, config, credentials).await.map_err(Exit::failure)?;
    let wait_and_put_away = async {
        if founding.exists() {
            node.formed().await;
            put_away(&founding)?;
        }
        std::future::pending().await
    };
    tokio::select! {
        biased;
        result = stop_signal() => result?,
        failed = wait_and_put_away => return failed,
        why = node.failed() => return Err(Exit::failure(why)),
    }
    node.stop().await;
    Ok(crate::exit::OK)
}

/// The cluster has formed: the permission to found it must not lie around for a day when this disk is empty again.
fn put_away(founding: &Path) -> Result<(), Exit> {
    std::fs::rename(founding, founding.with_extension("done"))
        .map_err(|e| Exit::failure(format!("cannot put away {}: {e}", founding.display())))
}

fn read_founders(path: &Path) -> Result<Vec<Seed>, Exit> {
    let bad = |e: &dyn std::fmt::Display| Exit::failure(format!("{}: {e}", path.display()));
    let founders: Vec<Founder> = serde_json::from_str(&read(path)?).map_err(|e| bad(&e))?;
    founders.into_iter().map(|f| Ok(Seed { id: f.id.parse().map_err(|e| bad(&e))?, addr: f.addr })).collect()
}

fn host(config: &Config) -> Result<Host, Exit> {
    let dir: PathBuf = config.data_dir.clone();
    std::fs::create_dir_all(&dir)
        .map_err(|e| Exit::failure(format!("cannot create {}: {e}", dir.display())))?;
    let disk = RealDisk::new(dir.clone());
    let kv = RealKv::with_cache(dir, config.cache);
    Ok(Host { disk: Arc::new(disk), kv: Arc::new(kv), ..real::client_host() })
}

fn read(path: &Path) -> Result<String, Exit> {
    std::fs::read_to_string(path).map_err(|e| Exit::failure(format!("cannot read {}: {e}", path.display())))
}

fn end_with_parent() -> Result<(), Exit> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
        .map_err(|e| Exit::failure(format!("cannot follow the parent process: {e}")))
}

/// Returns when the process is asked to stop.
pub async fn stop_signal() -> Result<(), Exit> {
    let on = |kind| signal(kind).map_err(|e| Exit::failure(format!("cannot listen for signals: {e}")));
    let (mut term, mut int) = (on(SignalKind::terminate())?, on(SignalKind::interrupt())?);
    tokio::select! {
        biased;
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}
