"""What all towers share: encoding in batches, errors that name a source, configurations."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mmret_tf.data.modalities import MODALITIES, Modality, register_modality
from mmret_tf.data.sources import InlineSource
from mmret_tf.models import Head, Tower
from mmret_tf.models.towers.tower import input_batches


@keras.saving.register_keras_serializable("test_tower")
class NumberTower(Tower):
    """Numbers as text -> unit vectors."""

    modality = "number"
    batch_size = 3

    def __init__(self, head, scale=1.0, **kwargs):
        super().__init__(head, **kwargs)
        self.scale = scale
        self.backbone = keras.layers.Dense(head.width, activation="tanh", name="backbone")
        self.backbone.build((None, 1))

    def preprocess(self, sources):
        return tf.strings.to_number(sources)[:, None] * self.scale

    def features(self, inputs, training=False):
        return self.backbone(inputs)

    def get_config(self):
        return {**super().get_config(), "scale": self.scale}


def check_number(contents):
    try:
        float(contents)
    except ValueError:
        raise ValueError("not a number") from None


@pytest.fixture(scope="module", autouse=True)
def number_modality():
    register_modality(Modality("number", (".txt",), check_number, thumbnail=None))
    yield
    del MODALITIES["number"]


@pytest.fixture(scope="module")
def tower():
    keras.utils.set_random_seed(0)
    return NumberTower(Head(5, 4), name="numbers")


def number(value, name="a number"):
    return InlineSource(str(value).encode(), name)


def test_an_incomplete_tower_cannot_be_made():
    class Incomplete(Tower):
        modality = "number"

    with pytest.raises(TypeError, match="abstract.*features.*preprocess"):
        Incomplete(Head(5, 4))


@pytest.mark.parametrize("batch_size", [1, 2, 7, 100, None])
def test_encode_agrees_with_call_at_any_batch_size(tower, batch_size):
    expected = tower(np.arange(7.0)[:, None])
    rows = tower.encode([number(value) for value in range(7)], batch_size)
    assert rows.dtype == np.float32 and np.allclose(rows, expected, atol=1e-6)


def test_batches_keep_their_order_and_have_the_towers_size(tower):
    batches = list(input_batches(tower, [number(value) for value in range(7)]))
    assert [np.ravel(each).tolist() for each in batches] == [[0, 1, 2], [3, 4, 5], [6]]


def test_graphs_are_traced_once_for_all_batch_sizes():
    traces = []

    class Traced(NumberTower):
        def preprocess(self, sources):
            traces.append("preprocess")
            return super().preprocess(sources)

        def features(self, inputs, training=False):
            traces.append("features")
            return super().features(inputs, training)

    traced = Traced(Head(5, 4))
    for n in (1, 2, 5):
        traced.encode([number(value) for value in range(n)])
    traced.predict_on_batch(np.zeros((4, 1), np.float32))
    assert sorted(traces) == ["features", "preprocess"]


def test_graphs_read_the_weights_of_the_moment(tower):
    before = tower.encode([number(2)])
    old = tower.backbone.get_weights()
    tower.backbone.set_weights([each + 1 for each in old])
    changed = tower.encode([number(2)])
    tower.backbone.set_weights(old)
    assert not np.allclose(changed, before) and np.array_equal(tower.encode([number(2)]), before)


def test_errors_name_the_source(tower):
    sources = [number(1), number("two", name="second.txt"), number(3)]
    with pytest.raises(ValueError, match="^second.txt: not a number$"):
        tower.encode(sources)
    with pytest.raises(ValueError, match="^second.txt: not a number$"):
        tower.encode(sources, batch_size=1)
    # A number for Python's check, but not for the tower.
    with pytest.raises(ValueError, match="^second.txt: .*could not .*convert string: 1_000"):
        tower.encode([number(1), number("1_000", name="second.txt")])
    with pytest.raises(ValueError, match="nothing to encode: the list is empty"):
        tower.encode([])
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1; got 0"):
        tower.encode([number(1)], batch_size=0)


def test_defaults_augment_nothing_and_have_no_sequence(tower):
    sources, seeds = tf.constant(["1", "2"]), tf.zeros((2, 2), tf.int64)
    assert np.ravel(tower.augment(sources, seeds, tf.constant([True, False]))).tolist() == [1, 2]
    for view in (0, 1):
        expected = tower.backbone(np.array([[1.0], [2.0]]))
        assert np.allclose(tower.view_features(sources, seeds, view), expected)
    with pytest.raises(ValueError, match="NumberTower has no sequence: use a late fusion"):
        tower.sequence(np.zeros((1, 1)))
    tower.set_regions()
    with pytest.raises(ValueError, match="NumberTower has regions of its own: choose none"):
        tower.set_regions(["convolution"])
    assert tower.tables == [] and tower.settings == [] and tower.sequence_settings == []
    assert (tower.embedding_dim, tower.members) == (4, 1)


@pytest.mark.parametrize("frozen", [[], ["backbone"], ["head"], ["backbone", "head"]])
def test_a_tower_round_trips_with_what_is_frozen(frozen, tmp_path):
    tower = NumberTower(Head(5, 4, name="head"), scale=0.5, dtype="mixed_bfloat16")
    for layer in tower.layers:
        layer.trainable = layer.name not in frozen
    tower.save(tmp_path / "tower.keras")
    loaded = keras.saving.load_model(tmp_path / "tower.keras")
    assert loaded.scale == 0.5 and loaded.dtype_policy.name == "mixed_bfloat16"
    inputs = np.array([[1.0], [-2.0]])
    assert np.array_equal(loaded(inputs), tower(inputs))
    paths = [each.path for each in loaded.trainable_variables]
    assert paths == [each.path for each in tower.trainable_variables]
    assert len(paths) == 4 - 2 * len(frozen)

    tower.trainable = False
    assert not NumberTower.from_config(tower.get_config()).trainable
