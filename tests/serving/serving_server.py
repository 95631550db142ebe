"""A stand-in for TensorFlow Serving's binary, for tests: SavedModels over REST and gRPC.

`python tests/serving/serving_server.py FOLDER...` serves each folder as a model of its name. It
loads the highest version in the folder as TF Serving does: by the V1 loader, in graph mode, without
the Python code that wrote it. Once ready, it prints one line of JSON, `{"rest": "127.0.0.1:PORT",
"grpc": ...}`; it ends when its standard input is closed. Paths, formats and errors are those of TF
Serving's documentation (https://www.tensorflow.org/tfx/serving/api_rest) and sources. It lacks
labels, Classify and Regress, batching, and versions below the highest.
"""

import argparse
import base64
import json
import re
import sys
import threading
import traceback
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf.json_format import MessageToDict
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2
from tensorflow_serving.apis import prediction_service_pb2_grpc as prediction_service
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

Code = grpc.StatusCode
CODES = {code.value[0]: code for code in Code}
HTTP_STATUS = {
    Code.INVALID_ARGUMENT: 400,
    Code.FAILED_PRECONDITION: 400,
    Code.OUT_OF_RANGE: 400,
    Code.NOT_FOUND: 404,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.UNAVAILABLE: 503,
    Code.DEADLINE_EXCEEDED: 504,
}
MAX_MESSAGE = 1024  # of an error over gRPC


class Refusal(Exception):
    """An error as an answer: a gRPC code and a message."""


