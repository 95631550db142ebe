"""ScaNN's protocol buffers: what it did not write for these settings never reaches its C++ code."""

import forge_scann
import numpy as np
import pytest

from mmret_tf.ranking.indexes.scann_files import import_scann
from mmret_tf.ranking.indexes.scann_protobufs import check_protobufs

DIM, LEAVES = forge_scann.DIM, forge_scann.LEAVES


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("index") / "scann"
    forge_scann.make_index(folder)
    return folder


def builder(leaves=LEAVES):
    """As `make_builder` has it, for the rows of `forge_scann`."""
    rows = np.zeros((forge_scann.N, DIM), np.float32)
    made = import_scann().builder(rows, 10, "dot_product")
    made = made.tree(leaves, 1, training_sample_size=forge_scann.N, spherical=True)
    made = made.score_ah(2, training_sample_size=20_000, anisotropic_quantization_threshold=0.2)
    return made.reorder(100)


def remove_a_centre(tree):
    del tree.kmeans.kmeans_tree.root.centers[-1]


def shorten_a_centre(tree):
    del tree.kmeans.kmeans_tree.root.centers[3].dimension[-1]


def forge_a_leaf(tree):
    tree.kmeans.kmeans_tree.root.children[2].leaf_id = 10**6


def grow_the_tree(tree):
    tree.kmeans.kmeans_tree.root.children[0].centers.add().dimension.append(1)


def remove_a_code(book):
    del book.subspace_centers[0].center[-1]


def forge_a_code(book):
    book.subspace_centers[1].center[2].feature_value_float[0] = np.nan


def add_a_block(book):
    book.subspace_centers.add().CopyFrom(book.subspace_centers[0])


def reorder_nothing(settings):
    settings.exact_reordering.approx_num_neighbors = -1


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("serialized_partitioner.pb", remove_a_centre, "must have 8 centres of width 6"),
        ("serialized_partitioner.pb", shorten_a_centre, "must have 8 centres of width 6"),
        ("serialized_partitioner.pb", forge_a_leaf, "must have 8 centres of width 6"),
        ("serialized_partitioner.pb", grow_the_tree, "must have 8 centres of width 6"),
        ("ah_codebook.pb", remove_a_code, "must have 16 codes for each 2 of 6 numbers"),
        ("ah_codebook.pb", forge_a_code, "must have 16 codes for each 2 of 6 numbers"),
        ("ah_codebook.pb", add_a_block, "must have 16 codes for each 2 of 6 numbers"),
        ("scann_config.pb", reorder_nothing, "scann_config.pb has other settings"),
    ],
)
def test_forged_fields_are_refused(name, change, message, saved, tmp_path):
    for each in forge_scann.MESSAGES:
        (tmp_path / each).write_bytes((saved / each).read_bytes())
    check_protobufs(tmp_path, builder(), DIM, LEAVES, codes=16)
    forged = forge_scann.MESSAGES[name].FromString((saved / name).read_bytes())
    change(forged)
    (tmp_path / name).write_bytes(forged.SerializeToString())
    with pytest.raises(ValueError, match=message):
        check_protobufs(tmp_path, builder(), DIM, LEAVES, codes=16)


def test_settings_of_another_index_are_refused(saved):
    with pytest.raises(ValueError, match="scann_config.pb has other settings"):
        check_protobufs(saved, builder(leaves=9), DIM, LEAVES, codes=16)


def test_forged_folders_are_opened_or_refused():
    """More by the script itself."""
    assert forge_scann.main(folders=60) == []
