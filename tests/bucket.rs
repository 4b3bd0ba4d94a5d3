//! A cluster one of whose regions keeps its shards in buckets, on servers that tests/buckets.py starts: a region of
//! directories dies, an object rots and another is lost, and all comes back.
#![expect(clippy::disallowed_methods, reason = "this test drives processes and files from outside")]

mod harness;

use farshore_core::host::Disk;
use farshore_node::config::Config;
use farshore_node::disk::bucket::BucketDisk;
use harness::{Dev, farshore, json_line, tree_differences};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The node's part of a bucket, as the node itself sees it.
struct Bucket {
    disk: BucketDisk,
    runtime: tokio::runtime::Runtime,
}

impl Bucket {
    fn of(dev: &Dev, work: &Path, name: &str) -> Self {
        let config = Config::parse(&fs::read_to_string(config_of(work, name)).unwrap()).unwrap();
        let nodes = dev.nodes();
        let id = nodes.iter().find(|node| node["name"] == name).unwrap()["id"].as_str().unwrap();
        let owner = format!("node {id} of cluster {}", config.cluster);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let disk = runtime.block_on(BucketDisk::open(&config.bucket.unwrap(), owner)).unwrap();
        Bucket { disk, runtime }
    }
    fn shards(&self) -> Vec<String> {
        let all = async {
            let mut found = Vec::new();
            for dir in self.disk.list("shards").await.unwrap().iter().filter(|name| name.ends_with('/')) {
                let dir = format!("shards/{}", dir.trim_end_matches('/'));
                let names = self.disk.list(&dir).await.unwrap().into_iter();
                found.extend(
                    names.filter(|name| name.ends_with(".shard")).map(|name| format!("{dir}/{name}")),
                );
            }
            found
        };
        self.runtime.block_on(all)
    }
    fn read(&self, name: &str) -> Vec<u8> {
        self.runtime.block_on(self.disk.read(name, 0, 1 << 30)).unwrap().to_vec()
    }
    fn write(&self, name: &str, bytes: Vec<u8>) {
        let write = async {
            let mut file = self.disk.create(name).await?;
            file.append(bytes.into()).await?;
            file.sync().await
        };
        self.runtime.block_on(write).unwrap();
    }
    fn remove(&self, name: &str) {
        self.runtime.block_on(self.disk.remove(name)).unwrap();
    }
}

fn config_of(work: &Path, name: &str) -> PathBuf {
    work.join("dev/nodes").join(name).join("node.toml")
}

/// What a node's configuration says of a server's bucket.
fn store_section(server: &str, prefix: &str) -> String {
    let (url, endpoint) = server.split_once('=').unwrap();
    let mut text = format!("\n[store]\nurl = \"{url}/{prefix}\"\nallow_http = true\n");
    if !endpoint.is_empty() {
        text += &format!("endpoint = \"{endpoint}\"\n");
    }
    text
}

/// Before anything is stored, the region's nodes go over to buckets of two providers.
fn move_to_buckets(dev: &mut Dev, work: &Path) {
    let servers =
        std::env::var("FARSHORE_TEST_BUCKETS").expect("tests/buckets.py starts servers and runs this");
    let servers: Vec<&str> = servers.split_whitespace().collect();
    let run = std::process::id();
    dev.kill_all();
    for (name, server) in ["c1", "c2"].iter().zip(&servers) {
        let text = fs::read_to_string(config_of(work, name)).unwrap();
        fs::write(config_of(work, name), text + &store_section(server, &format!("e2e-{run}/{name}")))
            .unwrap();
        for gone in ["shards", "index"] {
            fs::remove_dir_all(work.join("dev/nodes").join(name).join("data").join(gone)).unwrap();
        }
    }
    dev.restart();
}

fn make_tree(root: &Path) {
    fs::create_dir_all(root).unwrap();
    let mut state = 0x5eed_u64;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    for number in 0..20 {
        let len = number * 7_919;
        fs::write(root.join(format!("file {number}")), (0..len).map(|_| noise()).collect::<Vec<u8>>())
            .unwrap();
    }
    fs::write(root.join("big"), (0..40_000_000).map(|_| noise()).collect::<Vec<u8>>()).unwrap();
}

