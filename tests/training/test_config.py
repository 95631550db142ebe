"""The settings of a training run: what is refused, and what is read from a file."""

import dataclasses
import json
import re

import pytest

from mmret_tf.training.config import TrainConfig, setting_help


def test_lists_become_tuples_and_whole_numbers_pass_for_fractions():
    config = TrainConfig(scales=[224, 288], feature_layers=["conv4"], dropout=0, weight_decay=1)
    assert config.scales == (224, 288) and config.feature_layers == ("conv4",)
    assert config == dataclasses.replace(config) and hash(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be above 0; got 0"),
        ({"batch_size": 3}, "batch_size must be at least twice captions_per_image"),
        ({"dropout": 1.0}, "dropout must be from 0 to below 1; got 1.0"),
        ({"min_crop": 0.0}, "min_crop must be above 0 and at most 1; got 0.0"),
        ({"corner_crops": (0.8, 1.0)}, "corner_crops must be shares above 0 and below 1"),
        ({"corner_crops": (1,)}, "corner_crops must be of type"),
        ({"learning_rate": -1.0}, "learning_rate must be above 0; got -1.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0; got nan"),
        ({"weight_decay": -0.1}, "weight_decay must be 0 to 1000; got -0.1"),
        ({"feature_views": 0}, "feature_views must be above 0; got 0"),
        ({"region_pool": 0}, "region_pool must be above 0; got 0"),
        ({"epochs": 2.5}, "epochs must be of type int; got 2.5"),
        ({"epochs": True}, "epochs must be of type int; got True"),
        ({"dropout": True}, "dropout must be of type float; got True"),
        ({"dropout": "0.3"}, "dropout must be of type float; got '0.3'"),
        ({"bag_of_words": 1}, "bag_of_words must be of type bool; got 1"),
        ({"rnn": None}, "rnn must be of type str; got None"),
        ({"rnn": "rnn"}, "rnn must be one of lstm, gru, bilstm, transformer; got 'rnn'"),
        ({"pooling": "min"}, "pooling must be one of last, mean, max; got 'min'"),
        ({"precision": "float16"}, "precision must be one of float32, mixed_bfloat16, mixed_float"),
        ({"scales": [224, 0]}, "scales must be sides in pixels, above 0; got (224, 0)"),
        ({"scales": 224}, "scales must be of type tuple[int, ...]; got 224"),
        ({"scales": [True]}, "scales must be of type tuple[int, ...]; got [True]"),
        ({"feature_layers": [1]}, "feature_layers must be of type tuple[str, ...]; got [1]"),
        (
            {"feature_layers": "conv4"},
            "feature_layers must be of type tuple[str, ...]; got 'conv4'",
        ),
    ],
)
def test_settings_that_cannot_work(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        TrainConfig(**change)


def test_a_configuration_is_read_as_it_was_saved(tmp_path):
    config = TrainConfig(data="图片", scales=(224, 288), feature_layers=("conv4",), epochs=3)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(dataclasses.asdict(config), ensure_ascii=False), encoding="utf-8")
    assert TrainConfig.load(file) == TrainConfig.load(str(file)) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"epoch": 3}', "unknown setting 'epoch' in FILE; did you mean 'epochs'?"),
        ('{"xyz": 3}', "unknown setting 'xyz' in FILE; known: data, image_column,"),
        ('{"epochs": "3"}', "epochs must be of type int; got '3'"),
        ("[1]", "FILE must hold a JSON object of settings"),
        ("{", "FILE is not a JSON file of settings"),
        ("[" * 99999, "FILE is not a JSON file of settings"),
    ],
)
def test_configurations_that_cannot_be_read(text, message, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message.replace("FILE", str(file)))):
        TrainConfig.load(file)
    with pytest.raises(ValueError, match="is not a JSON file of settings"):
        TrainConfig.load(tmp_path / "gone.json")


def test_every_setting_is_described():
    described = setting_help()
    assert set(described) == {field.name for field in dataclasses.fields(TrainConfig)}
    assert all(text.endswith(".") for text in described.values())
    assert described["units"] == described["rnn"] == "See `text_tower`."
