"""The demo on a handful of scenes: every stage runs, with a small backbone for ResNet50."""

import dataclasses

from PIL import Image

from mmret_tf import demo
from mmret_tf.data.drawn.scenes import draw_scenes
from mmret_tf.ranking import Run
from mmret_tf.training.trainer import train


def test_the_demo_from_drawn_scenes_to_ranked_results(tmp_path, monkeypatch):
    configs = []

    def train_small(config, run):
        configs.append(config)
        changes = {"backbone": "SmallCNN", "embedding_dim": 8, "word_dim": 8, "units": 8}
        return train(dataclasses.replace(config, **changes), run)

    monkeypatch.setattr(demo, "train", train_small)
    monkeypatch.setattr(demo, "TRAIN_SCENES", 64)
    monkeypatch.setattr(demo, "TEST_SCENES", 20)
    report = demo.run_demo(tmp_path / "demo", epochs=1, seed=0)

    [config] = configs
    assert (config.backbone, config.weights, config.rnn) == ("ResNet50", "none", "lstm")
    assert (config.scenes, config.epochs, config.seed) == (64, 1, 0)
    run = Run(tmp_path / "demo")
    assert run.read_report() == report and report["training"]["epochs_completed"] == 1
    assert (report["images"], report["captions"]) == (20, 80)
    for part in (report, report["english"], report["chinese"]):
        assert 0 <= part["t2i_R@10"] <= 1 and 0 <= part["i2t_R@10"] <= 1
    assert len(report["queries"]) == 5 and len(report["queries"][0]["found"]) == 8
    assert report["queries"][4]["found"][0] == report["queries"][4]["right"]  # it finds itself

    results = run.open_searcher().search("红色的圆", k=20)
    assert {result.id for result in results} == {scene.id for scene in draw_scenes("test", 20, 0)}
    assert Image.open(run.gallery).size[0] > 8 * 160
