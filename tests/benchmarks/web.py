"""How many searches does `mmret serve` answer, and does its memory stay flat?

    python tests/benchmarks/web.py --run runs/demo --items 10000 100000

Serves the run's model over random embeddings in a process of its own, and lets `wrk` (Debian's
package) send text queries from 1, 8 and 64 clients over loopback. Then it sends `--requests` more
and prints the memory of the service on the way.
"""

import argparse
import json
import multiprocessing
import re
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import requests

import mmret_tf as mm

CLIENTS = (1, 8, 64)
ERRORS = re.compile(r"(?:connect|read|write|timeout|responses:) (\d+)")
# Sends one query after another from a list.
SCRIPT = """
local bodies, number = {%s}, 0
request = function()
  number = number %% #bodies + 1
  return wrk.format("POST", "/api/search", {["Content-Type"] = "application/json"}, bodies[number])
end
"""


def serve(run: Path, n: int, address) -> None:
    """Serve the run's model over `n` random embeddings; tell the address."""
    from mmret_tf.serving.web.app import create_app
    from mmret_tf.serving.web.server import address_of, make_server, open_socket
    from mmret_tf.serving.web.service import SearchService

    model = mm.ranking.Run(run).load_model()
    vectors = np.random.default_rng(0).normal(size=(n, model.embedding_dim))
    ids = [f"{number}.jpg" for number in range(n)]
    records = [{"id": key, "captions": ["a picture", "图片"]} for key in ids]
    service = SearchService(mm.Searcher(model, mm.build_index(vectors, ids), records))
    service.warm_up()
    with open_socket("127.0.0.1", 0) as listening:
        address.send(address_of(listening))
        make_server(create_app(service)).run(sockets=[listening])


def load(address: str, script: Path, clients: int, seconds: int) -> dict[str, float]:
    """What `wrk` measures."""
    options = ["-t1", f"-c{clients}", f"-d{seconds}s", "--latency", "--timeout", "10s"]
    command = ["wrk", *options, "-s", script, address]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    unit = {"us": 1e-3, "ms": 1, "s": 1e3}
    times = dict(re.findall(r"^ +(\d+)% +(\S+)$", text, re.MULTILINE))
    in_ms = {}
    for share, value in times.items():
        number, name = re.fullmatch(r"([\d.]+)(us|ms|s)", value).groups()
        in_ms[share] = float(number) * unit[name]
    return {
        "rate": float(re.search(r"Requests/sec: +([\d.]+)", text)[1]),
        "done": int(re.search(r"(\d+) requests in", text)[1]),
        "p50": in_ms["50"],
        "p99": in_ms["99"],
        "errors": sum(
            map(int, re.findall(r"(?:connect|read|write|timeout|responses:) (\d+)", text))
        ),
    }


def memory(process: multiprocessing.Process) -> float:
    """Resident memory in MiB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


def main() -> None:
    """Measure the galleries of all sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--seconds", type=int, default=15)
    parser.add_argument("--requests", type=int, default=100_000)
    options = parser.parse_args()
    texts = [
        f"a {size} {what} {n}" for n in range(50) for size in ("small", "large") for what in "ab"
    ]
    bodies = ", ".join(json.dumps(json.dumps({"text": text, "k": 10})) for text in texts)
    spawn = multiprocessing.get_context("spawn")
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(SCRIPT % bodies)
        script.flush()
        for n in options.items:
            receiver, sender = spawn.Pipe()
            process = spawn.Process(target=serve, args=(options.run, n, sender), daemon=True)
            process.start()
            address = receiver.recv()
            measure(address, Path(script.name), n, process, options)
            process.terminate()
            process.join()


def measure(address: str, script: Path, n: int, process, options) -> None:
    """Print the figures of one service."""
    while True:  # it answers once uvicorn has started
        try:
            requests.get(f"{address}/health").raise_for_status()
            break
        except requests.ConnectionError:
            time.sleep(0.1)
    load(address, script, 8, 3)
    for clients in CLIENTS:
        found = load(address, script, clients, options.seconds)
        print(
            f"{n:>7} items, {clients:>2} clients: {found['rate']:>6.0f} requests a second, "
            f"median {found['p50']:.1f} ms, 99 % {found['p99']:.1f} ms, {found['errors']} errors",
            flush=True,
        )
    done, levels = 0, [memory(process)]
    while done < options.requests:
        found = load(address, script, 64, options.seconds)
        done += found["done"]
        levels.append(memory(process))
    shown = ", ".join(f"{level:.0f}" for level in levels)
    print(f"{n:>7} items: MiB over {done} requests: {shown}", flush=True)


if __name__ == "__main__":
    main()
