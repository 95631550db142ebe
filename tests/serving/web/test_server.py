"""`mmret serve` as a process: its address, its end, and what it refuses to start."""

import re
import signal
import socket
import subprocess
import sys

import pytest
import requests

from mmret_tf import cli
from mmret_tf.serving.web.server import open_socket

from .conftest import running


def test_it_serves_until_it_is_told_to_stop(web_run):
    command = [sys.executable, "-m", "mmret_tf", "serve", "--run", web_run.folder, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        line = process.stdout.readline().decode()
        address = re.fullmatch(rf"Serving {web_run.folder} at (\S+) until Ctrl-C\n", line)[1]
        answer = requests.post(f"{address}/api/search", json={"text": "a red picture", "k": 1})
        assert answer.json()["results"][0]["attributes"]["colour"] == "red"
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=20)
    assert process.returncode == 0 and out == b"Stopped.\n", errors


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        cli.main(["serve", *map(str, arguments)])
    assert end.value.code == 2
    return capsys.readouterr().err


def test_a_taken_port_is_reported_before_the_model_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = refused(capsys, "--run", "nowhere", "--port", port)
    assert f"cannot listen on 127.0.0.1, port {port}: something else uses this port" in error


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_other_machines_are_let_in_only_with_a_token(capsys, monkeypatch, host):
    monkeypatch.delenv("MMRET_TOKEN", raising=False)
    assert "give a token with --token or MMRET_TOKEN" in refused(capsys, "--host", host)


def test_an_answer_is_not_held_back(service):
    """Nagle's algorithm would hold back the second of two small parts."""
    with running(service) as (server, address), requests.Session() as session:
        session.get(f"{address}/health")
        [connection] = server.server_state.connections
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(ValueError, match="cannot listen on 192.0.2.1, port 80"):
        open_socket("192.0.2.1", 80)


def test_a_run_without_a_gallery_is_one_line(capsys, tmp_path):
    assert "no run at" in refused(capsys, "--run", tmp_path / "gone", "--port", 0)
    assert refused(capsys, "--run", tmp_path, "--port", 0).count("\n") == 1


def test_without_the_extra_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "mmret_tf.serving.web.server")
    monkeypatch.delattr("mmret_tf.serving.web.server")
    assert 'pip install "mmret_tf[web]"' in refused(capsys)
