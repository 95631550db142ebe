"""A pool of processes embeds a collection as one process does."""

import pickle
import sys
import tarfile
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest
from conftest import make_model
from PIL import Image

from mmret_tf.data import Collection, load
from mmret_tf.models.encoder import Encoder
from mmret_tf.ranking import EmbeddingStore
from mmret_tf.scale import bfloat16_encoder, compress_image_tower, embed
from mmret_tf.scale.distributed import embedding

ray = pytest.importorskip("ray", reason='needs pip install "mmret_tf[distributed]"')


def draw(folder, number):
    pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
    path = folder / f"{number}.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def shard(tmp_path):
    """A tar file of 40 pictures, some with captions."""
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        for number in range(40):
            archive.add(draw(tmp_path, number), f"{number:02}.png")
    return tmp_path / "shard.tar"


class Lengths(Encoder):
    """Embeds pictures as the numbers of their bytes, without TensorFlow."""

    towers = MappingProxyType({"image": None})
    embedding_dim, fingerprint = 1, "lengths"

    def encode_items(self, sources):
        contents = [(source, source.read()) for (source,) in sources["image"]]
        if broken := [source for source, content in contents if content == b"no picture"]:
            raise ValueError(f"{broken[0].name}: not a picture")
        return np.float32([[len(content)] for _, content in contents])


def test_a_pool_writes_the_store_of_one_process(shard, tmp_path, monkeypatch):
    """With an encoder of weights, the example of `embed` does."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(embedding, "JOB_ITEMS", 7)
    items, encoder = load(shard), Lengths()
    alone = EmbeddingStore.export(encoder, items, tmp_path / "alone")
    pooled = embed(encoder, items, tmp_path / "pooled", workers=2)
    assert np.array_equal(pooled.embeddings, alone.embeddings)
    assert pooled.items == alone.items and pooled.files == alone.files
    assert pooled.made_by == alone.made_by


def test_a_picture_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    paths = [draw(tmp_path, number) for number in range(3)]
    paths[1].write_bytes(b"no picture")
    items = Collection(["a", "b", "c"], {"image": [[path] for path in paths]})
    with pytest.raises(ValueError, match=r"^\S*1\.png: not a picture$") as caught:
        embed(Lengths(), items, tmp_path / "store", workers=1)
    assert type(caught.value) is ValueError and not (tmp_path / "store").exists()
    with pytest.raises(ValueError, match="workers must be an integer of at least 1; got 0"):
        embed(Lengths(), items, tmp_path / "store", workers=0)


def test_an_encoder_in_every_form_can_be_sent(tmp_path):
    model, pictures = make_model(), [draw(tmp_path, number) for number in range(3)]
    for encoder in (model, bfloat16_encoder(model), compress_image_tower(model, pictures)):
        copy = pickle.loads(pickle.dumps(encoder))
        assert (copy.fingerprint, copy.form) == (encoder.fingerprint, encoder.form)
        for modality, sources in (("image", pictures), ("text", ["a red circle"])):
            one, other = encoder.encode(modality, sources), copy.encode(modality, sources)
            assert np.abs(one - other).max() < 1e-6


class Clock:
    """Ray with workers whose answers take a known time, and none of them in truth."""

    exceptions = ray.exceptions

    def __init__(self, *speeds, losses=()):
        self.losses = losses  # moments in which an answer is lost
        self.now, self.answers, self.free = 0, {}, [0] * len(speeds)
        self.asked = [[] for _ in speeds]
        self.workers = [
            SimpleNamespace(encode=SimpleNamespace(remote=lambda job, n=n: self.start(n, job)))
            for n in range(len(speeds))
        ]
        self.speeds = speeds

    def start(self, worker, job):
        self.asked[worker].append(job)
        self.free[worker] = max(self.free[worker], self.now) + self.speeds[worker]
        reference = len(self.answers)
        self.answers[reference] = self.free[worker], job
        return reference

    def wait(self, references, num_returns):
        first = min(references, key=lambda each: self.answers[each][0])
        self.now = self.answers[first][0]
        return [first], []

    def get(self, reference):
        if self.answers[reference][0] in self.losses:
            raise ray.exceptions.RayActorError
        return self.answers[reference][1]


@pytest.mark.parametrize("speeds", [(1,), (1, 1), (1, 5), (7, 1, 2), (1, 10**9)])
def test_results_come_in_order_and_a_slow_worker_does_not_hold_up_the_others(speeds):
    clock = Clock(*speeds)
    found = list(embedding._in_order(clock, clock.workers, iter(range(100))))
    assert found == list(range(100))
    assert clock.now <= 1.1 * 100 / sum(1 / speed for speed in speeds) + 2 * min(speeds)
    if len(speeds) == 1:
        assert clock.asked == [list(range(100))]  # nothing is repeated


def test_a_job_is_lost_only_if_no_other_worker_has_it():
    clock = Clock(1, 10, losses=[6])  # the first worker's repetition of job 1
    assert list(embedding._in_order(clock, clock.workers, iter(range(7)))) == list(range(7))
    assert clock.asked[0].count(1) == 2
    clock = Clock(1, losses=[3])
    with pytest.raises(ray.exceptions.RayActorError):
        list(embedding._in_order(clock, clock.workers, iter(range(7))))


def test_few_results_wait_for_a_slow_worker(monkeypatch):
    clock, taken = Clock(10**9, 1), []
    jobs = (taken.append(number) or number for number in range(10_000))
    for number in embedding._in_order(clock, clock.workers, jobs):
        assert len(taken) - number <= (embedding.MOST_WAITING + embedding.JOBS_AT_ONCE) * 2
    assert len(taken) == 10_000


def test_the_rows_of_a_block_are_those_of_its_jobs(monkeypatch):
    monkeypatch.setattr(embedding, "JOB_ITEMS", 3)
    counts = embedding.deque()
    blocks = [{"image": list(range(7))}, {"image": [7]}]
    jobs = [job["image"] for job in embedding._jobs(iter(blocks), counts)]
    assert jobs == [[0, 1, 2], [3, 4, 5], [6], [7]] and list(counts) == [3, 1]


def test_what_another_process_has_embedded_is_not_embedded_again(shard, tmp_path, monkeypatch):
    """Chunks are those of one process: either resumes the work of the other."""
    from mmret_tf.ranking.storage import chunks

    for module in (chunks, "mmret_tf.ranking.storage.embedding_store"):
        where = module if isinstance(module, str) else module.__name__
        monkeypatch.setattr(f"{where}.CHUNK_ROWS", 10)
    model, items, done = make_model(), load(shard), []

    def killed_after_two(blocks):
        for number, block in enumerate(blocks):
            if number == 2:
                raise KeyboardInterrupt
            yield model.encode_items(block)

    def rest(blocks):
        for block in blocks:
            done.append(block)
            yield model.encode_items(block)

    with pytest.raises(KeyboardInterrupt):
        EmbeddingStore.export(model, items, tmp_path / "store", encode=killed_after_two)
    store = EmbeddingStore.export(model, items, tmp_path / "store", encode=rest)
    assert len(done) == 2 and len(store) == 40
    alone = EmbeddingStore.export(model, items, tmp_path / "alone")
    assert np.abs(store.embeddings - alone.embeddings).max() < 1e-6
