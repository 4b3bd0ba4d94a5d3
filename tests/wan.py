#!/usr/bin/env python3
"""Measures a cluster over a wide area: real nodes in network namespaces, three regions, slow and broken links between them.

    sudo tests/wan.py --wansw PATH                         # everything, some twenty minutes
    sudo tests/wan.py --wansw PATH --only slow --nodes 6

Every node has a namespace of its own, and so has the client, which is a place of its own behind one line. wansw joins them:
a small switch that reads "link A B delay-ms jitter-ms loss-% Mbit/s", "cut A B" and "heal A B" from its standard input.
What crosses between two places is delayed and shares one link of limited bandwidth; inside a region nothing is limited.

Disks are memory, so that neither they nor whoever else uses them are measured. One object of JSON goes to standard output,
progress to standard error. Ends with 1 if a tree came back changed, a backup failed that must not, or a restore without a
region was slower than its target. All of it runs in namespaces that end with this program, however it ends.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

PRIVATE = "FARSHORE_WAN_PRIVATE"
WORK = Path("/run/wan")
REGIONS = {"a": "cloud-a/north", "b": "cloud-b/south", "c": "cloud-c/west"}
CLIENT, SLOW = "home", "slow"
PORT = 7400
MIB = 1 << 20
DISK = 3 << 30
# What a node leaves free of its disk, see core/src/limits.rs.
RESERVE = 256 * MIB
CUT_TARGET = 0.8
# Exit codes of a backup that is safe: done, and done with repair owing the rest.
SAFE = (0, 14)
misses = []


def main():
    args = parse()
    if PRIVATE not in os.environ:
        enter()
    run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    WORK.mkdir()
    run("ip", "link", "set", "lo", "up")
    found = {"nodes": {}, "line_mbit": args.line, "link_mbit": args.link, "one_way_ms": args.delay}
    scenarios = [("throughput", throughput, [6, 12]), ("slow", slow, [6]), ("repair", repair, [12]), ("full", full, [6])]
    try:
        for name, scenario, sizes in scenarios:
            if args.only in (None, name):
                for nodes in [args.nodes] if args.nodes else sizes:
                    say(f"{name}, {nodes} nodes")
                    found["nodes"].setdefault(str(nodes), {})[name] = scenario(args, nodes)
        found["missed"] = misses
        print(json.dumps(found, indent=2))
    finally:
        if args.logs:
            shutil.copytree(WORK / "logs", args.logs, dirs_exist_ok=True)
    return 1 if misses else 0


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    binary = Path(__file__).resolve().parent.parent / "target/release/farshore"
    parser.add_argument("--wansw", required=True, type=Path, help="the switch")
    parser.add_argument("--farshore", default=binary, type=Path, help="the program, a release build")
    parser.add_argument("--only", choices=["throughput", "slow", "repair", "full"])
    parser.add_argument("--nodes", type=int, choices=[6, 9, 12], help="instead of those each part has by itself")
    parser.add_argument("--line", type=float, default=200, help="Mbit/s of the client's line, each way")
    parser.add_argument("--link", type=float, default=200, help="Mbit/s between two places, each way; 0 for no limit")
    parser.add_argument("--delay", type=float, default=15, help="milliseconds one way between two places")
    parser.add_argument("--mib", type=int, default=256, help="size of a source")
    parser.add_argument("--logs", type=Path, help="directory for what nodes and commands said")
    args = parser.parse_args()
    args.wansw, args.farshore = args.wansw.resolve(), args.farshore.resolve()
    for path in [args.wansw, args.farshore]:
        if not os.access(path, os.X_OK):
            parser.error(f"{path} is not a program")
    return args


def enter():
    """Starts again in namespaces of its own; the kernel ends and removes all that is in them together with it."""
    if os.geteuid() != 0:
        sys.exit("network namespaces take root")
    # unshare does not listen to SIGTERM, so that it is killed, by us or because we are gone; its child goes with it.
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "--pid", "--mount-proc", "--kill-child"]
    command += [sys.executable, __file__, *sys.argv[1:]]
    child = subprocess.Popen(command, env=os.environ | {PRIVATE: "1"})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(child.wait())
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        child.kill()


class Network:
    """Namespaces joined by the switch. A host is in a place: a region, the client's, or that of the one slow node."""

    def __init__(self, args, hosts):
        """`hosts`: their places by name."""
        self.args, self.hosts = args, {CLIENT: CLIENT} | hosts
        self.addresses = {host: f"10.77.0.{at}" for at, host in enumerate(self.hosts, 1)}
        for host in self.hosts:
            self.attach(host)
        ports = [f"w{host}:{place}" for host, place in self.hosts.items()]
        self.switch = subprocess.Popen([args.wansw, *ports], stdin=subprocess.PIPE, text=True)
        places = sorted(set(self.hosts.values()))
        self.pairs = [(one, other) for one in places for other in places if one < other]
        for one, other in self.pairs:
            self.say(f"link {one} {other} {args.delay} 0 0 {args.link}")
        self.limit_line()

    def attach(self, host):
        mac = {name: f"02:00:0a:4d:00:{address.split('.')[-1]:0>2}" for name, address in self.addresses.items()}
        run("ip", "netns", "add", host)
        run("ip", "link", "add", f"w{host}", "type", "veth", "peer", "name", "eth0", "address", mac[host], "netns", host)
        run("ip", "link", "set", f"w{host}", "up")
        lines = [f"address add {self.addresses[host]}/24 dev eth0", "link set lo up", "link set eth0 up"]
        # A neighbour who is looked for and not found is an error at once; what is lost far away is only silent.
        others = [name for name in self.hosts if name != host]
        lines += [f"neigh add {self.addresses[name]} lladdr {mac[name]} dev eth0 nud permanent" for name in others]
        run("ip", "-n", host, "-batch", "-", stdin="\n".join(lines))

    def limit_line(self):
        if self.args.line:
            shape = ["root", "tbf", "rate", f"{self.args.line}mbit", "burst", "256k", "latency", "50ms"]
            run("tc", "qdisc", "add", "dev", f"w{CLIENT}", *shape)
            run("tc", "-n", CLIENT, "qdisc", "add", "dev", "eth0", *shape)

    def say(self, line):
        self.switch.stdin.write(line + "\n")
        self.switch.stdin.flush()

    def cut(self, place):
        self.each_link(place, "cut {} {}")

    def heal(self, place):
        self.each_link(place, "heal {} {}")

    def slow_down(self, place, times):
        self.each_link(place, "link {} {}" + f" {self.args.delay * times} 0 0 {self.args.link}")

    def each_link(self, place, command):
        for pair in self.pairs:
            if place in pair:
                self.say(command.format(*pair))

    def line_bytes(self):
        """Bytes the client has sent and received so far."""
        lines = Path("/proc/net/dev").read_text().splitlines()
        (counts,) = [line.split(":")[1].split() for line in lines if line.strip().startswith(f"w{CLIENT}:")]
        return int(counts[0]), int(counts[8])

    def end(self):
        self.switch.kill()
        self.switch.wait()
        for host in self.hosts:
            run("ip", "netns", "delete", host)
        for host in self.hosts:
            subprocess.run(["ip", "link", "delete", f"w{host}"], stderr=subprocess.DEVNULL)


