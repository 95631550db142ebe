"""The recipe on several devices or machines, by `tf.distribute`. Section 8.3.

Each replica computes a part of every batch, and the negatives of the loss are those of the whole
batch (see `similarity.replicas`). Without dropout and batch normalization, the weights after each
step are those of one device.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import socket
import sys
import threading
import zlib
from collections.abc import Callable, Sequence
from typing import Literal

import keras
import tensorflow as tf

from mmret_tf.models.collapse import CollapseAlarm
from mmret_tf.models.encoder import MultiEncoder
from mmret_tf.ranking.run import Run
from mmret_tf.training.config import TrainConfig
from mmret_tf.training.trainer import train

# How often the other workers look for the chief, and how often in a row they may miss it.
WATCH_SECONDS, MOST_MISSES = 5, 3


def distributed_train(
    config: TrainConfig,
    run: str | os.PathLike,
    strategy: Literal["mirrored", "multiworker"] = "mirrored",
) -> dict | None:
    """`mm.train` on all GPUs of this machine, or on several machines. Section 8.3.

    "multiworker" runs one process on each machine, all with the same data, configuration and
    folder on a shared file system, and with TF_CONFIG as TensorFlow's
    `MultiWorkerMirroredStrategy` wants it. The first process is the chief: it writes the run. The
    others take the same steps, because each change of a weight is one of all processes, in folders
    beside the run, which they delete at the end. If a process is lost, the others end (without the
    chief, by `os._exit`); start all again, and the run resumes with the next epoch.

    Batch normalization is not synchronized: each replica normalizes its own rows. A frozen
    backbone, the default, is not affected. Dropout draws the same mask in each replica.

    Do not stop a single worker with Ctrl-C: the workers would wait for each other. Stop them all.

    Args:
        config: The recipe; `batch_size` is that of all replicas together.
        run: The folder to write.
        strategy: "mirrored" for this machine, "multiworker" for several.

    Returns:
        The report of `mm.train`; `None` for a worker that is not the chief.

    Raises:
        ValueError: As for `mm.train`; the strategy is unknown; "multiworker" without TF_CONFIG;
            workers have different configurations; a process was lost; a re-ranker is wanted.

    On one machine it is called as `mm.train` is. On several, TF_CONFIG says which one this is:

    >>> config = TrainConfig(data="photos", batch_size=512)
    >>> distributed_train(config, "runs/photos", "multiworker")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: the strategy multiworker needs the environment variable TF_CONFIG: ...
    """
    if config.reranker:
        raise ValueError(
            "a second stage is trained by one process: leave out --reranker here, then run `mmret "
            "train --reranker` with the same settings and without --strategy"
        )
    if strategy == "mirrored":
        with tf.distribute.MirroredStrategy().scope():
            return train(config, run, fit=fit_on_replicas)
    if strategy != "multiworker":
        raise ValueError(f"strategy must be mirrored or multiworker; got {strategy!r}")
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if resolver.task_type is None or resolver.task_id is None:
        raise ValueError(
            "the strategy multiworker needs the environment variable TF_CONFIG: the addresses of "
            'all workers, and the number of this one, as {"cluster": {"worker": ["a:2222", '
            '"b:2222"]}, "task": {"type": "worker", "index": 0}}'
        )
    devices = tf.distribute.MultiWorkerMirroredStrategy()
    number = _number_of_worker(resolver)
    own = Run(run if number == 0 else f"{Run(run).folder}.worker-{number}")
    has_ended = threading.Event()
    if number:
        _copy_state(Run(run), own)
        chief = resolver.cluster_spec().as_dict()
        chief = chief["chief" if "chief" in chief else "worker"][0]
        threading.Thread(target=_watch, args=(chief, has_ended), daemon=True).start()
    with devices.scope():
        try:
            # The chief changes its folder after the others have read it.
            others = devices.run(_differ, args=(_digest(config),))
            if int(devices.experimental_local_results(others)[0]):
                raise ValueError("the workers have different configurations: start all with one")
            report = train(config, own.folder, fit=fit_on_replicas)
            with contextlib.suppress(tf.errors.OpError):  # the run is complete
                devices.run(_differ, args=(0,))  # waits for the slowest, which watches the chief
        except tf.errors.OpError as error:
            raise ValueError(
                f"the training failed, perhaps by the loss of a worker: "
                f"{error.message.splitlines()[0]:.200}. Start all workers again with the same "
                "commands: the run resumes with the next epoch"
            ) from error
        finally:
            has_ended.set()
    if number:
        shutil.rmtree(own.folder)
        return None
    return report


def fit_on_replicas(
    encoder: MultiEncoder,
    batches: Callable[[tuple[int, int]], tf.data.Dataset],
    *,
    epochs: int,
    initial_epoch: int,
    steps_per_epoch: int,
    callbacks: Sequence[keras.callbacks.Callback],
    verbose: int,
) -> None:
    """A loop around `train_step` for several replicas.

    Keras' `fit` fails with several workers (keras#20585), and draws a batch too many with several
    devices, so that a resumed run would see other batches.

    Args:
        encoder, batches, epochs, initial_epoch, steps_per_epoch, callbacks, verbose: As for
            `training.trainer.fit_here`.
    """
    devices = tf.distribute.get_strategy()
    encoder.optimizer.build(encoder.trainable_variables)

    def parts(context: tf.distribute.InputContext) -> tf.data.Dataset:
        """A dataset with an element for each replica of this worker in turn."""
        ours = batches((context.input_pipeline_id, context.num_input_pipelines))
        replicas = context.num_replicas_in_sync // context.num_input_pipelines

        def split(*batch):
            part = tf.data.Dataset.range(replicas)
            return part.map(lambda n: tf.nest.map_structure(lambda rows: rows[n::replicas], batch))

        return ours.flat_map(split)

    iterator = iter(devices.distribute_datasets_from_function(parts))
    step = tf.function(lambda: devices.run(encoder.train_step, args=(next(iterator),)))
    loop = keras.callbacks.CallbackList(
        [*callbacks, CollapseAlarm()],
        add_progbar=verbose != 0,
        model=encoder,
        epochs=epochs,
        steps=steps_per_epoch,
        verbose=verbose,
    )
    encoder.stop_training = False
    logs: dict[str, float] = {}
    loop.on_train_begin()
    for epoch in range(initial_epoch, epochs):
        encoder.reset_metrics()
        loop.on_epoch_begin(epoch)
        for number in range(steps_per_epoch):
            loop.on_train_batch_begin(number)
            # In every replica the loss is that of the whole batch.
            logs = {
                name: float(devices.experimental_local_results(each)[0])
                for name, each in step().items()
            }
            loop.on_train_batch_end(number, logs)
            if encoder.stop_training:
                break
        loop.on_epoch_end(epoch, logs)
        if encoder.stop_training:
            break
    loop.on_train_end(logs)


def _digest(config: TrainConfig) -> int:
    """A number that is equal for equal configurations."""
    text = json.dumps(dataclasses.asdict(config), sort_keys=True, default=str)
    return zlib.crc32(text.encode())


def _differ(number: int) -> tf.Tensor:
    """How many workers have another number than the mean of all; waits for all of them."""
    context, number = tf.distribute.get_replica_context(), tf.constant(number, tf.int64)
    total = context.all_reduce(tf.distribute.ReduceOp.SUM, number)
    is_other = tf.cast(total != number * context.num_replicas_in_sync, tf.int64)
    return context.all_reduce(tf.distribute.ReduceOp.SUM, is_other)


def _watch(chief: str, has_ended: threading.Event) -> None:
    """End this process if the chief cannot be reached: TensorFlow would wait for it for ever."""
    host, port = chief.rsplit(":", 1)
    misses = 0
    while not has_ended.wait(WATCH_SECONDS):
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=WATCH_SECONDS).close()
            misses = 0
        except OSError:
            misses += 1
        if misses == MOST_MISSES:
            print(f"mmret: the chief at {chief} was lost: start all workers again", file=sys.stderr)
            os._exit(1)


def _number_of_worker(resolver: tf.distribute.cluster_resolver.ClusterResolver) -> int:
    """0 for the chief."""
    if resolver.task_type == "chief":
        return 0
    return resolver.task_id + ("chief" in resolver.cluster_spec().jobs)


def _copy_state(chief: Run, own: Run) -> None:
    """What decides where a killed run resumes, from the folder of the chief."""
    own.folder.mkdir(parents=True, exist_ok=True)
    for name in ("config", "history", "model"):
        one, other = getattr(chief, name), getattr(own, name)
        other.unlink(missing_ok=True)
        if one.exists():
            shutil.copy(one, other)
    shutil.rmtree(own.backup, ignore_errors=True)
    if chief.backup.exists():
        shutil.copytree(chief.backup, own.backup)
