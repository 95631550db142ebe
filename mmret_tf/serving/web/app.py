"""The application (应用): the page and its REST interface over a `SearchService`."""

import asyncio
import contextlib
import functools
import logging
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Form, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException

from mmret_tf.data.items import Item
from mmret_tf.data.modalities import file_modalities
from mmret_tf.ranking.gallery import playing_modalities
from mmret_tf.ranking.query import parse_terms
from mmret_tf.ranking.results import SearchResult, SearchResults
from mmret_tf.serving.web.batching import Batcher
from mmret_tf.serving.web.docs import docs_page, page_policy
from mmret_tf.serving.web.guard import COOKIE, Guard, session_of
from mmret_tf.serving.web.metrics import Counted, Metrics
from mmret_tf.serving.web.ranges import ranged_response
from mmret_tf.serving.web.schemas import (
    EmbedAnswer,
    EmbedRequest,
    ErrorAnswer,
    ItemAnswer,
    SearchAnswer,
    SearchRequest,
    read_request,
    request_body,
)
from mmret_tf.serving.web.service import SearchService

FOLDER = Path(__file__).parent
logger = logging.getLogger(__name__)

ERRORS: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorAnswer}}
Side = Annotated[int, Query(ge=32, le=1024, description="In pixels.")]
Played = Annotated[str | None, Query(description='Such as "audio"; by default any.')]
K = Annotated[int, Query(ge=1, le=1000, description="Number of results.")]


def create_app(
    service: SearchService, token: str | None = None, names: frozenset[str] = frozenset()
) -> Guard:
    """The page and the REST interface of a run, as an ASGI application.

    Args:
        service: What answers.
        token: What clients must show; `None` for none.
        names: Host names under which the service is reached.

    Returns:
        The application behind its guard.
    """
    metrics = Metrics()
    searches = Batcher(service.answer, metrics.batches.observe)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI):
        task = asyncio.create_task(searches.run())
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    app = FastAPI(title="mmret", summary=__doc__, lifespan=lifespan, docs_url=None, redoc_url=None)
    guard = Guard(app, names, token)
    _add_errors(app)
    _add_pages(app, guard)
    _add_searches(app, service, searches)
    _add_items(app, service)
    _add_health(app, service, metrics)
    return guard


def _add_searches(app: FastAPI, service: SearchService, searches: Batcher) -> None:
    """The routes that ask the searcher."""

    async def ask(query: dict[str, Any]) -> JSONResponse:
        started = time.perf_counter()
        try:
            results = await searches.ask(query)
        except asyncio.QueueFull:
            raise HTTPException(429, "too many requests wait: try again later") from None
        return JSONResponse(_search_answer(results, started, len(service.searcher.index)))

    @app.post(
        "/api/search",
        openapi_extra=request_body(SearchRequest, service.files),
        responses={200: {"model": SearchAnswer}} | ERRORS,
    )
    async def search(request: Request) -> Response:
        """Rank the gallery for a text, weighted texts, files, an item, or several of them."""
        asked, files = await read_request(request, SearchRequest, service.files)
        query: dict[str, Any] = asked.model_dump(exclude={"text"}, exclude_none=True)
        if asked.text is not None:
            terms = parse_terms(asked.text)
            if (
                min(terms.values()) > 0
            ):  # a plain text, which a trained fusion takes beside a picture
                (query["text"],) = terms
            else:
                query["texts"] = terms | query.get("texts", {})
        query |= files
        if asked.similar_to is not None:
            query["similar_to"] = _item(service, asked.similar_to)["id"]
        return await ask(query)

    @app.get("/api/similar/{id:path}", responses={200: {"model": SearchAnswer}} | ERRORS)
    async def similar(id: str, k: K = 24) -> Response:
        """Rank the other items by their similarity with one."""
        return await ask({"similar_to": _item(service, id)["id"], "k": k})

    @app.post(
        "/api/embed",
        openapi_extra=request_body(EmbedRequest, service.files),
        responses={200: {"model": EmbedAnswer}} | ERRORS,
    )
    async def embed(request: Request) -> Response:
        """The embeddings of texts or of a file, of unit length."""
        asked, files = await read_request(request, EmbedRequest, service.files)
        given = {name: [content] for name, content in files.items()}
        if asked.texts:
            given["text"] = asked.texts
        if len(given) != 1:
            raise HTTPException(422, "give texts or a file")
        encode = functools.partial(service.searcher.encoder.encode, *given.popitem())
        vectors = await asyncio.to_thread(encode)
        return JSONResponse({"embeddings": vectors.tolist(), "dim": vectors.shape[1]})


