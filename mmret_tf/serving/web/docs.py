"""The description of the REST interface as a web page, without a script and without other hosts."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from typing import Any

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem;
  color-scheme: light dark; }
h2 { margin-top: 2.5rem; font-size: 1.1rem; font-family: ui-monospace, monospace; }
pre { overflow-x: auto; padding: 1rem; border: 1px solid GrayText; border-radius: .5rem;
  font-size: .85rem; }
"""


# Headings of the parts of a route, and their keys in OpenAPI.
PARTS = {"Parameters": "parameters", "Body": "requestBody", "Answers": "responses"}


def docs_page(description: Mapping[str, Any]) -> str:
    """A page with a section for each route.

    Args:
        description: What OpenAPI says of the interface.

    >>> route = {"post": {"description": "Search.", "responses": {"200": {"description": "OK"}}}}
    >>> "<h2>POST /api/search</h2>" in docs_page({"paths": {"/api/search": route}})
    True
    """
    sections = [
        _section(path, method, route)
        for path, routes in description["paths"].items()
        for method, route in routes.items()
    ]
    schemas = description.get("components", {}).get("schemas", {})
    sections += [f"<h2>{html.escape(name)}</h2>{_json(each)}" for name, each in schemas.items()]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>mmret: the interface</title>'
        '<meta name="viewport" content="width=device-width">'
        f"<style>{STYLE}</style><main><h1>The interface of this service</h1>"
        '<p>The same for programs: <a href="/openapi.json">openapi.json</a>.</p>'
        f"{''.join(sections)}</main></html>"
    )


def _section(path: str, method: str, route: Mapping[str, Any]) -> str:
    parts = [f"<h2>{method.upper()} {html.escape(path)}</h2>"]
    parts.append(f"<p>{html.escape(route.get('description', ''))}</p>")
    for title, key in (
        ("Parameters", "parameters"),
        ("Body", "requestBody"),
        ("Answers", "responses"),
    ):
        if key in route:
            parts.append(f"<h3>{title}</h3>{_json(route[key])}")
    return "".join(parts)


def _json(value: Any) -> str:
    return f"<pre>{html.escape(json.dumps(value, indent=1, ensure_ascii=False))}</pre>"


def page_policy(page: str) -> str:
    """The content security policy of a page: its own style and script, and nothing else.

    Args:
        page: The HTML, with at most one `<style>` and one `<script>`.

    >>> page_policy("<style>p {}</style>").split("; ")[:3]  # doctest: +ELLIPSIS
    ["default-src 'none'", "style-src 'sha256-...'", "script-src 'none'"]
    """
    sources = {}
    for name in ("style", "script"):
        found = re.search(f"<{name}>(.*?)</{name}>", page, re.DOTALL)
        digest = found and base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
        sources[name] = f"'sha256-{digest}'" if digest else "'none'"
    return "; ".join(
        [
            "default-src 'none'",
            f"style-src {sources['style']}",
            f"script-src {sources['script']}",
            "img-src 'self' blob: data:",
            "media-src 'self'",
            "connect-src 'self'",
            "form-action 'self'",
            "frame-ancestors 'none'",
            "base-uri 'none'",
        ]
    )
