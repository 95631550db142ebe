"""The guard: who may use the service, and how much of it at once."""

import socket
import time

import pytest
import requests

from mmret_tf.serving.web import guard, server

from .conftest import running, serving

TOKEN = "a secret"


def get(address, path="/api/gallery", **headers):
    return requests.get(address + path, headers=headers)


def host_of(address):
    return address.removeprefix("http://")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "", "127.0.0.1.evil.example", "a@127.0.0.1", "[::1"]
)
def test_another_host_is_refused_since_its_name_could_be_rebound(address, host):
    answer = get(address, Host=host)
    assert answer.status_code in (400, 421) and "results" not in answer.text


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:99", "127.0.0.1:8000", "[::1]:8000"])
def test_own_names_and_addresses_are_answered(address, host):
    assert get(address, Host=host).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://HOST", "http://HOST:1"])
def test_a_page_of_another_site_is_refused(address, origin):
    origin = origin.replace("HOST", host_of(address))
    answer = get(address, Origin=origin)
    assert answer.status_code == 403 and "are refused" in answer.json()["error"]


def test_the_own_page_and_links_to_it_are_answered(address):
    assert get(address, Origin=address).status_code == 200
    site = {"Sec-Fetch-Site": "cross-site"}
    assert get(address, **site).status_code == 403
    assert get(address, "/", **site).status_code == 200
    assert get(address, **{"Sec-Fetch-Site": "same-origin"}).status_code == 200


def test_every_answer_has_the_headers_of_a_closed_page(address):
    for path in ("/api/gallery", "/", "/nowhere", "/docs"):
        headers = get(address, path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "server" not in headers


@pytest.fixture(scope="module")
def closed(service):
    """The address of the service with a token."""
    with serving(service, TOKEN) as address:
        yield address


def test_a_token_is_needed(closed):
    assert get(closed, Authorization=f"Bearer {TOKEN}").status_code == 200
    assert get(closed).status_code == 401
    assert get(closed, "/metrics").status_code == 401 and get(closed, "/docs").status_code == 401
    assert get(closed, Authorization="Bearer wrong").status_code == 401
    assert get(closed, "/health").status_code == 200


def test_the_login_form_gives_a_cookie(closed):
    session = requests.Session()
    assert '<form method="post" action="/login">' in session.get(closed).text
    assert '<form method="post"' in session.post(f"{closed}/login", data={"token": "wrong"}).text
    assert session.get(f"{closed}/api/gallery").status_code == 401
    session.post(f"{closed}/login", data={"token": TOKEN})
    [cookie] = session.cookies
    assert TOKEN not in cookie.value and cookie.has_nonstandard_attr("HttpOnly")
    assert session.get(f"{closed}/api/gallery").status_code == 200
    assert '<form method="post" action="/login">' not in session.get(closed).text


def connect(address):
    host, port = host_of(address).split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def test_a_body_is_refused_before_it_is_read(address):
    start = b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with connect(address) as client:
        client.sendall(start + b"Content-Length: 1000000000\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 413")
    with connect(address) as client:  # without a length: cut off when it has become too long
        client.sendall(start + b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"%x\r\n%s\r\n" % (2**16, b"x" * 2**16)
        with pytest.raises(OSError):
            for _ in range(10_000):  # 655 MB
                client.sendall(chunk)


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_slow_clients_are_cut_off_while_others_are_served(service, monkeypatch):
    monkeypatch.setattr(server, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(guard, "MOST_SECONDS", 1.0)
    body = b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n"
    body += b"Content-Type: application/json\r\n\r\n{"
    starts = [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: loc", body]
    with serving(service) as address:
        clients = [connect(address) for _ in range(200)]
        for number, client in enumerate(clients):
            client.sendall(starts[number % len(starts)])
        for _ in range(10):
            assert requests.post(f"{address}/api/search", json={"text": "a"}).status_code == 200
        deadline = time.monotonic() + 15
        for number, client in enumerate(clients):
            client.settimeout(max(0.1, deadline - time.monotonic()))
            try:
                end = client.recv(1000)
            except ConnectionError:
                end = b""
            expected = b"HTTP/1.1 408" if starts[number % len(starts)] is body else b""
            assert end.startswith(expected)
            client.close()


def test_a_client_that_does_not_read_is_cut_off(service, monkeypatch):
    monkeypatch.setattr(server, "SILENT_SECONDS", 0.3)
    monkeypatch.setattr(guard, "MOST_SECONDS", 0.6)
    with running(service) as (uvicorn, address), connect(address) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        ask = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
        client.sendall(ask * 500)  # some megabytes of answers
        wait_for(lambda: len(uvicorn.server_state.connections) == 1)
        wait_for(lambda: len(uvicorn.server_state.connections) == 0)
