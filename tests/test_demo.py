"""The demo, with ResNet50, on a handful of scenes: every stage of the road runs."""

import json

from PIL import Image

from mmret_tf import demo
from mmret_tf.dual_encoder import DualEncoder
from mmret_tf.scenes import draw_scenes
from mmret_tf.searcher import Searcher


def test_the_whole_road_with_resnet50(tmp_path, monkeypatch):
    # ResNet50's graph takes far longer to compile than the two steps of training take without.
    always = property(lambda model: True, lambda model, value: None)
    monkeypatch.setattr(DualEncoder, "run_eagerly", always)
    monkeypatch.setattr(demo, "TRAIN_SCENES", 64)
    monkeypatch.setattr(demo, "TEST_SCENES", 20)
    report = demo.run_demo(tmp_path / "demo", epochs=1, seed=0)

    assert json.loads((tmp_path / "demo" / "report.json").read_text(encoding="utf-8")) == report
    assert (report["images"], report["captions"]) == (20, 80)
    for part in (report, report["english"], report["chinese"]):
        assert 0 <= part["t2i_R@10"] <= 1 and 0 <= part["i2t_R@10"] <= 1
    assert len(report["queries"]) == 5 and len(report["queries"][0]["found"]) == 8
    assert (
        report["queries"][4]["found"][0] == report["queries"][4]["right"]
    )  # an image finds itself

    searcher = Searcher.open(tmp_path / "demo")
    assert searcher.model.image_tower.backbone.name == "resnet50"
    results = searcher.search("红色的圆", k=20)
    assert {result.id for result in results} == {scene.id for scene in draw_scenes("test", 20, 0)}
    assert Image.open(tmp_path / "demo" / "gallery.png").size[0] > 8 * 160
