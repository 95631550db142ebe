"""Ray, the engine under embedding and search on several machines: connecting, and its errors.

Section 8.3 of the document. Ray is imported on first use: `pip install "mmret_tf[distributed]"`.
"""

import math
import os
from types import ModuleType
from typing import Any

from mmret_tf._machine import cores

# Shared memory of a session on this machine alone: results and models pass through it.
OBJECT_STORE_BYTES = 2**29


def connect(address: str | None = None) -> ModuleType:
    """Connect to a Ray cluster, unless this process is connected already.

    Args:
        address: Of a cluster that is running; by default RAY_ADDRESS or, without it, a session on
            this machine that ends with the process.

    Returns:
        Ray.

    Raises:
        ValueError: There is no cluster at the address.
        ImportError: Ray is not installed.

    >>> connect().is_initialized()
    True
    """
    # Ray reports usage to its makers unless told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ImportError(f'{error}: this needs pip install "mmret_tf[distributed]"') from None
    if ray.is_initialized():
        return ray
    address = address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        options |= {"address": "local", "num_cpus": cores()}
        options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    else:
        options["address"] = address
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        where = f"the Ray cluster at {address}" if address else "Ray on this machine"
        raise ValueError(f"cannot connect to {where}: {error}".splitlines()[0]) from None
    return ray


def cores_of_each(processes: int) -> float:
    """Share of a machine's cores for each of some processes, spread over the machines evenly."""
    machines = [node for node in connect().nodes() if node["Alive"]]
    fewest = min(node["Resources"].get("CPU", 1) for node in machines)
    return fewest / math.ceil(processes / len(machines))


def use_cores(share: float) -> None:
    """Limit the threads of this process, which has not used TensorFlow yet."""
    number = str(max(1, int(share)))
    os.environ["OMP_NUM_THREADS"] = number  # `cores` and others read it
    os.environ["TF_NUM_INTRAOP_THREADS"] = os.environ["TF_NUM_INTEROP_THREADS"] = number