class Cluster:
    """Nodes in regions a, b and c, named a1, a2 and so on; each on a small file system of its own."""

    def __init__(self, args, nodes, slow=None, extra=""):
        self.args, self.dir, self.processes = args, WORK / "cluster", {}
        names = [f"{region}{number}" for region in REGIONS for number in range(1, nodes // len(REGIONS) + 1)]
        self.net = Network(args, {name: SLOW if name == slow else name[0] for name in names})
        self.logs = WORK / "logs"
        self.logs.mkdir(exist_ok=True)
        known = [f"--node={name}={REGIONS[name[0]]}={self.net.addresses[name]}:{PORT}" for name in names]
        run(args.farshore, "cluster", "init", "--dir", self.dir, "--config-dir", "@config", "--data-dir", "@data", *known)
        for name in names:
            self.lay_out(name, extra)
            self.start(name)
        self.wait(lambda status: [node["state"] for node in status["nodes"]] == ["up"] * nodes)
        self.ok("init")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes.values():
            process.kill()
            process.wait()
        for name in self.processes:
            run("umount", self.disk(name))
        self.net.end()
        for path in WORK.iterdir():
            if path != self.logs:
                shutil.rmtree(path)

    def lay_out(self, name, extra):
        here = self.dir / "nodes" / name
        self.disk(name).mkdir()
        run("mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", self.disk(name))
        text = (here / "node.toml").read_text()
        text = text.replace("@config", str(here)).replace("@data", str(self.disk(name) / "data"))
        (here / "node.toml").write_text(text + extra)

    def disk(self, name):
        return self.dir / "nodes" / name / "disk"

    def start(self, name):
        command = [self.args.farshore, "node", "run", "--config", self.dir / "nodes" / name / "node.toml"]
        log = open(self.logs / f"{name}.log", "ab")
        self.processes[name] = subprocess.Popen(inside(name, command), stdout=log, stderr=log, env=clean())

    def kill(self, name):
        self.processes[name].send_signal(signal.SIGKILL)

    def fill(self, name, left):
        """Something else takes all of a node's disk but this."""
        more = shutil.disk_usage(self.disk(name)).free - left
        if more > 0:
            with open(self.disk(name) / "ballast", "ab") as ballast:
                os.posix_fallocate(ballast.fileno(), ballast.tell(), more)

    def begin(self, *command):
        profile = {"FARSHORE_PROFILE": self.dir / "profile.toml", "FARSHORE_REPOSITORY": "wan", "FARSHORE_PASSWORD": "wan"}
        command = inside(CLIENT, [self.args.farshore, *command])
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, env=clean() | {key: str(value) for key, value in profile.items()}, **output)

    def ask(self, *command):
        """Exit code, output and seconds of a command."""
        began = time.monotonic()
        process = self.begin(*command)
        output = process.communicate()[0]
        took = time.monotonic() - began
        with open(self.logs / "commands.log", "a") as log:
            log.write(f"$ farshore {' '.join(map(str, command))}\n{output}= {process.returncode} after {took:.1f} s\n")
        return process.returncode, output, took

    def ok(self, *command):
        code, output, _ = self.ask(*command)
        if code != 0:
            sys.exit(f"farshore {command}: exit code {code}: {output}")
        return output

    def status(self):
        """What the cluster says of itself, `None` while nobody does."""
        code, output, _ = self.ask("cluster", "status", "--json")
        return json.loads(output.splitlines()[-1]) if code == 0 else None

    def wait(self, what, seconds=180):
        deadline = time.monotonic() + seconds
        while True:
            status = self.status()
            if status and not status["stale"] and what(status):
                return status
            if time.monotonic() > deadline:
                sys.exit(f"waited {seconds} s in vain: {status}")
            time.sleep(0.5)

    def settle(self):
        """Waits until every node is up and nothing is owed."""
        up = lambda status: all(node["state"] == "up" for node in status["nodes"])
        return self.wait(lambda status: up(status) and not owed(status) and not busy(status))

    def leader_region(self):
        (leader,) = [node["name"] for node in self.wait(lambda status: status["leader"])["nodes"] if node["leader"]]
        return leader[0]

    def backup(self, source, note, codes=SAFE):
        """Backs up a tree; its figures."""
        return self.measure(["backup", source], source, note, codes, 0)

    def restore(self, source, note, snapshot="latest", meanwhile=None):
        """Restores a snapshot and compares it with the tree it is of; its figures."""
        target = WORK / "target"
        figures = self.measure(["restore", snapshot, "--target", target], source, note, (0,), 1, meanwhile)
        differs = subprocess.run(["diff", "-r", "--no-dereference", source, f"{target}{source}"], capture_output=True, text=True)
        if differs.returncode:
            miss(f"{note}: the tree came back changed: {(differs.stdout + differs.stderr)[:500]}")
        shutil.rmtree(target, ignore_errors=True)
        return figures | {"identical": differs.returncode == 0}

    def measure(self, command, source, note, codes, direction, meanwhile=None):
        """Runs a command that moves a tree; `meanwhile` runs beside it."""
        beside = threading.Thread(target=meanwhile or (lambda: None), daemon=True)
        before = self.net.line_bytes()[direction]
        beside.start()
        code, output, took = self.ask(*command)
        crossed = self.net.line_bytes()[direction] - before
        beside.join()
        if code not in codes:
            miss(f"{note}: exit code {code}: {output}")
        size = int(run("du", "-sb", "--apparent-size", source).split()[0])
        figures = {"bytes_per_s": size / took, "line_bytes_per_byte": crossed / size, "exit": code}
        if code:
            figures["said"] = output.strip().splitlines()[-6:]
        say(f"  {note}: {size / took / MIB:.1f} MiB/s, {crossed / size:.2f} line bytes a byte, exit code {code}")
        return figures


def throughput(args, nodes):
    """Backup and restore: healthy, with a region that has just gone, that is known to be gone, and that goes half-way."""
    with Cluster(args, nodes) as cluster:
        first, second = tree("first", args.mib, 1), tree("second", args.mib, 2)
        found = {"backup": cluster.backup(first, "backup"), "restore": cluster.restore(first, "restore")}
        gone = lambda place: cluster.wait(
            lambda status: all(node["state"] in ("down", "lost") for node in status["nodes"] if node["name"][0] == place)
        )
        place = cluster.leader_region()
        cluster.net.cut(place)
        found["restore_just_cut"] = cluster.restore(first, "restore, region just cut")
        gone(place)
        found["restore_cut"] = cluster.restore(first, "restore, region cut")
        cluster.net.heal(place)
        cluster.settle()
        found["restore_again"] = cluster.restore(first, "restore, region back")

        place = cluster.leader_region()
        seconds = args.mib * MIB / found["restore"]["bytes_per_s"]
        cut = lambda: (time.sleep(seconds / 3), cluster.net.cut(place))
        found["restore_cut_halfway"] = cluster.restore(first, "restore, region cut half-way", meanwhile=cut)
        gone(place)
        found["backup_cut"] = cluster.backup(second, "backup, region cut")
        found["restore_of_it_cut"] = cluster.restore(second, "restore of it, region cut")
        found["codes_cut"] = codes(cluster.status())
        healthy = (found["restore"]["bytes_per_s"] + found["restore_again"]["bytes_per_s"]) / 2
        against(found, "backup", found["backup"]["bytes_per_s"])
        against(found, "restore", healthy)
        if found["restore_cut"]["ratio"] < CUT_TARGET:
            miss(f"{nodes} nodes: restore with a region cut {found['restore_cut']['ratio']} of healthy, target {CUT_TARGET}")
        return found


def slow(args, nodes):
    """A backup and a restore while one node, which has no vote, is far away or very far away."""
    name = f"c{nodes // len(REGIONS)}"
    with Cluster(args, nodes, slow=name) as cluster:
        found, seen = {}, set()
        for number, times in enumerate([1, 10, 100]):
            cluster.net.slow_down(SLOW, times)
            source, done = tree(f"times-{times}", args.mib, 10 + number), threading.Event()
            watch = lambda: watch_codes(cluster, done, seen)
            watcher = threading.Thread(target=watch, daemon=True)
            watcher.start()
            found[f"backup_{times}"] = cluster.backup(source, f"backup, latency times {times}")
            found[f"restore_{times}"] = cluster.restore(source, f"restore, latency times {times}")
            done.set()
            watcher.join()
            state = [node["state"] for node in cluster.status()["nodes"] if node["name"] == name]
            found[f"codes_{times}"], found[f"state_{times}"] = sorted(seen), state
            seen.clear()
        against(found, "backup", found["backup_1"]["bytes_per_s"])
        against(found, "restore", found["restore_1"]["bytes_per_s"])
        return found


def watch_codes(cluster, done, seen):
    while not done.wait(2):
        seen.update(codes(cluster.status()))


def repair(args, nodes):
    """A node is killed and given up: how fast its shards are made anew, and what a restore feels of it."""
    timing = '\n[timing]\ngrace = "60s"\n'
    with Cluster(args, nodes, extra=timing) as cluster:
        large, small = tree("large", 4 * args.mib, 20), tree("small", args.mib // 2, 21)
        cluster.backup(large, "backup")
        cluster.backup(small, "backup")
        before = cluster.settle()
        victim = [node for node in before["nodes"] if not node["voter"]][-1]
        found = {"restore": cluster.restore(small, "restore, all nodes up")}
        cluster.kill(victim["name"])
        state = lambda status: next(node["state"] for node in status["nodes"] if node["name"] == victim["name"])
        cluster.wait(lambda status: state(status) == "down")
        found["restore_node_down"] = cluster.restore(small, "restore, a node down")
        cluster.wait(lambda status: state(status) == "lost" and busy(status))
        began, looks, ended = time.monotonic(), [], threading.Event()

        def watch():
            while not ended.is_set():
                status = cluster.status()
                if status:
                    looks.append((time.monotonic() - began, status))
                # Packs as wide as the cluster stay below full strength while a node is missing.
                if status and not busy(status) and status["repair"]["rebuilt"] >= status["safety"]["packs"]:
                    ended.set()
                time.sleep(0.5)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        found["restore_repair"] = cluster.restore(small, "restore, repair at work")
        restored = time.monotonic() - began
        ended.wait(300)
        ended.set()
        watcher.join()
        took, last = looks[-1]
        links = json.loads(cluster.ok("cluster", "repair", "--json").splitlines()[-1])
        rate = victim["used"] / took
        busiest = max((link["bytes"] for link in links["links"]), default=0)
        against(found, "restore", found["restore"]["bytes_per_s"])
        say(f"  rebuilt {last['repair']['rebuilt']} shards, {rate / MIB:.1f} MiB/s")
        return found | {
            "rebuilt_bytes": victim["used"],
            "rebuilt_shards": last["repair"]["rebuilt"],
            "failed": last["repair"]["failed"],
            "rebuilt_bytes_per_s": rate,
            "busiest_link_use": busiest / took / (args.link * 1e6 / 8) if args.link else None,
            "restore_beside_repair": min(1, took / restored),
            "links_bytes_per_rebuilt_byte": {f"{link['from']} {link['to']}": link["bytes"] / victim["used"] for link in links["links"]},
            "crossed_against_singly": sum(link["bytes"] for link in links["links"]) / max(1, links["singly_bytes"]),
            "codes": sorted({code for _, status in looks for code in codes(status)}),
            "owed_in_the_end": owed(last),
        }


def full(args, nodes):
    """Disks run full during a backup: of one node, of a region's, and of one node down to the last byte."""
    with Cluster(args, nodes) as cluster:
        trees = [tree(f"full-{number}", args.mib, 30 + number) for number in range(4)]
        found, room = {}, RESERVE + args.mib * MIB // 16
        followers = [node["name"] for node in cluster.status()["nodes"] if not node["voter"]]
        steps = {
            "healthy": lambda: None,
            "one_node": lambda: cluster.fill(followers[0], room),
            "one_region": lambda: [cluster.fill(name, room) for name in cluster.processes if name[0] == followers[0][0]],
            "last_byte": lambda: cluster.fill(followers[-1], 0),
        }
        for source, (step, happens) in zip(trees, steps.items()):
            happens()
            figures = cluster.backup(source, f"backup, full: {step}")
            restored = [cluster.restore(source, f"restore, full: {step}")] if figures["exit"] in SAFE else []
            time.sleep(5)
            status = cluster.status() or {}
            ended = [name for name, process in cluster.processes.items() if process.poll() is not None]
            found[f"backup_{step}"] = figures | {"codes": codes(status), "nodes_ended": ended, "owed": owed(status)}
            found[f"backup_{step}"]["restored"] = restored
        against(found, "backup", found["backup_healthy"]["bytes_per_s"])
        # Nothing that was acknowledged may be gone.
        snapshots = json.loads(cluster.ok("snapshots", "--json"))
        kept = {Path(path).name: snapshot["short_id"] for snapshot in snapshots for path in snapshot["paths"]}
        for source in trees:
            if source.name in kept:
                cluster.restore(source, f"restore of {source.name} in the end", kept[source.name])
        return found


def against(found, kind, healthy):
    """Adds to each figure of a kind its ratio to the healthy one."""
    for name, figures in found.items():
        if name.startswith(kind) and isinstance(figures, dict) and "bytes_per_s" in figures:
            figures["ratio"] = round(figures["bytes_per_s"] / healthy, 2)


def codes(status):
    return [code["code"] for code in status["codes"]] if status else ["NO_ANSWER"]


def owed(status):
    """Packs below full strength."""
    return status["safety"]["under_target"] if status else None


def busy(status):
    """Shards that repair has in hand."""
    return status["repair"]["queued"] + status["repair"]["running"]


def tree(name, mib, seed):
    """Files of 4 KiB to 16 MiB that do not compress, no two alike."""
    root, dice, left, number = WORK / name, random.Random(seed), mib * MIB, 0
    while left > 0:
        size = min(left, int(2 ** dice.uniform(12, 24)))
        path = root / f"dir-{number % 7}" / f"file-{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dice.randbytes(size))
        left, number = left - size, number + 1
    return root


def clean():
    return {key: value for key, value in os.environ.items() if not key.startswith("FARSHORE_")}


def inside(host, command):
    return ["ip", "netns", "exec", host, *map(str, command)]


def run(*command, stdin=None):
    done = subprocess.run([str(part) for part in command], input=stdin, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command}: {done.stderr}")
    return done.stdout


def say(text):
    print(text, file=sys.stderr, flush=True)


def miss(text):
    misses.append(text)
    say(f"  MISSED {text}")


if __name__ == "__main__":
    sys.exit(main())
