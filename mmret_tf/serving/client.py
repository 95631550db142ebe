"""The client of a served model (客户端): search and embed over REST or gRPC. Section 6.

Needs neither TensorFlow nor the model code; only gRPC's tensors are made by TensorFlow.
"""

import base64
import contextlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import ReadTimeoutError
from urllib3.util import Retry

from mmret_tf._checks import checked_count
from mmret_tf.data.decoders.pictures import ImageSource
from mmret_tf.data.items import Item
from mmret_tf.data.modalities import MODALITIES
from mmret_tf.data.sources import file_or_bytes
from mmret_tf.ranking.query import Query
from mmret_tf.ranking.results import TEXT_WEIGHT_BY_DEFAULT, SearchResult, SearchResults

# Both transports report in HTTP's statuses: 408 for a late answer, 503 for no answer.
BUSY = (429, 502, 503, 504)
STATUS_OF_GRPC_CODE = {3: 400, 9: 400, 5: 404, 4: 408, 14: 503}
CHECK = "check that TF Serving is ready there, and its port (8501 for REST, 8500 for gRPC)"


class ServingClient(contextlib.AbstractContextManager):
    """Calls a served `mmret export` as one calls `Searcher` and `Encoder`. Section 6.

    A request is tried again if the server cannot be reached, breaks off or is busy, but not if it
    stays silent. Over gRPC, `timeout` bounds a call with all its tries. Over REST it bounds all
    tries to connect together, and each wait for an answer. A server that breaks off late every time
    can therefore take `(retries + 2) * timeout`, and the pauses between tries.

    Args:
        address: "host:port"; TF Serving's ports are 8501 for REST and 8500 for gRPC.
        model: Name under which the model is served.
        protocol: "rest", or "grpc", which needs `pip install "mmret_tf[serving]"`.
        version: Version of the model; the newest if `None`.
        timeout: Seconds.
        retries: 0 to 4 (gRPC's limit); the pauses before them double, up to about 0.8 s.

    Raises:
        ImportError: gRPC is not installed.
        ValueError: An argument is wrong, here or in a method. In a method also: the server refuses
            the request (a broken picture), or lacks the model, version or signature.
        TimeoutError: In a method, no answer came in time.
        ConnectionError: In a method, no server answered, or it failed or is not TF Serving.

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
        transports = {"rest": _Rest, "grpc": _Grpc}
        if protocol not in transports:
            raise ValueError(f'protocol must be "rest" or "grpc"; got {protocol!r}')
        if "/" in address:
            raise ValueError(f'address must be "host:port", without http://; got {address!r}')
        if retries not in range(5):
            raise ValueError(f"retries must be an integer from 0 to 4; got {retries!r}")
        self._target = f"{address}, model {model!r}, version {version or 'newest'}, {protocol}"
        self._timeout = timeout
        self._tries = f"{retries + 1} tries" if retries else "1 try"
        self._transport = transports[protocol](address, model, version, timeout, retries)

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def search(
        self,
        text: str | None = None,
        image: ImageSource | None = None,
        k: int = 10,
        text_weight: float | None = None,
        **sources: Any,
    ) -> SearchResults:
        """Rank the gallery for one query of one or two modalities.

        Args:
            text, image, k, text_weight: As for `Searcher.search`.
            sources: Query sources of other modalities, by name: paths or encoded bytes.

        Returns:
            The k best, but no more than `mmret export --top` allows. An `item` has its "id" and its
            texts.

        Raises:
            ValueError, TimeoutError, ConnectionError: As for the class.
        """
        query = Query(text, image, text_weight=text_weight, sources=sources)
        k = checked_count(k, "k")
        # In the order of the names of signatures.
        inputs: dict[str, list] = {
            name: [_content(name, source)] for name, source, _ in query.terms
        }
        signature = "search_by_" + "_and_".join(inputs)
        if len(inputs) > 1:
            weight = TEXT_WEIGHT_BY_DEFAULT if text is None or text_weight is None else text_weight
            inputs[f"{next(iter(inputs))}_weight"] = [float(weight)]
        found = self._predict(signature, inputs, "ids", "scores", "captions")
        ids, scores, captions = (rows[0][:k].tolist() for rows in found)
        items = [
            Item.of({"id": key, "captions": texts.splitlines()})
            for key, texts in zip(ids, captions, strict=True)
        ]
        return SearchResults(map(SearchResult, range(1, k + 1), ids, scores, items))

    def encode(self, modality: str, sources: Sequence[Any], batch_size: int = 16) -> np.ndarray:
        """Embed sources of one modality.

        Args:
            modality: A modality of the served encoder.
            sources: Texts, or paths, encoded bytes, PIL images or arrays in any mix.
            batch_size: Number of sources in a request.

        Returns:
            float32 `[n, dim]`, unit rows.

        Raises:
            ValueError, TimeoutError, ConnectionError: As for the class; ValueError also if
                `sources` is empty or is not a list.
        """
        is_one = isinstance(sources, str | bytes | os.PathLike) or not hasattr(sources, "__len__")
        if is_one or not len(sources):
            raise ValueError(f"expected a list of {modality}s, of at least one")
        embeddings, batch_size = [], checked_count(batch_size, "batch_size")
        for start in range(0, len(sources), batch_size):
            batch = [_content(modality, each) for each in sources[start : start + batch_size]]
            embeddings += self._predict(f"encode_{modality}", {modality: batch}, "embedding")
        return np.concatenate(embeddings)

    def encode_texts(self, texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
        """Embed captions or queries: `encode("text", texts)`.

        Args:
            texts: Strings.
            batch_size: Number of strings in a request.

        Returns:
            float32 `[n, dim]`, unit rows.
        """
        return self.encode("text", texts, batch_size)

    def encode_images(self, images: Sequence[ImageSource], batch_size: int = 16) -> np.ndarray:
        """Embed pictures, which the server crops and resizes: `encode("image", images)`.

        Args:
            images: Paths, encoded bytes, PIL images or arrays in any mix.
            batch_size: Number of pictures in a request.

        Returns:
            float32 `[n, dim]`, unit rows.
        """
        return self.encode("image", images, batch_size)

    def _predict(self, signature: str, inputs: dict[str, list], *names: str) -> list[np.ndarray]:
        """The named outputs `[n, ...]`; otherwise an error that names its cause and the remedy."""
        status, answer = self._transport.predict(signature, inputs)
        if status == 200:
            if set(names) <= set(answer):
                return [answer[name] for name in names]
            status, answer = 500, f"outputs {sorted(answer)} instead of {sorted(names)}"
        said = re.search(r"assertion failed: \[(.*?)\]", answer)
        reason = said[1] if said else answer.split("\n")[0][:300]
        error, message = {
            400: (ValueError, f"refused by the server: {reason}"),
            404: (ValueError, f"{reason}; check the server's --model_name and its versions"),
            408: (TimeoutError, f"no answer in {self._timeout:g} seconds; wait longer or ask less"),
            503: (ConnectionError, f"no answer in {self._tries}: {reason}; {CHECK}"),
        }.get(status, (ConnectionError, f"the server failed, or is not TF Serving: {reason}"))
        if reason.startswith("Serving signature"):
            message = f"no signature {signature!r}; serve an `mmret export` with an index"
        raise error(f"{message} ({self._target})")


class _Rest:
    """JSON over HTTP, in TF Serving's column format."""

    def __init__(self, address, model, version, timeout, retries):
        path = f"/versions/{version}" if version else ""
        self.url = f"http://{address}/v1/models/{model}{path}:predict"
        self.timeout = (timeout / (retries + 1), timeout)  # of one try to connect; of the answer
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
        body = json.dumps({"signature_name": signature, "inputs": inputs}, default=_base64)
        try:
            response = self.session.post(self.url, body, timeout=self.timeout)
        except requests.ReadTimeout:
            return 408, ""
        except requests.RequestException as error:
            return 503, str(error).split("Caused by ")[-1]
        try:
            answer = json.loads(response.content)
            if response.ok:
                outputs = answer["outputs"]
                if not isinstance(outputs, dict):  # a single output comes without its name
                    outputs = {"embedding": outputs}
                return 200, {name: _array(rows) for name, rows in outputs.items()}
            return 503 if response.status_code in BUSY else response.status_code, answer["error"]
        except (ValueError, KeyError, TypeError):
            return 500, f"{response.status_code} {response.text:.80}"


