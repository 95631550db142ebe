"""The HTTP server (服务器): uvicorn on a socket of its own, without patience for silent clients."""

import asyncio
import errno
import ipaddress
import socket

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

# A client may neither send a whole request nor read its answer for this long. The time in which the
# answer is computed does not count.
SILENT_SECONDS = 15.0
# Connections at once; more are answered 503. Most systems allow a process 1,024 files.
MOST_CONNECTIONS = 800


class ImpatientProtocol(H11Protocol):
    """HTTP/1.1 that cuts off connections without a whole request, or whose client does not read.

    uvicorn bounds the time between requests, but not that of a request's head.
    """

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        # asyncio does so only for sockets that name their protocol. Without it, the second part of
        # an answer waits 40 ms for the client to acknowledge the first.
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._watch()

    def connection_lost(self, exc) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _watch(self) -> None:
        self._timer = self.loop.call_later(SILENT_SECONDS, self._check, self.cycle)

    def _check(self, last_request) -> None:
        """Break off if nothing has happened since the last check."""
        is_answered = self.cycle is None or self.cycle.response_complete
        is_stuck = is_answered or self.transport.get_write_buffer_size() > 0
        if self.transport.is_closing() or (is_stuck and self.cycle is last_request):
            self.transport.abort()
        else:
            self._watch()


def is_local(host: str) -> bool:
    """Whether only programs on this machine can reach a host.

    >>> is_local("127.0.0.1"), is_local("::1"), is_local("localhost"), is_local("0.0.0.0")
    (True, True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address_of(listening: socket.socket) -> str:
    """The address of the page, for a browser on this machine."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def open_socket(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: Address or name of this machine.
        port: Port; 0 for a free one.

    Raises:
        ValueError: The port is taken, or the address is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            reason = "something else uses this port: give another one with --port"
        else:
            reason = str(error)
        raise ValueError(f"cannot listen on {host}, port {port}: {reason}") from None


def make_server(app: ASGIApp) -> uvicorn.Server:
    """A server for an application; `run(sockets=[open_socket(...)])` starts it.

    Args:
        app: The ASGI application.
    """
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=ImpatientProtocol,
            ws="none",
            lifespan="on",
            log_level="critical",  # the application logs its faults itself
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=MOST_CONNECTIONS,
            backlog=512,
            timeout_keep_alive=int(SILENT_SECONDS),
            timeout_graceful_shutdown=5,
        )
    )
