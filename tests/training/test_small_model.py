"""The model of the notebooks is trained at the first call alone."""

from mmret_tf.training import small_model


def test_the_model_of_the_notebooks_is_trained_once(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    for name, smaller in {"SCENES": 64, "EPOCHS": 2, "WARM_UP": 1}.items():
        monkeypatch.setattr(small_model, name, smaller)
    first = small_model.scenes_model()
    monkeypatch.setattr(small_model, "_train", None)
    again = small_model.scenes_model()
    assert first.fingerprint == again.fingerprint and first.embedding_dim == 256
    assert [path.name for path in (tmp_path / "models").glob("*.keras")] == [
        f"mmret_scenes_v{small_model.VERSION}.keras"
    ]
