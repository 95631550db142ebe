"""The guard (防护): what every request must fulfil before the application sees it.

A web page of another site must not be able to use the service through a visitor's browser. That is
what the checks of `Host` (DNS rebinding) and `Origin` (cross-site requests) are for. Sizes and
times are bounded, so that no client can hold up the others.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import re
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Bytes of a body, and seconds of a whole request.
MOST_BYTES, MOST_SECONDS = 20 * 2**20, 30.0
COOKIE = "mmret_session"
# May be asked without a token.
OPEN_PATHS = ("/health", "/login", "/")

HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}


class Guard:
    """Checks every request, and bounds its size and time.

    Args:
        app: Answers the requests that pass.
        names: Host names of the service, beside IP addresses and "localhost".
        token: What clients must show, as `Authorization: Bearer TOKEN` or by the cookie of the
            login form; `None` for none.
    """

    def __init__(self, app: ASGIApp, names: frozenset[str] = frozenset(), token: str | None = None):
        self.app, self.names, self.token = app, names | {"localhost"}, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_started = False

        async def send_guarded(message: Message) -> None:
            nonlocal is_started
            if message["type"] == "http.response.start":
                is_started = True
                _add_headers(message)
            await send(message)

        request = Request(scope)
        if refused := self._refusal(request):
            await refused(scope, receive, send_guarded)
            return
        try:
            async with asyncio.timeout(MOST_SECONDS):
                await self.app(scope, _Limited(receive), send_guarded)
        except TimeoutError:
            if is_started:
                raise  # the server breaks the connection off
            late = _error(408, f"the request took longer than {MOST_SECONDS:.0f} seconds")
            await late(scope, receive, send_guarded)

    def _refusal(self, request: Request) -> JSONResponse | None:
        """The answer to a request that does not pass."""
        host = request.headers.get("host", "")
        if not self._is_own(host):
            return _error(421, f"the host {host!r:.80} is not this service")
        origin = request.headers.get("origin")
        if origin is not None and origin.lower() != f"{request.url.scheme}://{host}".lower():
            return _error(403, f"requests from {origin!r:.80} are refused")
        site = request.headers.get("sec-fetch-site", "none")
        if site not in ("none", "same-origin") and request.url.path != "/":
            return _error(403, "requests from other sites are refused")
        length = request.headers.get("content-length", "0")
        if not (length.isascii() and length.isdecimal()):
            return _error(400, f"the content length is {length!r:.80}")
        if int(length) > MOST_BYTES:
            return _error(413, TOO_LARGE)
        if request.url.path not in OPEN_PATHS and not self.is_known(request):
            return _error(401, "a token is needed: Authorization: Bearer TOKEN")
        return None

    def _is_own(self, host: str) -> bool:
        """Whether a `Host` names this service; only names can be rebound, addresses cannot."""
        match = re.fullmatch(r"\[([0-9a-fA-F:.]+)\](?::\d+)?|([^:\[\]@/]+)(?::\d+)?", host)
        if match is None:
            return False
        name = match[1] or match[2]
        return name.lower() in self.names or _is_address(name)

    def is_known(self, request: Request) -> bool:
        """Whether a request shows the token, or the service needs none."""
        if self.token is None:
            return True
        kind, _, shown = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and _equal(shown.strip(), self.token):
            return True
        return _equal(request.cookies.get(COOKIE, ""), session_of(self.token))


class _Limited:
    """`receive` that refuses a body beyond `MOST_BYTES`, whatever its header says."""

    def __init__(self, receive: Receive):
        self._receive, self._bytes = receive, 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._bytes += len(message.get("body", b""))
        if self._bytes > MOST_BYTES:
            raise HTTPException(413, TOO_LARGE, {"connection": "close"})
        return message


TOO_LARGE = f"the body is larger than {MOST_BYTES // 2**20} MB"


def session_of(token: str) -> str:
    """The value of the cookie of those who know the token."""
    return hmac.new(token.encode(), COOKIE.encode(), hashlib.sha256).hexdigest()


def _equal(shown: str, expected: str) -> bool:
    return hmac.compare_digest(shown.encode(), expected.encode())


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _error(status: int, message: str) -> JSONResponse:
    """An answer that also ends the connection: the rest of the request is not read."""
    return JSONResponse({"error": message}, status, {"connection": "close"})


def _add_headers(message: dict[str, Any]) -> None:
    present = {name.lower() for name, _ in message["headers"]}
    message["headers"] = [
        *message["headers"],
        *((n.encode(), v.encode()) for n, v in HEADERS.items() if n.encode() not in present),
    ]
