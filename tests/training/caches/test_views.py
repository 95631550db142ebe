"""Sources as digests of their content."""

from conftest import make_backbone

from mmret_tf.data.collection import Collection
from mmret_tf.models import image_tower
from mmret_tf.training.caches.features import FeatureCache


def test_a_cached_source_reads_as_its_digest_and_is_the_original_in_all_else(
    picture_files, tmp_path
):
    items = Collection(["a", "b"], {"image": [picture_files[:1], []], "text": [[], ["red"]]})
    tower = image_tower(make_backbone(), image_size=16, trainable=False)
    cached = FeatureCache(tower, items.sources["image"][0], tmp_path).cached(items)
    (source,), (original,) = cached.sources["image"][0], items.sources["image"][0]
    assert source.read() == original.identity.encode() and len(source.read()) == 64
    for name in ("identity", "record", "name", "is_identified", "identity_stamp"):
        assert getattr(source, name) == getattr(original, name)
    assert cached.sources["image"][1] == [] and cached.sources["text"] == items.sources["text"]
    assert items.sources["image"][0] == [original]  # unchanged
