"""A SavedModel through TensorFlow's C API, whose loader is TF Serving's; Python's TensorFlow is not
imported. The library is in TensorFlow's wheel."""

import ctypes
import math
from collections import defaultdict
from importlib.machinery import PathFinder
from pathlib import Path

import numpy as np
from google.protobuf.empty_pb2 import Empty
from google.protobuf.unknown_fields import UnknownFieldSet

STRING = 7
DTYPES = {1: np.float32, 3: np.int32, 4: np.uint8, 9: np.int64, 10: np.bool_}
STRING_BYTES = 24  # of a TF_TString

# Fields of MetaGraphDef, SignatureDef and TensorInfo (tensorflow/core/protobuf/meta_graph.proto).
SIGNATURES, (INPUTS, OUTPUTS), (NAME, DTYPE) = 5, (1, 2), (1, 2)


class Output(ctypes.Structure):
    """TF_Output: a number of an operation's outputs."""

    _fields_ = [("operation", ctypes.c_void_p), ("index", ctypes.c_int)]


class Buffer(ctypes.Structure):
    """TF_Buffer."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("length", ctypes.c_size_t),
        ("free", ctypes.c_void_p),
    ]


def library(with_scann):
    """The C API, with the ops of ScaNN if they are asked for."""
    folder = Path(PathFinder.find_spec("tensorflow").origin).parent
    ctypes.CDLL(folder / "libtensorflow_framework.so.2", mode=ctypes.RTLD_GLOBAL)
    api = ctypes.CDLL(folder / "libtensorflow_cc.so.2", mode=ctypes.RTLD_GLOBAL)
    for name in (
        *("NewStatus", "NewBuffer", "NewGraph", "NewSessionOptions", "LoadSessionFromSavedModel"),
        *("GraphOperationByName", "AllocateTensor", "TensorData", "LoadLibrary"),
        *("StringGetDataPointer",),
    ):
        getattr(api, f"TF_{name}").restype = ctypes.c_void_p
    api.TF_Message.restype = ctypes.c_char_p
    api.TF_StringGetSize.restype = api.TF_Dim.restype = ctypes.c_int64
    if with_scann:
        ops = Path(PathFinder.find_spec("scann").origin).parent / "scann_ops/cc/_scann_ops.so"
        call(api, api.TF_LoadLibrary, str(ops).encode())
    return api


def call(api, function, *arguments):
    """The result of a function that takes a status last; ValueError with the status's message."""
    status = pointer(api.TF_NewStatus())
    result = function(*arguments, status)
    if api.TF_GetCode(status):
        raise ValueError(api.TF_Message(status).decode())
    return result


def pointer(address):
    return ctypes.c_void_p(address)


def load(folder, with_scann=False):
    """A function from a signature and inputs to outputs."""
    api = library(with_scann)
    graph, described = pointer(api.TF_NewGraph()), pointer(api.TF_NewBuffer())
    tags = (ctypes.c_char_p * 1)(b"serve")
    options = pointer(api.TF_NewSessionOptions())
    load_session = api.TF_LoadSessionFromSavedModel
    arguments = (options, None, str(folder).encode(), tags, 1, graph, described)
    session = pointer(call(api, load_session, *arguments))
    buffer = ctypes.cast(described, ctypes.POINTER(Buffer)).contents
    signatures = read_signatures(ctypes.string_at(buffer.data, buffer.length))

    def output(name):
        operation, index = name.split(":")
        return Output(api.TF_GraphOperationByName(graph, operation.encode()), int(index))

    def run(signature, inputs):
        takes, gives = signatures[signature]
        count = len(gives)
        feeds = (Output * len(inputs))(*(output(takes[name][0]) for name in inputs))
        values = [to_tensor(api, value, takes[name][1]) for name, value in inputs.items()]
        fed = (ctypes.c_void_p * len(inputs))(*values)
        fetches = (Output * count)(*(output(name) for name, _ in gives.values()))
        fetched = (ctypes.c_void_p * count)()
        arguments = (feeds, fed, len(inputs), fetches, fetched, count, None, 0, None)
        call(api, api.TF_SessionRun, session, None, *arguments)
        return {name: to_array(api, each) for name, each in zip(gives, fetched, strict=True)}

    return run


def to_tensor(api, values, dtype):
    """A TF_Tensor: of strings along one axis, or of numbers along any."""
    values = np.asarray(values, object if dtype == STRING else DTYPES[dtype])
    size = STRING_BYTES * values.size if dtype == STRING else values.nbytes
    shape = (ctypes.c_int64 * values.ndim)(*values.shape)
    arguments = dtype, shape, values.ndim, ctypes.c_size_t(size)
    tensor = pointer(api.TF_AllocateTensor(*arguments))
    data = api.TF_TensorData(tensor)
    if dtype != STRING:
        ctypes.memmove(data, values.ctypes.data, size)
        return tensor
    for row, value in enumerate(values):
        content = value if isinstance(value, bytes) else value.encode()
        string = pointer(data + row * STRING_BYTES)
        api.TF_StringInit(string)
        api.TF_StringCopy(string, content, ctypes.c_size_t(len(content)))
    return tensor


def to_array(api, tensor):
    """A TF_Tensor as an array; of Python's bytes, if it holds strings."""
    tensor = pointer(tensor)
    shape = [api.TF_Dim(tensor, axis) for axis in range(api.TF_NumDims(tensor))]
    data, dtype = api.TF_TensorData(tensor), api.TF_TensorType(tensor)
    count = math.prod(shape)
    if dtype != STRING:
        kind = np.dtype(DTYPES[dtype])
        content = ctypes.string_at(data, count * kind.itemsize)
        return np.frombuffer(content, kind).reshape(shape)
    strings = [pointer(data + row * STRING_BYTES) for row in range(count)]
    values = np.empty(count, object)
    values[:] = [
        ctypes.string_at(api.TF_StringGetDataPointer(each), api.TF_StringGetSize(each))
        for each in strings
    ]
    return values.reshape(shape)


def read_signatures(meta_graph):
    """By signature: the inputs and the outputs, each by name with the tensor's name and dtype."""
    return {
        entry[1][0].decode(): [
            {
                tensor[1][0].decode(): (info[NAME][0].decode(), next(iter(info[DTYPE]), 0))
                for tensor in map(fields, fields(entry[2][0])[kind])
                for info in [fields(tensor[2][0])]
            }
            for kind in (INPUTS, OUTPUTS)
        ]
        for entry in map(fields, fields(meta_graph)[SIGNATURES])
    }


def fields(message):
    """The values of each field of a protocol buffer, by number; an entry of a map is a message with
    its key as field 1 and its value as field 2."""
    found = defaultdict(list)
    # To a message without fields of its own, every field is unknown.
    for field in UnknownFieldSet(Empty.FromString(message)):
        found[field.field_number].append(field.data)
    return found