class Version:
    """A loaded version of the model, warmed up."""

    def __init__(self, folder: Path):
        self.name, self.number = folder.parent.name, int(folder.name)
        self.session = tf.compat.v1.Session(graph=tf.Graph())
        with self.session.graph.as_default():
            loaded = tf.compat.v1.saved_model.loader.load(self.session, ["serve"], str(folder))
        self.signatures = get_model_metadata_pb2.SignatureDefMap(
            signature_def=dict(loaded.signature_def)
        )
        warm_up = folder / "assets.extra" / "tf_serving_warmup_requests"
        if warm_up.exists():
            for record in tf.data.TFRecordDataset(str(warm_up)).as_numpy_iterator():
                request = PredictionLog.FromString(record).predict_log.request
                self.predict(request.model_spec.signature_name, tensors(request))

    def predict(self, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        signature = self.signatures.signature_def.get(name or "serving_default")
        if signature is None:
            raise Refusal(Code.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
        if set(inputs) != set(signature.inputs):
            raise Refusal(
                Code.INVALID_ARGUMENT,
                f"input size does not match signature: {sorted(inputs)} came, and "
                f"{sorted(signature.inputs)} are required",
            )
        for key, array in inputs.items():  # a session in Python would convert
            came, expected = tf.as_dtype(array.dtype), tf.as_dtype(signature.inputs[key].dtype)
            if came != expected:
                raise Refusal(Code.INVALID_ARGUMENT, f"{key} is {came.name}, not {expected.name}")
        fetches = {key: output.name for key, output in signature.outputs.items()}
        feed = {signature.inputs[key].name: array for key, array in inputs.items()}
        try:
            return self.session.run(fetches, feed)
        except tf.errors.OpError as error:
            message = error.message.removeprefix("Graph execution error:\n\n")  # Python's addition
            raise Refusal(CODES[error.error_code], message) from None
        except ValueError as error:  # the shape
            raise Refusal(Code.INVALID_ARGUMENT, str(error)) from None


class Model:
    """The highest version in a folder; a request loads a newer one first."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.lock = threading.Lock()
        self.newest = self.highest()
        self.version = Version(folder / self.newest)

    def highest(self) -> str:
        names = [path.name for path in self.folder.iterdir() if path.name.isdecimal()]
        return max(names, key=int)

    def get(self, number: int | None) -> Version:
        """A version by its number, or the newest."""
        with self.lock:
            highest = self.highest()
            if int(highest) > int(self.newest):
                self.newest = highest
                try:
                    self.version = Version(self.folder / highest)
                except Exception:  # of any kind: the older version stays
                    traceback.print_exc()
            version = self.version
        if number not in (None, version.number):
            raise not_found(self.folder.name, number)
        return version


class Models(dict):
    """The models by name."""

    def get(self, name: str, number: int | None) -> Version:
        if name not in self:
            raise not_found(name, number)
        return self[name].get(number)


def not_found(name: str, number: int | None) -> Refusal:
    request = f"Latest({name})" if number is None else f"Specific({name}, {number})"
    return Refusal(Code.NOT_FOUND, f"Servable not found for request: {request}")


def tensors(request: predict_pb2.PredictRequest) -> dict[str, np.ndarray]:
    return {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}


# REST. Up to `RestHandler`, a fault in the JSON of a request is a ValueError or a TypeError.


def from_json(value: object, dtype: tf.DType) -> np.ndarray:
    """Nested lists to an array, with TF Serving's strictness about types."""
    if isinstance(value, list):
        parts = [from_json(each, dtype) for each in value]
        return np.stack(parts) if parts else np.empty(0, dtype.as_numpy_dtype)
    if dtype == tf.string and isinstance(value, dict) and set(value) == {"b64"}:
        return np.array(base64.b64decode(value["b64"], validate=True), object)
    if dtype == tf.string and isinstance(value, str):
        return np.array(value.encode("utf-8"), object)
    is_number = type(value) is int or (dtype.is_floating and type(value) is float)
    if dtype == tf.string or not (type(value) is bool if dtype.is_bool else is_number):
        raise TypeError(f"JSON Value: {json.dumps(value)} is not of expected type: {dtype.name}")
    return np.array(value, dtype.as_numpy_dtype)


def to_json(array: np.ndarray | bytes | np.generic, is_binary: bool) -> object:
    """An array to nested lists."""
    if isinstance(array, np.ndarray) and array.ndim:
        return [to_json(part, is_binary) for part in array]
    value = array.item() if isinstance(array, np.ndarray) else array
    if isinstance(value, bytes) and is_binary:
        return {"b64": base64.b64encode(value).decode()}
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")  # unchanged, even if it is not UTF-8
    # The fewest digits that tell a float32 from its neighbours.
    return float(str(value)) if isinstance(value, np.floating) else value.item()


def predict_json(version: Version, body: bytes) -> dict:
    """From the body of a request to that of the answer, both by row or both by column."""
    request = json.loads(body)
    name = request.get("signature_name", "")
    signature = version.signatures.signature_def.get(name or "serving_default")
    if signature is None:  # other words, and another code, than over gRPC
        raise ValueError(f'Serving signature name: "{name}" not found in signature def')
    if len({"inputs", "instances"} & set(request)) != 1:
        raise ValueError("expecting one of 'inputs' and 'instances'")
    dtypes = {key: tf.as_dtype(info.dtype) for key, info in signature.inputs.items()}

    is_row = "instances" in request
    columns = request["instances" if is_row else "inputs"]
    if is_row and not (isinstance(columns, list) and columns):
        raise ValueError("expecting 'instances' to be a list with at least one value")
    if is_row and is_named(columns[0]):
        if any(set(row) != set(dtypes) for row in columns):
            raise ValueError(f"keys of each instance must be equal to: {','.join(sorted(dtypes))}")
        columns = {key: [row[key] for row in columns] for key in dtypes}
    elif not is_named(columns):
        if len(dtypes) > 1:
            raise ValueError(f"expecting the names of the inputs: {','.join(sorted(dtypes))}")
        columns = dict.fromkeys(dtypes, columns)
    for key in dtypes:
        if key not in columns:
            raise ValueError(f"Missing named input: {key} in 'inputs' object.")
    inputs = {key: from_json(columns[key], dtype) for key, dtype in dtypes.items()}

    outputs = {
        key: to_json(array, key.endswith("_bytes"))
        for key, array in version.predict(name, inputs).items()
    }
    if len(outputs) == 1:  # its name is left out
        return {"predictions" if is_row else "outputs": next(iter(outputs.values()))}
    if not is_row:
        return {"outputs": outputs}
    rows = zip(*outputs.values(), strict=True)
    return {"predictions": [dict(zip(outputs, row, strict=True)) for row in rows]}


def is_named(value: object) -> bool:
    return isinstance(value, dict) and set(value) != {"b64"}


PREDICT = re.compile(r"/v1/models/([^/:]+)(?:/versions/(\d+))?:predict")
DESCRIBE = re.compile(r"/v1/models/([^/:]+)(?:/versions/(\d+))?(/metadata)?")


class RestHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept
    wbufsize = -1  # an answer in one packet: in two, the second waits 40 ms
    models: Models

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer(PREDICT, lambda version: predict_json(version, body))

    def do_GET(self):
        self.answer(DESCRIBE, self.metadata if self.path.endswith("/metadata") else self.status)

    def status(self, version: Version) -> dict:
        status = {"error_code": "OK", "error_message": ""}
        state = {"version": str(version.number), "state": "AVAILABLE", "status": status}
        return {"model_version_status": [state]}

    def metadata(self, version: Version) -> dict:
        spec = {"name": version.name, "signature_name": "", "version": str(version.number)}
        signatures = MessageToDict(version.signatures, preserving_proto_field_name=True)
        return {"model_spec": spec, "metadata": {"signature_def": signatures}}

    def answer(self, path: re.Pattern, make) -> None:
        try:
            match = path.fullmatch(self.path)
            if not match:
                raise ValueError(f"Malformed request: {self.command} {self.path}")
            number = None if match[2] is None else int(match[2])
            status, answer = 200, make(self.models.get(unquote(match[1]), number))
        except Refusal as refusal:
            code, message = refusal.args
            status, answer = HTTP_STATUS.get(code, 500), {"error": message}
        except (AttributeError, TypeError, ValueError) as error:
            status, answer = 400, {"error": str(error)}
        content = json.dumps(answer, ensure_ascii=False).encode("utf-8", "surrogateescape")
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        """Standard error is for errors."""


class GrpcService(prediction_service.PredictionServiceServicer):
    def __init__(self, models: Models):
        self.models = models

    def Predict(self, request, context):
        version = self.version(request, context)
        try:
            outputs = version.predict(request.model_spec.signature_name, tensors(request))
        except Refusal as refusal:
            code, message = refusal.args
            is_long = len(message) > MAX_MESSAGE
            context.abort(code, message[:MAX_MESSAGE] + "...TRUNCATED" if is_long else message)
        answer = predict_pb2.PredictResponse(model_spec=request.model_spec)
        answer.model_spec.version.value = version.number
        for name, array in outputs.items():
            answer.outputs[name].CopyFrom(tf.make_tensor_proto(array))
        return answer

    def GetModelMetadata(self, request, context):
        version = self.version(request, context)
        if list(request.metadata_field) != ["signature_def"]:
            context.abort(Code.INVALID_ARGUMENT, "metadata_field must be signature_def")
        answer = get_model_metadata_pb2.GetModelMetadataResponse(model_spec=request.model_spec)
        answer.model_spec.version.value = version.number
        answer.metadata["signature_def"].Pack(version.signatures)
        return answer

    def version(self, request, context) -> Version:
        spec = request.model_spec
        try:
            number = spec.version.value if spec.HasField("version") else None
            return self.models.get(spec.name, number)
        except Refusal as refusal:
            context.abort(*refusal.args)


def main() -> None:
    assert "mmret_tf" not in sys.modules, "a server must not need the package"
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "folders", type=Path, nargs="+", help="a model each, a sub-folder a version"
    )
    models = Models({folder.name: Model(folder) for folder in parser.parse_args().folders})

    handler = type("Handler", (RestHandler,), {"models": models})
    rest = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=rest.serve_forever, daemon=True).start()
    sizes = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.server(futures.ThreadPoolExecutor(8), options=sizes)
    prediction_service.add_PredictionServiceServicer_to_server(GrpcService(models), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    addresses = {"rest": f"127.0.0.1:{rest.server_port}", "grpc": f"127.0.0.1:{port}"}
    print(json.dumps(addresses), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
