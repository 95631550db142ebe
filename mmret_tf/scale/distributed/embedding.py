"""A gallery embedded by processes on several machines (分布式嵌入). Section 8.3.

Only the computation is distributed: the store is written as on one machine, and either can resume
the other's work.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmret_tf._checks import checked_count
from mmret_tf.data.collection import Collection
from mmret_tf.models.encoder import Encoder
from mmret_tf.ranking.storage.embedding_store import EmbeddingStore
from mmret_tf.scale.distributed.cluster import connect, cores_of_each, use_cores

# Items of a job: enough to keep a worker busy, few enough that all end at nearly the same time.
JOB_ITEMS = 256
# Jobs that a worker has at once: while its last result travels, it computes the next.
JOBS_AT_ONCE = 2
# Results that wait for an earlier one, at most, for each worker.
MOST_WAITING = 16
# A job that ends its worker this often is an error, for example of memory.
MOST_RETRIES = 3

Items = Mapping[str, Sequence[Sequence[Any]]]


def embed(
    encoder: Encoder,
    collection: Collection,
    directory: str | os.PathLike,
    dtype: str = "float32",
    workers: int | None = None,
    address: str | None = None,
) -> EmbeddingStore:
    """`EmbeddingStore.export`, computed by a pool of processes. Sections 7.2 and 8.3.

    Workers read the files themselves, so that all machines need the paths of the collection. A
    worker that is lost is replaced, and its items are embedded again. Workers without work repeat
    what others have not finished, so that a slow machine does not hold up the rest. This process
    computes the digests of the files and writes the store; if it is killed, the next call resumes.

    Args:
        encoder: The encoder, in any form; each worker gets a copy.
        collection, directory, dtype: As for `EmbeddingStore.export`.
        workers: Number of processes; by default one for each machine, which uses all its cores.
        address: Of a Ray cluster that is running, see `connect`.

    Returns:
        The store, opened.

    Raises:
        ValueError: As for `EmbeddingStore.export`; or there is no such cluster, or a worker is
            lost again and again.
        ImportError: Ray is not installed.

    >>> import tempfile
    >>> import mmret_tf as mm
    >>> pairs, text = mm.load_pairs("scenes", split="dev", size=4), mm.TextPreprocessor()
    >>> text.adapt(pairs.all_captions())
    >>> image = mm.image_tower("SmallCNN", weights=None, image_size=16, embedding_dim=8)
    >>> model = mm.DualEncoder(image, mm.text_tower(text, embedding_dim=8))
    >>> store = embed(model, pairs, f"{tempfile.mkdtemp()}/embeddings", workers=1)
    >>> float(np.abs(store.embeddings - model.encode_items(pairs.sources)).max()) < 1e-6
    True
    """
    if workers is not None:
        checked_count(workers, "workers")
    ray = connect(address)
    workers = workers or sum(node["Alive"] for node in ray.nodes())

    def encode(blocks: Iterable[Items]) -> Iterator[np.ndarray]:
        shared = [ray.put(encoder)]  # in a list, Ray leaves it to the worker to read it
        counts: deque[int] = deque()
        jobs = ((shared, job) for job in _jobs(blocks, counts))
        results = _in_order(ray, _start(ray, workers), jobs)
        try:
            for first in results:
                others = [next(results) for _ in range(counts.popleft() - 1)]
                yield np.concatenate([first, *others])
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayActorError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"a worker was lost {MOST_RETRIES + 1} times: {reason}") from error

    return EmbeddingStore.export(encoder, collection, directory, dtype, encode=encode)


class EncodingWorker:
    """An encoder in a process of its own.

    Args:
        share: Number of cores.
    """

    def __init__(self, share: float):
        use_cores(share)
        self._encoder: Encoder | None = None

    def encode(self, job: tuple[list, Items]) -> np.ndarray:
        """Embed items, see `Encoder.encode_items`. Before them comes a list with the reference of
        the encoder, which is read once."""
        encoder, items = job
        if self._encoder is None:
            self._encoder = connect().get(encoder[0])
        return self._encoder.encode_items(items)


def _start(ray: Any, workers: int) -> list:
    """Workers, spread over the machines. They end when nothing refers to them any more."""
    share = cores_of_each(workers)
    options = {"num_cpus": round(share, 3), "scheduling_strategy": "SPREAD"}
    options |= {"max_restarts": -1, "max_task_retries": MOST_RETRIES}
    worker = ray.remote(EncodingWorker).options(**options)
    return [worker.remote(share) for _ in range(workers)]


def _jobs(blocks: Iterable[Items], counts: deque[int]) -> Iterator[Items]:
    """The jobs of all blocks; the number of each block's is added to `counts`."""
    for block in blocks:
        n = len(next(iter(block.values())))
        counts.append(-(-n // JOB_ITEMS))
        for start in range(0, n, JOB_ITEMS):
            yield {name: each[start : start + JOB_ITEMS] for name, each in block.items()}


def _in_order(ray: Any, pool: list, jobs: Iterator) -> Iterator[np.ndarray]:
    """The results of all jobs, in their order; of a job that was repeated, the first result."""
    numbered = enumerate(jobs)
    idle = deque(list(range(len(pool))) * JOBS_AT_ONCE)
    running: dict[Any, tuple[int, int]] = {}  # job and worker, by the reference of the result
    unfinished: dict[int, Any] = {}
    done: dict[int, np.ndarray] = {}
    given = 0  # results
    while True:
        more = numbered if len(done) < MOST_WAITING * len(pool) else iter(())
        while (task := _next_task(more, unfinished, running, idle)) is not None:
            number, worker = task
            idle.remove(worker)
            running[pool[worker].encode.remote(unfinished[number])] = task
        if not unfinished:
            return
        (ready,), _ = ray.wait(list(running), num_returns=1)
        number, worker = running.pop(ready)
        idle.append(worker)
        if number in unfinished:
            try:
                done[number] = ray.get(ready)
            except ray.exceptions.RayActorError:
                if any(job == number for job, _ in running.values()):
                    continue  # another worker has it as well
                raise
            del unfinished[number]
        while given in done:
            yield done.pop(given)
            given += 1


def _next_task(
    numbered: Iterator[tuple[int, Any]],
    unfinished: dict[int, Any],
    running: Mapping[Any, tuple[int, int]],
    idle: Sequence[int],
) -> tuple[int, int] | None:
    """A job and an idle worker for it: the next job or, without one, the oldest unfinished job
    that only one other worker has; `None` if there is neither."""
    if not idle:
        return None
    if (following := next(numbered, None)) is not None:
        unfinished[following[0]] = following[1]
        return following[0], idle[0]
    for number in unfinished:
        owners = [worker for job, worker in running.values() if job == number]
        others = [worker for worker in idle if worker not in owners]
        if len(owners) == 1 and others:
            return number, others[0]
    return None
