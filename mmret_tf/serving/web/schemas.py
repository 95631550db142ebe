"""What the REST interface takes and gives, as its description and its checks."""

import json
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from mmret_tf.data.modalities import get_modality

Text = Annotated[str, Field(max_length=2000)]
# Fields that a form holds as JSON, because they are no plain text.
JSON_FIELDS = ("texts", "where", "exclude_ids", "with_vectors")


class SearchRequest(BaseModel):
    """A query; at least one of text, texts, similar_to and, in a form, a file of each modality."""

    model_config = ConfigDict(extra="forbid")

    text: Text | None = Field(
        None, description='As people type it: words after a minus count negatively ("a dog -snow").'
    )
    texts: dict[Text, float] | None = Field(
        None, max_length=32, description="Texts with a weight each, below 0 to steer away."
    )
    similar_to: str | None = Field(None, description="Id of an item, used as a file is.")
    k: int = Field(24, ge=1, le=1000, description="Number of results.")
    text_weight: float | None = Field(
        None, ge=0, le=1, description="Share of the text beside a file or an item."
    )
    where: dict[str, Any] | None = Field(
        None, description='A condition on attributes, as {"colour": "red", "price": {"$lt": 20}}.'
    )
    exclude_ids: list[str] = Field([], max_length=10_000, description="Items not to return.")
    with_vectors: bool = Field(False, description="Whether results have their embeddings.")


class EmbedRequest(BaseModel):
    """Texts to embed; or, in a form, a file."""

    model_config = ConfigDict(extra="forbid")

    texts: list[Text] = Field([], max_length=256)


class ItemAnswer(BaseModel):
    """An item of the gallery."""

    id: str | int
    captions: list[str]
    attributes: dict[str, Any]
    shows: str | None = Field(description='Modality of its first file, such as "image".')
    plays: list[str] = Field(description='Modalities that `/api/media` plays, such as "audio".')


class ResultAnswer(ItemAnswer):
    """An item in a ranking; "vector" only with `with_vectors`."""

    rank: int
    score: float
    vector: list[float] | None = None


class SearchAnswer(BaseModel):
    """Ranked results, best first."""

    results: list[ResultAnswer]
    remark: str = Field(description="What is wrong with the query, or an empty string.")
    took_ms: float
    size: int = Field(description="Number of items in the gallery.")


class EmbedAnswer(BaseModel):
    """A vector for each text, or for the file."""

    embeddings: list[list[float]]
    dim: int


class ErrorAnswer(BaseModel):
    """What was wrong with a request."""

    error: str


def request_body(model: type[BaseModel], files: Sequence[str]) -> dict[str, Any]:
    """The description of a body that is JSON, or a form with files.

    Args:
        model: Of the JSON.
        files: Modalities of files; each is the name of a field.
    """
    form: dict[str, Any] = {
        name: {"type": "string", "description": f"{each.description or name}, as JSON"}
        if name in JSON_FIELDS
        else {"type": "string"}
        for name, each in model.model_fields.items()
    }
    for name in files:
        suffixes = ", ".join(get_modality(name).suffixes)
        description = f"A file of the modality {name}: {suffixes}."
        form[name] = {"type": "string", "format": "binary", "description": description}
    content = {
        "application/json": {"schema": model.model_json_schema()},
        "multipart/form-data": {"schema": {"type": "object", "properties": form}},
    }
    return {"requestBody": {"required": True, "content": content}}


async def read_request(
    request: Request, model: type[BaseModel], files: Sequence[str]
) -> tuple[BaseModel, dict[str, bytes]]:
    """The checked body of a request, and the files that came with it, by their modalities.

    Args:
        request: With JSON, or a form whose files are named after their modalities, such as "image".
        model: What the other fields must be.
        files: Modalities of files that are taken, one file of each.

    Raises:
        HTTPException: 415 for another content type, 422 for a body that does not fit.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == "application/json":
            return model.model_validate_json(await request.body()), {}
        if kind == "multipart/form-data":
            async with request.form(max_files=len(files) + 1, max_fields=16) as form:
                _check_files(form, files)
                contents = {
                    name: await value.read()
                    for name, value in form.items()
                    if isinstance(value, UploadFile)
                }
                return model.model_validate(_fields(form)), contents
    except ValidationError as error:
        raise HTTPException(422, _message(error)) from None
    raise HTTPException(415, "the body must be application/json or multipart/form-data")


def _check_files(form: FormData, files: Sequence[str]) -> None:
    """Refuse a file of another modality, two of one, and a file's field without a file."""
    for name, value in form.multi_items():
        if not isinstance(value, UploadFile):
            if name in files and value:
                raise HTTPException(422, f"{name}: the field must hold a file, not a text")
        elif name not in files:
            expected = " or ".join(map(repr, files))
            raise HTTPException(422, f"{name!r:.80}: the file's field must be named {expected}")
        elif len(form.getlist(name)) > 1:
            raise HTTPException(422, f"{name}: give one file of each modality")


def _fields(form: FormData) -> dict[str, Any]:
    """The fields of a form without its files."""
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile) or not value:  # a form sends its empty fields as well
            continue
        elif name in JSON_FIELDS:
            try:
                fields[name] = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise HTTPException(422, f"{name} must be JSON: {error}") from None
        else:
            fields[name] = value
    return fields


def _message(error: ValidationError) -> str:
    """The first problem in one line."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"]
