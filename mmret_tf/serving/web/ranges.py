"""Ranges of bytes (字节范围), which browsers ask for as they play; Safari plays nothing without."""

import re
from collections.abc import Mapping

from fastapi import Request, Response
from starlette.exceptions import HTTPException

RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


def ranged_response(
    request: Request, media_type: str, content: bytes, headers: Mapping[str, str]
) -> Response:
    """The content, or the range of it that the request asks for.

    Args:
        request: A header such as "Range: bytes=0-99" asks for the first 100 bytes. Several ranges
            at once, and other units, are answered with the whole content.
        media_type, content, headers: Of the answer.

    Raises:
        HTTPException: 416, the range is not one of this content.
    """
    headers = {**headers, "accept-ranges": "bytes"}
    match = RANGE.fullmatch(request.headers.get("range", ""))
    if match is None or match[0] == "bytes=-":
        return Response(content, media_type=media_type, headers=headers)
    first, last = _limits(match[1], match[2], len(content))
    if first > last:
        size = {"content-range": f"bytes */{len(content)}"}
        raise HTTPException(416, f"the content has {len(content)} bytes", size)
    headers["content-range"] = f"bytes {first}-{last}/{len(content)}"
    return Response(content[first : last + 1], 206, headers, media_type)


def _limits(first: str, last: str, size: int) -> tuple[int, int]:
    """The first and the last byte of a range; "-100" is the last 100.

    >>> _limits("2", "", 10), _limits("2", "99", 10), _limits("", "3", 10)
    ((2, 9), (2, 9), (7, 9))
    """
    if not first:
        return max(0, size - int(last)), size - 1
    return int(first), min(int(last) if last else size - 1, size - 1)
