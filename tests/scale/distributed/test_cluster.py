"""The page on clusters: its examples can be read by what they are for."""

import importlib.resources
import json
import os
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

import mmret_tf
from mmret_tf import cli
from mmret_tf.scale.distributed import cluster

yaml = pytest.importorskip("yaml", reason='needs pip install "mmret_tf[distributed]"')
jsonschema = pytest.importorskip("jsonschema", reason='needs pip install "mmret_tf[distributed]"')
pytest.importorskip("ray", reason='needs pip install "mmret_tf[distributed]"')

PAGE = Path(mmret_tf.__file__).parent / "scale" / "README.md"
TEXT = PAGE.read_text(encoding="utf-8")
CLUSTER, COMPOSE = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL))


def parse(words):
    """Let the command line read its options; ClickException if it does not know one."""
    group = typer.main.get_command(cli.app)
    command = group.commands[words[0]]
    return command.make_context(words[0], list(words[1:]), resilient_parsing=False).params


def commands_in(text):
    """The `mmret` commands of a text, as words."""
    for line in re.findall(r"^(?:\S+=\S+ )*mmret .*$", text.replace("\\\n", ""), re.MULTILINE):
        words = shlex.split(line, comments=True)
        yield words[words.index("mmret") + 1 :]


def test_the_cluster_file_is_one_of_ray():
    schema = importlib.resources.files("ray.autoscaler") / "ray-schema.json"
    jsonschema.validate(CLUSTER, json.loads(schema.read_text(encoding="utf-8")))
    assert CLUSTER["provider"]["type"] == "local" and CLUSTER["provider"]["worker_ips"]
    assert any("ray start --head" in line for line in CLUSTER["head_start_ray_commands"])


def test_the_compose_file_starts_a_cluster_and_a_service():
    services = COMPOSE["services"]
    assert set(services) == {"head", "machine", "search"}
    folders = {tuple(service["volumes"]) for service in services.values()}
    assert len(folders) == 1, "all need the same folders"
    for service in services.values():
        assert service["image"].startswith("mmret")
        words = shlex.split(service["command"])
        assert words[:2] in (["ray", "start"], ["mmret", "serve"])
    address = services["search"]["environment"]["RAY_ADDRESS"]
    assert address.split(":")[0] in services
    assert parse(shlex.split(services["search"]["command"])[1:])["host"] == "0.0.0.0"


def test_the_commands_of_the_page_exist():
    commands = list(commands_in(TEXT))
    assert {words[0] for words in commands} >= {"embed", "index", "serve", "train"}
    for words in commands:
        parse(words)


def test_a_share_of_cores_limits_a_process(monkeypatch):
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        monkeypatch.setenv(name, "7")
    for share, threads in ((2.5, "2"), (0.5, "1")):
        cluster.use_cores(share)
        assert os.environ["OMP_NUM_THREADS"] == os.environ["TF_NUM_INTRAOP_THREADS"] == threads


def test_cores_are_shared_by_what_runs_on_a_machine(monkeypatch):
    machines = [
        {"Alive": True, "Resources": {"CPU": 8.0}},
        {"Alive": True, "Resources": {"CPU": 6}},
    ]
    machines.append({"Alive": False, "Resources": {"CPU": 1.0}})
    monkeypatch.setattr(cluster, "connect", lambda: SimpleNamespace(nodes=lambda: machines))
    # Two machines; the smaller one has six cores.
    assert [cluster.cores_of_each(n) for n in (1, 2, 3, 4, 24)] == [6, 6, 3, 3, 0.5]