fn restore_is_identical(dev: &Dev, source: &Path) {
    let target = tempfile::tempdir().unwrap();
    dev.ok(&["restore", "latest", "--target", target.path().to_str().unwrap()]);
    let back = target.path().join(source.strip_prefix("/").unwrap());
    assert_eq!(tree_differences(source, &back), "", "restored tree differs");
}

fn scrub(dev: &Dev) -> Value {
    json_line(&dev.ok(&["cluster", "scrub", "--wait", "--json"]), "summary")
}

/// Scrubs until nothing is wrong any more.
fn heals(dev: &Dev) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        dev.ok(&["cluster", "status", "--wait", "60s"]);
        let summary = scrub(dev);
        if (&summary["bad"], &summary["missing"]) == (&Value::from(0), &Value::from(0)) {
            return;
        }
        assert!(Instant::now() < deadline, "not healed: {summary}");
    }
}

/// Does not start on another node's part of a bucket, and says whose it is.
fn refuses_the_other_prefix(dev: &mut Dev, work: &Path) {
    dev.kill_nodes(&["c1"]);
    let (own, other) = (config_of(work, "c1"), config_of(work, "c2"));
    let (text, other) = (fs::read_to_string(own).unwrap(), fs::read_to_string(other).unwrap());
    let section = other.split_once("[store]").unwrap().1;
    let wrong = work.join("dev/nodes/c1/wrong.toml");
    fs::write(&wrong, text.split_once("[store]").unwrap().0.to_owned() + "[store]" + section).unwrap();
    let refused = farshore().args(["node", "run", "--config"]).arg(&wrong).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("belongs to node") && said.contains("and this is node"), "{said}");
    dev.start_node("c1");
}

#[test]
#[ignore = "needs servers: tests/buckets.py"]
fn a_region_of_bucket_nodes_beside_regions_of_directories() {
    let work = tempfile::tempdir().unwrap();
    let work = work.path();
    let source = work.join("source");
    make_tree(&source);
    let mut dev = Dev::start(&work.join("dev"));
    move_to_buckets(&mut dev, work);
    dev.ok(&["init"]);
    dev.ok(&["backup", source.to_str().unwrap()]);
    restore_is_identical(&dev, &source);

    // The shards are in the buckets and nowhere else.
    let (s3, azure) = (Bucket::of(&dev, work, "c1"), Bucket::of(&dev, work, "c2"));
    let (on_s3, on_azure) = (s3.shards(), azure.shards());
    assert!(on_s3.len() > 1 && on_azure.len() > 1, "{on_s3:?} {on_azure:?}");
    for name in ["c1", "c2"] {
        let local = work.join("dev/nodes").join(name).join("data/shards");
        let temp = local.join("tmp");
        let left: Vec<_> = fs::read_dir(&local).into_iter().flatten().map(|e| e.unwrap().path()).collect();
        assert!(left.iter().all(|path| *path == temp), "{left:?}");
    }

    // A region of directories dies; the shards of the buckets are needed now.
    dev.kill_region("cloud-a/north");
    restore_is_identical(&dev, &source);

    // All start again, and find in the buckets what they had put there.
    dev.kill_all();
    dev.restart();
    dev.ok(&["cluster", "status", "--wait", "90s"]);

    // One byte turns over in one bucket, and an object is lost from the other.
    let good = s3.read(&on_s3[0]);
    let mut rotten = good.clone();
    rotten[good.len() / 2] ^= 0x10;
    s3.write(&on_s3[0], rotten);
    azure.remove(&on_azure[0]);
    let found = scrub(&dev);
    assert_eq!((&found["bad"], &found["missing"]), (&Value::from(1), &Value::from(1)), "{found}");
    heals(&dev);
    restore_is_identical(&dev, &source);
    dev.ok(&["check", "--read-data"]);

    refuses_the_other_prefix(&mut dev, work);
    dev.ok(&["cluster", "status", "--wait", "90s"]);
    dev.stop();
}
