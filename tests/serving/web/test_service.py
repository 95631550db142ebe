"""The service follows its gallery: on disk, and in memory."""

import shutil
import subprocess
import sys
import threading

import pytest
import requests
from PIL import Image

import mmret_tf as mm
from mmret_tf.serving.web.service import SearchService, examples_of, filters_of

from .conftest import make_gallery, make_run, serving


def test_filters_are_the_attributes_with_few_values():
    records = [
        {"colour": "red", "price": 2, "new": True, "tags": ["a", "b"], "box": {"x": 1}},
        {"colour": "blue", "price": 1.5, "tags": ["b"], "new": None, "name": "0"},
        *({"name": str(number)} for number in range(60)),
    ]
    assert filters_of(records) == [
        {"name": "colour", "values": ["blue", "red"]},
        {"name": "new", "values": [True]},
        {"name": "price", "min": 1.5, "max": 2},
        {"name": "tags", "values": ["a", "b"]},
    ]


def test_examples_are_short_captions_of_both_kinds():
    captions = ["a" * 70, *(f"dog {n}" for n in range(5)), "狗", "猫"]
    assert examples_of(captions) == ["dog 0", "dog 1", "dog 2", "狗", "猫"]
    assert examples_of([]) == []


def test_a_query_that_is_wrong_fails_alone(service):
    queries = [{"text": "a red picture", "k": 1}, {"image": b"rubbish"}, {"text": "红色", "k": 1}]
    first, wrong, last = service.answer(queries)
    assert isinstance(wrong, ValueError) and "not an image" in str(wrong)
    assert [each[0].item["attributes"]["colour"] for each in (first, last)] == ["red", "red"]


@pytest.fixture
def changing(tmp_path, web_model):
    """A run and its collection, which a test may change."""
    collection = make_gallery(tmp_path / "pictures")
    return make_run(tmp_path / "run", web_model, collection), tmp_path / "pictures"


def test_another_process_changes_the_gallery_and_the_next_query_sees_it(changing):
    run, folder = changing
    service, failures, is_done = SearchService.open(run), [], threading.Event()
    with serving(service) as address:

        def ask(text="a red picture", k=12):
            return requests.post(f"{address}/api/search", json={"text": text, "k": k})

        def keep_asking():
            while not is_done.is_set():
                if (answer := ask()).status_code != 200:
                    failures.append(answer.text)
                is_done.wait(0.02)  # leaves the processor to the other process

        clients = [threading.Thread(target=keep_asking) for _ in range(2)]
        for client in clients:
            client.start()
        lines = (folder / "captions.jsonl").read_text("utf-8").splitlines()[:-2]
        Image.new("RGB", (40, 30), (221, 19, 21)).save(folder / "new.png")
        (folder / "captions.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
        with (folder / "captions.jsonl").open("a", encoding="utf-8") as file:
            file.write('{"id": "new", "image": "new.png", "captions": ["a new red one"]}\n')
        command = [sys.executable, "-m", "mmret_tf", "sync", "--run", run.folder, "--data", folder]
        subprocess.run(command, check=True, capture_output=True)
        found = {each["id"]: each["captions"] for each in ask().json()["results"]}
        is_done.set()
        for client in clients:
            client.join()
        assert requests.get(f"{address}/api/gallery").json()["size"] == 11
    assert failures == [] and len(found) == 11 and found["new"] == ["a new red one"]
    assert not any("black" in id for id in found)


def test_a_gallery_that_cannot_be_opened_leaves_the_older_one(changing, web_model):
    run, folder = changing
    service = SearchService.open(run)
    shutil.rmtree(run.index)
    assert len(service.answer([{"text": "a"}])[0]) == 10
    assert "cannot open the index" in service.problem
    run.build_index()
    assert len(service.answer([{"text": "a"}])[0]) == 10 and service.problem == ""


def test_the_searcher_changes_in_memory(changing):
    run, folder = changing
    service = SearchService.open(run)
    red = service.searcher.items[next(iter(service.searcher.items))]
    service.searcher.upsert([red | {"id": "copy"}])
    assert "copy" in [each.id for each in service.answer([{"text": "a red picture", "k": 3}])[0]]
    service.searcher.delete(["copy"])
    assert len(service.answer([{"text": "a", "k": 50}])[0]) == 12


def test_ids_may_be_integers(web_model, web_gallery):
    index = mm.BruteForceIndex.build(web_model.encode_texts(["a", "b"]), [7, 8])
    service = SearchService(mm.Searcher(web_model, index, [{"id": 7}, {"id": 8}]))
    assert service.item("7")["id"] == 7
    with pytest.raises(KeyError):
        service.item("9")
