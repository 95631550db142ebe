"""The machine that the process runs on: its cores, its processor, and its standard error."""

import contextlib
import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

CPU_FEATURES = ("avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd")

# Lines that the C++ code of TensorFlow and ScaNN logs, of any level but FATAL.
CPP_LOG = re.compile(
    rb"\d{4}-\d\d-\d\d [\d:.]+: [IWE] |[IWE]\d{4} [\d:.]+ "
    rb"|WARNING: All log messages before absl::|To enable the following instructions: "
    rb"|fully_quantize: |INFO: Created TensorFlow Lite "
)

_redirecting = threading.Lock()


def cores() -> int:
    """Number of cores that this process may use; OMP_NUM_THREADS can lower it, as in others."""
    is_linux = hasattr(os, "sched_getaffinity")
    number = len(os.sched_getaffinity(0)) if is_linux else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(number, max(int(limit), 1)) if limit.isdecimal() else number


def cpu_features() -> list[str]:
    """Vector instructions of the processor, as Linux names them; `[]` on other systems."""
    path = Path("/proc/cpuinfo")
    words = set(path.read_text(encoding="utf-8").split()) if path.exists() else ()
    return [feature for feature in CPU_FEATURES if feature in words]


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Drop the log lines that C++ code writes to file descriptor 2, past `sys.stderr`.

    For code without a switch of its own, such as ScaNN's. Everything else that is written in the
    meantime, by any thread, follows when the block ends. Does nothing if the environment variable
    MMRET_DEBUG is set, in a second thread at the same time, or on other systems than Linux.
    """
    is_wanted = hasattr(os, "memfd_create") and not os.environ.get("MMRET_DEBUG")
    if not is_wanted or not _redirecting.acquire(blocking=False):
        yield
        return
    with contextlib.ExitStack() as undo:
        undo.callback(_redirecting.release)
        caught = undo.enter_context(open(os.memfd_create("stderr"), "w+b"))
        stderr = undo.enter_context(open(os.dup(2), "wb", buffering=0))
        _flush()
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            _flush()
            os.dup2(stderr.fileno(), 2)
            caught.seek(0)
            stderr.write(b"".join(line for line in caught if not CPP_LOG.match(line)))


def _flush() -> None:
    if sys.stderr is not None:  # as in a program without a console
        sys.stderr.flush()
