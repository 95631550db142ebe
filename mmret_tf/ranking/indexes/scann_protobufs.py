"""ScaNN's protocol buffers are checked before its C++ code reads them: it trusts every number.

The configuration must be the one that the builder writes, the tree flat with one centre a leaf, and
the codebook of one size: what ScaNN itself writes for these settings.
"""

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

CENTRES, LEAF = "kmeans.kmeans_tree.root.centers.dimension", "kmeans.kmeans_tree.root.children"
TREE_FIELDS = {
    *("n_tokens", CENTRES, f"{LEAF}.leaf_id", f"{LEAF}.learned_spilling_threshold"),
    *("kmeans.kmeans_tree.root.leaf_id", "kmeans.kmeans_tree.root.learned_spilling_threshold"),
    "kmeans.kmeans_tree.learned_spilling_type",
}
CODE, CODE_TYPE = (
    "subspace_centers.center.feature_value_float",
    "subspace_centers.center.feature_type",
)
CODEBOOK_FIELDS = {CODE, CODE_TYPE, "quantization_scheme"}
FLOAT = 2


def check_protobufs(folder: Path, builder: Any, dim: int, leaves: int, codes: int) -> None:
    """Refuse protocol buffers that ScaNN did not write for these settings.

    Args:
        folder: ScaNN's files.
        builder: ScaNN's builder with the settings.
        dim: Width of the embeddings.
        leaves: Number of leaves.
        codes: Number of values of a code.

    Raises:
        ValueError: A file is missing, no protocol buffer, or of other settings or sizes.
    """
    from google.protobuf import text_format
    from scann.partitioning import partitioner_pb2
    from scann.proto import centers_pb2, scann_pb2

    config = _read(folder / "scann_config.pb", scann_pb2.ScannConfig)
    expected = text_format.Parse(builder.create_config(), scann_pb2.ScannConfig())
    # As text: the threshold of plain quantization is NaN, which equals nothing.
    _require(str(config) == str(expected), "scann_config.pb has other settings")

    tree = _read(folder / "serialized_partitioner.pb", partitioner_pb2.SerializedPartitioner)
    values, root = _scalars(tree), tree.kmeans.kmeans_tree.root
    is_flat = values.keys() <= TREE_FIELDS and values[f"{LEAF}.leaf_id"] == [*range(leaves)]
    is_flat &= values["n_tokens"] == [leaves] and root.leaf_id == -1
    is_flat &= [len(each.dimension) for each in root.centers] == [dim] * leaves
    is_flat &= all(map(math.isfinite, values[CENTRES]))
    _require(is_flat, f"serialized_partitioner.pb must have {leaves} centres of width {dim}")

    book = _read(folder / "ah_codebook.pb", centers_pb2.CentersForAllSubspaces)
    values = _scalars(book)
    widths = [
        [len(centre.feature_value_float) for centre in block.center]
        for block in book.subspace_centers
    ]
    blocks = expected.hash.asymmetric_hash.projection
    width = blocks.num_dims_per_block
    right = [[min(width, dim - start)] * codes for start in range(0, dim, width)]
    is_right = values.keys() <= CODEBOOK_FIELDS and widths == right
    is_right &= {*values[CODE_TYPE]} == {FLOAT} and not any(values["quantization_scheme"])
    is_right &= all(map(math.isfinite, values[CODE]))
    _require(is_right, f"ah_codebook.pb must have {codes} codes for each {width} of {dim} numbers")


def _read(path: Path, kind: Any) -> Any:
    from google.protobuf.message import DecodeError

    try:
        return kind.FromString(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise ValueError(f"{path.name} is missing or damaged: {error}") from None


def _require(is_right: bool, reason: str) -> None:
    if not is_right:
        raise ValueError(reason)


def _scalars(message: Any, prefix: str = "", found: dict | None = None) -> dict[str, list]:
    """All numbers in a message, by the path of their field."""
    found = defaultdict(list) if found is None else found
    for field, value in message.ListFields():
        several = value if hasattr(value, "extend") else [value]
        if field.message_type is None:
            found[prefix + field.name] += several
        else:
            for each in several:
                _scalars(each, f"{prefix}{field.name}.", found)
    return found
