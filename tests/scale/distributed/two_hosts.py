"""Two hosts, as network namespaces of this machine: the link between them is cut.

    sudo python tests/scale/distributed/two_hosts.py

Ray runs on both. An embedding must end with the store of one process though a host is lost; a
search must answer, or say what is missing, and in the end be whole again. Anything else is printed,
and the exit status is 1. Needs Linux, root and iproute2.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scale.distributed.kill_processes import differences, make_run

import mmret_tf as mm
from mmret_tf.scale import PartialFound, ShardLost

HOSTS = {"mmret-a": "10.77.0.1", "mmret-b": "10.77.0.2"}
HEAD, OTHER = HOSTS
ADDRESS = f"{HOSTS[HEAD]}:6379"
PYTHON = Path(sys.executable)

os.environ["RAY_AUTH_MODE"] = "token"  # of this user, for both hosts


def run(command, **options):
    return subprocess.run(command.split(), check=True, capture_output=True, text=True, **options)


def set_link(is_up):
    run(f"ip -n {OTHER} link set mmret-vb {'up' if is_up else 'down'}")


@contextlib.contextmanager
def hosts():
    """Two namespaces with a link between them."""
    with contextlib.ExitStack() as undo:
        for name in HOSTS:
            run(f"ip netns add {name}")
            undo.callback(run, f"ip netns delete {name}")
            undo.callback(stop, name)
            run(f"ip -n {name} link set lo up")
        run(f"ip link add mmret-va netns {HEAD} type veth peer name mmret-vb netns {OTHER}")
        for (name, address), link in zip(HOSTS.items(), ("mmret-va", "mmret-vb"), strict=True):
            run(f"ip -n {name} address add {address}/24 dev {link}")
            run(f"ip -n {name} link set {link} up")
        yield


def stop(name):
    """Kill all processes of a host."""
    for pid in run(f"ip netns pids {name}").stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def start_ray(name):
    command = f"ip netns exec {name} {PYTHON.with_name('ray')} start --num-cpus 1"
    command += f" --node-ip-address {HOSTS[name]} --disable-usage-stats"
    where = (
        "--head --port 6379 --include-dashboard false" if name == HEAD else f"--address {ADDRESS}"
    )
    run(f"{command} {where} --object-store-memory 300000000")


def on_head(*arguments):
    """A command on the first host."""
    command = ["ip", "netns", "exec", HEAD, sys.executable, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=os.environ | {"RAY_ADDRESS": ADDRESS}, **pipes)


def embed_without_a_host(folder):
    """Cut the link while both hosts embed."""
    photos, place = make_run(folder)
    start_ray(OTHER)
    embed = on_head(
        *("-m", "mmret_tf", "embed", "--ray", "--workers", "2"),
        *("--data", str(photos), "--run", str(place.folder)),
    )
    time.sleep(15)
    set_link(False)
    started = time.perf_counter()
    said = embed.communicate()[0]
    print(f"embedding ended {time.perf_counter() - started:.0f} s after the link was cut")
    set_link(True)
    stop(OTHER)
    return [said[-2000:]] if embed.returncode else differences(photos, place, folder)


def search_without_a_host(folder):
    """Cut the link between two shards, in a process of the first host."""
    start_ray(OTHER)
    search = on_head(__file__, "--search", str(folder))
    said = search.communicate()[0]
    set_link(True)
    print(said.splitlines()[-1])
    return [said[-2000:]] if search.returncode else []


def search(folder):
    """Search while the link is cut, until the lost shard has come back on this host."""
    random = np.random.default_rng(0)
    rows, query = random.normal(size=(2000, 16)), random.normal(size=(1, 16))
    index = mm.scale.ShardedIndex.build(rows, range(2000), shards=2, directory=folder, partial=True)
    right = mm.BruteForceIndex.build(rows, range(2000)).search(query)[0]
    shards = {shard["pid"]: shard["host"] for shard in index.stats["shards"]}
    names = [run(f"ip netns identify {pid}").stdout.strip() for pid in shards]
    assert sorted(names) == sorted(HOSTS), f"both shards are on one host: {names}"
    assert np.array_equal(index.search(query)[0], right)
    set_link(False)
    started, counts = time.perf_counter(), {"partial": 0, "lost": 0}
    while time.perf_counter() - started < 300:
        try:
            found = index.search(query)
        except ShardLost:
            counts["lost"] += 1
            continue
        if not isinstance(found, PartialFound):
            break
        counts["partial"] += 1
        assert found.missing == [names.index(OTHER)] and found.remark
    assert np.array_equal(found[0], right), "the shard did not come back"
    print(f"{counts}; whole again after {time.perf_counter() - started:.0f} s")


def main():
    with tempfile.TemporaryDirectory() as temporary, hosts():
        start_ray(HEAD)
        folder = Path(temporary)
        return embed_without_a_host(folder) + search_without_a_host(folder)


if __name__ == "__main__":
    if "--search" in sys.argv:
        search(Path(sys.argv[-1]))
    else:
        faults = main()
        print(*faults or ["all as one process"], sep="\n")
        sys.exit(bool(faults))