class _Retry(Retry):
    """Retries after a failed connection and a busy answer, but not after a silent server."""

    def increment(self, method=None, url=None, response=None, error=None, *more, **details):
        if isinstance(error, ReadTimeoutError):
            raise error
        return super().increment(method, url, response, error, *more, **details)


class _Grpc:
    """Tensors over gRPC, which retries by itself within its deadline."""

    def __init__(self, address, model, version, timeout, retries):
        try:
            import grpc
            from tensorflow import make_ndarray
            from tensorflow_serving.apis import prediction_service_pb2_grpc
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
            "grpc.initial_reconnect_backoff_ms": 100,  # longer than the tries would fail them all
            "grpc.max_reconnect_backoff_ms": 1000,
        }
        channel = grpc.insecure_channel(address, list(options.items()))
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

        def predict(signature: str, inputs: dict[str, list]) -> tuple[int, object]:
            request = predict_request(model, signature, inputs, version)
            try:
                outputs = stub.Predict(request, timeout=timeout).outputs
            except grpc.RpcError as error:
                status = STATUS_OF_GRPC_CODE.get(error.code().value[0], 500)
                return status, str(error.details())
            return 200, {name: _array(make_ndarray(rows)) for name, rows in outputs.items()}

        self.predict, self.close = predict, channel.close


def predict_request(
    model: str, signature: str, inputs: Mapping[str, list], version: int | None = None
):
    """The message of a request over gRPC, which needs TensorFlow Serving's API."""
    from tensorflow import make_tensor_proto
    from tensorflow_serving.apis import predict_pb2

    spec = {"name": model, "signature_name": signature}
    if version is not None:
        spec["version"] = {"value": version}
    tensors = {name: make_tensor_proto(rows) for name, rows in inputs.items()}
    return predict_pb2.PredictRequest(model_spec=spec, inputs=tensors)


def _base64(content: bytes) -> dict[str, str]:
    """Bytes in TF Serving's JSON."""
    return {"b64": base64.b64encode(content).decode()}


def _content(modality: str, source: Any) -> str | bytes:
    """A source as it is sent: a text, or bytes that the server's graph decodes."""
    if modality not in MODALITIES:  # the server's own
        return file_or_bytes(source).read()
    if modality != "text":
        known = MODALITIES[modality]
        return known.read(known.as_source(source))
    if not isinstance(source, str):
        raise ValueError(f"a text must be a string; got {source!r:.80}")
    return source


def _array(values: np.ndarray | list) -> np.ndarray:
    """An output of either transport as `str`, int64 or float32."""
    array = np.asarray(values)
    if array.dtype == object:
        return np.vectorize(bytes.decode, otypes=[object])(array)
    return array.astype(np.float32) if array.dtype.kind == "f" else array
