"""Ranges of bytes, as players ask for them."""

from urllib.parse import quote

import requests

from .conftest import TONES


def media(address, id, headers=None):
    return requests.get(f"{address}/api/media/{quote(id, safe='')}", headers=headers)


def test_ranges_of_a_sound(playing):
    """Safari plays nothing from a server that sends no ranges."""
    low = next(iter(TONES))
    whole = media(playing, low)
    assert whole.status_code == 200 and whole.headers["accept-ranges"] == "bytes"
    size = len(whole.content)
    for asked, first, last in (
        ("bytes=0-1", 0, 1),
        ("bytes=100-", 100, size - 1),
        ("bytes=10-999999999", 10, size - 1),
        ("bytes=-5", size - 5, size - 1),
        ("bytes=-999999999", 0, size - 1),
    ):
        part = media(playing, low, {"Range": asked})
        assert part.status_code == 206 and part.content == whole.content[first : last + 1]
        assert part.headers["content-range"] == f"bytes {first}-{last}/{size}"
    for asked in ("bytes=-", "bytes=0-1,5-6", "lines=1-2", "bytes=x-"):
        assert media(playing, low, {"Range": asked}).content == whole.content
    beyond = media(playing, low, {"Range": f"bytes={size}-"})
    assert beyond.status_code == 416 and beyond.headers["content-range"] == f"bytes */{size}"