def _add_items(app: FastAPI, service: SearchService) -> None:
    """The routes that show the gallery. Ids are percent-encoded whole: they may hold slashes."""

    @app.get("/api/gallery")
    def gallery() -> dict[str, Any]:
        """Size, modalities, filters and example queries."""
        service.follow()
        return service.describe()

    @app.get("/api/items/{id:path}", responses={200: {"model": ItemAnswer}} | ERRORS)
    def item(id: str) -> Response:
        """The captions and attributes of an item."""
        return JSONResponse(_item_answer(_item(service, id)))

    @app.get(
        "/api/thumbnails/{id:path}",
        response_class=Response,
        responses={200: {"content": {"image/jpeg": {}}}} | ERRORS,
    )
    def thumbnail(id: str, side: Side = 160) -> Response:
        """The picture of an item, a square."""
        content = service.thumbnail(_item(service, id), side)
        headers = {"cache-control": "private, max-age=60"}
        return Response(content, media_type="image/jpeg", headers=headers)

    @app.get(
        "/api/media/{id:path}",
        response_class=Response,
        responses={200: {"content": {"audio/wav": {}, "image/webp": {}}}} | ERRORS,
    )
    def media(request: Request, id: str, modality: Played = None) -> Response:
        """What plays of an item: a sound, or a clip as an animation. Ranges of bytes as well."""
        if (played := service.media(_item(service, id), modality)) is None:
            raise HTTPException(404, f"nothing of {id!r:.200} plays")
        return ranged_response(request, *played, {"cache-control": "private, max-age=60"})


def _add_health(app: FastAPI, service: SearchService, metrics: Metrics) -> None:
    """The routes for those who run the service."""
    app.add_middleware(Counted, metrics=metrics)

    @app.get("/health")
    def health() -> dict[str, str]:
        """Whether the service answers, and why the newest gallery is not shown."""
        return {"status": "stale" if service.problem else "ok", "problem": service.problem}

    @app.get("/metrics", response_class=Response)
    def figures() -> Response:
        """Figures for Prometheus."""
        metrics.items.set(len(service.searcher.index))
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_pages(app: FastAPI, guard: Guard) -> None:
    """The search page, the login form and the description of the interface."""
    page, login = ((FOLDER / name).read_text("utf-8") for name in ("page.html", "login.html"))
    policies = {text: {"content-security-policy": page_policy(text)} for text in (page, login)}

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def index(request: Request) -> Response:
        text = page if guard.is_known(request) else login
        return HTMLResponse(text, headers=policies[text] | {"cache-control": "no-store"})

    @app.post("/login", include_in_schema=False)
    async def log_in(request: Request, token: Annotated[str, Form()] = "") -> Response:
        if guard.token is None or session_of(token) != session_of(guard.token):
            await asyncio.sleep(1)  # guessing takes time
            return RedirectResponse("/", 303)
        response = RedirectResponse("/", 303)
        response.set_cookie(COOKIE, session_of(token), httponly=True, samesite="strict")
        return response

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    def docs() -> Response:
        text = docs_page(app.openapi())
        return HTMLResponse(text, headers={"content-security-policy": page_policy(text)})


def _add_errors(app: FastAPI) -> None:
    """Every error is `{"error": message}`; one of ours is logged and says nothing."""

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return JSONResponse({"error": f"{first['loc'][-1]}: {first['msg']}"}, 422)

    @app.exception_handler(ValueError)
    async def refused(request: Request, error: ValueError) -> Response:
        return JSONResponse({"error": str(error)}, 422)

    @app.exception_handler(ConnectionError)
    async def lost(request: Request, error: ConnectionError) -> Response:
        return JSONResponse({"error": str(error)}, 503)

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> Response:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return JSONResponse({"error": "the service failed: see its log"}, 500)


def _item(service: SearchService, key: str) -> Item:
    try:
        return service.item(key)
    except KeyError:
        raise HTTPException(404, f"no item has the id {key!r:.200}") from None


def _item_answer(item: Item) -> dict[str, Any]:
    return {
        "id": item["id"],
        "captions": item["captions"],
        "attributes": item["attributes"],
        "shows": next(
            (each.name for each in file_modalities() if item["sources"].get(each.name)), None
        ),
        "plays": playing_modalities(item),
    }


def _result_answer(result: SearchResult) -> dict[str, Any]:
    answer = {"rank": result.rank, "score": result.score, **_item_answer(Item.of(result.item))}
    if result.vector is not None:
        answer["vector"] = np.asarray(result.vector).tolist()
    return answer


def _search_answer(results: SearchResults, started: float, size: int) -> dict[str, Any]:
    return {
        "results": [_result_answer(result) for result in results],
        "remark": results.remark,
        "took_ms": round(1000 * (time.perf_counter() - started), 2),
        "size": size,
    }
