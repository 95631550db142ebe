"""The client of a served model (客户端): search and embed over REST or gRPC, without the model."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import requests
import tensorflow as tf
from PIL import Image, ImageOps
from requests.adapters import HTTPAdapter
from urllib3.exceptions import ReadTimeoutError
from urllib3.util import Retry

from mmret_tf.checks import checked_count
from mmret_tf.dual_encoder import check_images, check_texts
from mmret_tf.preprocessing import ImageSource, rgb_array
from mmret_tf.searcher import (
    TEXT_WEIGHT_BY_DEFAULT,
    SearchResult,
    SearchResults,
    check_query,
)

# Both transports speak in HTTP's statuses: 408 is for an answer that is late, 503 for none at all.
BUSY = (429, 502, 503, 504)
STATUS_OF_GRPC_CODE = {3: 400, 9: 400, 5: 404, 4: 408, 14: 503}
CHECK = "check that TF Serving is ready there, and its port (8501 for REST, 8500 for gRPC)"


class ServingClient:
    """Asks TF Serving for what `mmret export` wrote, as one asks `Searcher` and `DualEncoder`.
    Section 6.

    A server that cannot be reached, breaks off or is busy is asked again; one that keeps silent is
    not. Over gRPC, `timeout` bounds a call with all its tries. Over REST it bounds all tries to
    connect together, and each wait for an answer: a server that breaks off late, every time, can
    take `(retries + 2) * timeout`, which nothing exceeds but the waits between tries.

    Args:
        address: "host:port"; TF Serving's ports are 8501 for REST and 8500 for gRPC.
        model: the name under which the model is served.
        protocol: "rest", or "grpc", which needs `pip install "mmret_tf[serving]"`.
        version: of the model; the newest if `None`.
        timeout: seconds.
        retries: 0 to 4 (gRPC's limit); the waits before them double, up to about 0.8 s.

    Raises:
        ImportError: gRPC is not installed.
        ValueError: a wrong argument, here or in a method; in a method also what the server refuses
            (a broken picture), and a model, version or signature that it does not have.
        TimeoutError: in a method, no answer came in time.
        ConnectionError: in a method, no server answered, or it failed or is not TF Serving.

    >>> with ServingClient("localhost:8501") as client:  # doctest: +SKIP
    ...     client.search(text="红色的圆", k=2)
       1  0.912  000017  红色的大圆形
       2  0.887  000203  a large red circle
    """

    def __init__(
        self,
        address: str = "localhost:8501",
        model: str = "mmret",
        protocol: str = "rest",
        version: int | None = None,
        timeout: float = 10.0,
        retries: int = 3,
    ):
        if protocol not in ("rest", "grpc"):
            raise ValueError(f'protocol must be "rest" or "grpc"; got {protocol!r}')
        if "/" in address:
            raise ValueError(f'address must be "host:port", without http://; got {address!r}')
        if retries not in range(5):
            raise ValueError(f"retries must be an integer from 0 to 4; got {retries!r}")
        self._asked = f"{address}, model {model!r}, version {version or 'newest'}, {protocol}"
        self._timeout, self._retries = timeout, retries
        transport = _Rest if protocol == "rest" else _Grpc
        self._transport = transport(address, model, version, timeout, retries)

    def __enter__(self) -> ServingClient:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self._transport.close()

    def search(
        self,
        text: str | None = None,
        image: ImageSource | None = None,
        k: int = 10,
        text_weight: float | None = None,
    ) -> SearchResults:
        """Rank the gallery for one query.

        Args:
            text, image, k, text_weight: as for `Searcher.search`.

        Returns:
            The k best, or all that the server gives: `mmret export --top` fixed its largest k. An
            `item` has its "id" and "captions".

        Raises:
            ValueError, TimeoutError, ConnectionError: as for the class.
        """
        check_query(text, image, text_weight)
        k = checked_count(k, "k")
        inputs = {} if text is None else {"text": [text]}
        if image is not None:
            inputs["image"] = [_encoded(image)]
        signature = "search_by_" + "_and_".join(inputs)
        if len(inputs) == 2:
            inputs["text_weight"] = [
                TEXT_WEIGHT_BY_DEFAULT if text_weight is None else float(text_weight)
            ]
        found = self._predict(signature, inputs, "ids", "scores", "captions")
        best = zip(*(rows[0][:k].tolist() for rows in found), strict=True)
        return SearchResults(
            SearchResult(
                rank, key, score, {"id": key, "captions": lines.split("\n") if lines else []}
            )
            for rank, (key, score, lines) in enumerate(best, 1)
        )

    def encode_texts(self, texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
        """Embed captions or queries.

        Args:
            texts: strings.
            batch_size: strings a request.

        Returns:
            float32 `[n, dim]`, rows of unit length.

        Raises:
            ValueError, TimeoutError, ConnectionError: as for the class; ValueError also for an
                empty list.
        """
        check_texts(texts)
        return self._encode("text", str, texts, batch_size)

    def encode_images(
        self, images: Sequence[ImageSource] | np.ndarray, batch_size: int = 16
    ) -> np.ndarray:
        """Embed pictures; the server crops and resizes them.

        Args:
            images: as for `DualEncoder.encode_images`, but no features.
            batch_size: pictures a request.

        Returns:
            float32 `[n, dim]`, rows of unit length.

        Raises:
            ValueError, TimeoutError, ConnectionError: as for the class; ValueError also for an
                empty list.
        """
        check_images(images)
        return self._encode("image", _encoded, images, batch_size)

    def _encode(self, kind: str, prepare: Callable, rows: Sequence, batch_size: int) -> np.ndarray:
        embeddings = [
            self._predict(f"encode_{kind}", {kind: [prepare(row) for row in batch]}, "embedding")[0]
            for batch in (rows[at : at + batch_size] for at in range(0, len(rows), batch_size))
        ]
        if not embeddings:
            raise ValueError("nothing to encode: the list is empty")
        return np.concatenate(embeddings)

    def _predict(self, signature: str, inputs: dict[str, list], *names: str) -> list[np.ndarray]:
        """The named outputs `[n, ...]`, or the error that says what is wrong and what to do."""
        status, answer = self._transport.predict(signature, inputs)
        if status == 200:
            outputs = answer if isinstance(answer, dict) else {names[0]: answer}
            if set(names) <= set(outputs):
                return [outputs[name] for name in names]
            status, answer = 500, f"outputs {sorted(outputs)} instead of {sorted(names)}"
        said = re.search(r"assertion failed: \[(.*?)\]", answer)
        reason = said[1] if said else answer.split("\n")[0][:300]
        error, what = {
            400: (ValueError, f"refused by the server: {reason}"),
            404: (ValueError, f"{reason}; check the server's --model_name and its versions"),
            408: (TimeoutError, f"no answer in {self._timeout:g} seconds; wait longer or ask less"),
            503: (ConnectionError, f"no answer in {self._retries + 1} tries: {reason}; {CHECK}"),
        }.get(status, (ConnectionError, f"the server failed, or is not TF Serving: {reason}"))
        if reason.startswith("Serving signature"):
            what = f"no signature {signature!r}; serve an `mmret export`, with an index to search"
        raise error(f"{what} ({self._asked})")


class _Rest:
    """JSON over HTTP, in TF Serving's column format."""

    def __init__(self, address, model, version, timeout, retries):
        path = model if version is None else f"{model}/versions/{version}"
        self.url = f"http://{address}/v1/models/{path}:predict"
        self.timeout = (timeout / (retries + 1), timeout)  # to connect, a try; for the answer
        retry = _Retry(
            total=retries,
            status_forcelist=BUSY,
            allowed_methods=["POST"],  # a prediction changes nothing
            backoff_factor=0.1,
            raise_on_status=False,
            respect_retry_after_header=False,  # it may ask for hours
        )
        self.session = requests.Session()
        self.session.mount("http://", HTTPAdapter(max_retries=retry))
        self.close = self.session.close

    def predict(self, signature: str, inputs: dict[str, list]) -> tuple[int, object]:
        columns = {name: [_as_json(value) for value in rows] for name, rows in inputs.items()}
        body = {"signature_name": signature, "inputs": columns}
        try:
            response = self.session.post(self.url, json=body, timeout=self.timeout)
        except requests.ReadTimeout:
            return 408, ""
        except requests.RequestException as error:
            return 503, str(error).split("Caused by ")[-1]
        try:
            answer = json.loads(response.content)
            if response.ok:
                outputs = answer["outputs"]
                if not isinstance(outputs, dict):  # a single output comes without its name
                    return 200, _array(outputs)
                return 200, {name: _array(rows) for name, rows in outputs.items()}
            status, reason = response.status_code, str(answer["error"])
        except (ValueError, KeyError, TypeError):
            status, reason = 500, f"{response.status_code} {response.text:.80}"
        return (503 if response.status_code in BUSY else status), reason


class _Retry(Retry):
    """Tries again where there is no answer, but not where one was awaited in vain."""

    def increment(self, method=None, url=None, response=None, error=None, *more, **details):
        if isinstance(error, ReadTimeoutError):
            raise error
        return super().increment(method, url, response, error, *more, **details)


class _Grpc:
    """Tensors over gRPC, with its own retries inside its own deadline."""

    def __init__(self, address, model, version, timeout, retries):
        try:
            import grpc
            from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
        except ImportError as error:
            raise ImportError('protocol="grpc" needs: pip install "mmret_tf[serving]"') from error
        policy = {
            "maxAttempts": retries + 1,
            "initialBackoff": "0.1s",
            "maxBackoff": "1s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
        methods = [{"name": [{}], "retryPolicy": policy}] if retries else []
        options = {
            "grpc.service_config": json.dumps({"methodConfig": methods}),
            "grpc.max_send_message_length": -1,
            "grpc.max_receive_message_length": -1,
            "grpc.per_rpc_retry_buffer_size": 2**31 - 1,  # larger requests are not tried again
            "grpc.initial_reconnect_backoff_ms": 100,  # or all tries see the first failure
            "grpc.max_reconnect_backoff_ms": 1000,
        }
        channel = grpc.insecure_channel(address, list(options.items()))
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

        def predict(signature: str, inputs: dict[str, list]) -> tuple[int, object]:
            request = predict_pb2.PredictRequest()
            request.model_spec.name = model
            request.model_spec.signature_name = signature
            if version is not None:
                request.model_spec.version.value = version
            for name, rows in inputs.items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto(rows))
            try:
                outputs = stub.Predict(request, timeout=timeout).outputs
            except grpc.RpcError as error:
                status = STATUS_OF_GRPC_CODE.get(error.code().value[0], 500)
                return status, str(error.details())
            return 200, {name: _array(tf.make_ndarray(rows)) for name, rows in outputs.items()}

        self.predict, self.close = predict, channel.close


def _as_json(value: str | bytes | float) -> str | float | dict[str, str]:
    """A value as TF Serving's JSON has it."""
    return {"b64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def _array(values: np.ndarray | list) -> np.ndarray:
    """An output as `str`, int64 or float32, however it came."""
    array = np.asarray(values)
    if array.dtype == object:
        return np.vectorize(bytes.decode, otypes=[object])(array)
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def _encoded(image: ImageSource) -> bytes:
    """The bytes that are sent for a picture: a file's own, or a PNG of its pixels."""
    if isinstance(image, (str, os.PathLike)):
        try:
            return Path(image).read_bytes()
        except OSError as error:
            raise ValueError(f"{os.fspath(image)}: {error.strerror or error}") from None
    if isinstance(image, bytes):
        return image
    if isinstance(image, Image.Image):
        image = np.asarray(ImageOps.exif_transpose(image).convert("RGBA"))
    rgb_array(image)  # refuses what is no picture; its result has lost the alpha
    return tf.io.encode_png(np.rint(np.atleast_3d(image)).astype(np.uint8)).numpy()
