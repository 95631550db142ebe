"""Run requests through a SavedModel as TensorFlow Serving does: by its loader, in a session.

    python run_signatures.py EXPORT [scann] [c_api]

reads a list of requests from each line, JSON, and writes a line with the list of their answers. A
request is [signature, {input: [values]}], with a picture as {"b64": ...}; an answer is {output:
[values]} or {"error": message}. A request with a third part, a number of runs, is answered with
{"seconds": of each run}. The process cannot import this project, and has the ops of ScaNN only if
they are named. With `c_api` it cannot import TensorFlow either, and loads through its C API.
"""

import base64
import json
import sys
import time

if __name__ == "__main__":
    barred = {"mmret_tf", "scann", "tensorflow"} - {*sys.argv[2:]}
    for name in barred if "c_api" in sys.argv[2:] else barred - {"tensorflow"}:
        sys.modules[name] = None


def load(folder, with_scann=False):
    """A function from a signature and inputs to outputs; ValueError for what TensorFlow refuses."""
    if with_scann:
        import scann  # noqa: F401  registers its ops
    import tensorflow as tf

    v1 = tf.compat.v1
    session = v1.Session(graph=tf.Graph())
    with session.graph.as_default():
        loaded = v1.saved_model.loader.load(session, ["serve"], folder)

    def run(signature, inputs):
        definition = loaded.signature_def[signature]
        feeds = {definition.inputs[name].name: value for name, value in inputs.items()}
        fetches = {name: tensor.name for name, tensor in definition.outputs.items()}
        try:
            return session.run(fetches, feeds)
        except tf.errors.OpError as error:
            raise ValueError(str(error)) from None

    return run


def answer(run, signature, inputs, runs=0):
    """The answer to a request, in JSON's types."""
    inputs = {name: from_json(values) for name, values in inputs.items()}
    try:
        outputs = run(signature, inputs)
    except ValueError as error:
        return {"error": str(error)}
    if runs:
        clock = [time.perf_counter()]
        for _ in range(runs):
            run(signature, inputs)
            clock.append(time.perf_counter())
        return {"seconds": [end - start for start, end in zip(clock, clock[1:], strict=False)]}
    return {name: to_json(rows.tolist()) for name, rows in outputs.items()}


def from_json(values):
    return [base64.b64decode(value["b64"]) if type(value) is dict else value for value in values]


def to_json(value):
    if isinstance(value, list):
        return [to_json(part) for part in value]
    return value.decode() if isinstance(value, bytes) else value


if __name__ == "__main__":
    if "c_api" in sys.argv[2:]:
        from c_api import load
    run = load(sys.argv[1], "scann" in sys.argv[2:])
    for line in sys.stdin:
        print(json.dumps([answer(run, *request) for request in json.loads(line)]), flush=True)
