"""Run requests through a SavedModel as TensorFlow Serving does: by the V1 loader, in a V1 session.

    python run_signatures.py EXPORT [scann]

reads a list of requests from each line, JSON, and writes a line with the list of their answers. A
request is [signature, {input: [values]}], with a picture as {"b64": ...}; an answer is {output:
[values]} or {"error": message}. A request with a third part, a number of runs, is answered with
{"seconds": of each run}. The process cannot import this project, and ScaNN only if it is named.
"""

import base64
import json
import sys
import time

if __name__ == "__main__":
    sys.modules["mmret_tf"] = None
    if "scann" in sys.argv[2:]:
        import scann  # noqa: F401  registers its ops
    else:
        sys.modules["scann"] = None

import tensorflow as tf  # noqa: E402

v1 = tf.compat.v1


def load(folder):
    """A function from a signature and inputs to outputs."""
    session = v1.Session(graph=tf.Graph())
    with session.graph.as_default():
        loaded = v1.saved_model.loader.load(session, ["serve"], folder)

    def run(signature, inputs):
        definition = loaded.signature_def[signature]
        feeds = {definition.inputs[name].name: value for name, value in inputs.items()}
        fetches = {name: tensor.name for name, tensor in definition.outputs.items()}
        return session.run(fetches, feeds)

    return run


def answer(run, signature, inputs, runs=0):
    """The answer to a request, in JSON's types."""
    inputs = {name: from_json(values) for name, values in inputs.items()}
    try:
        outputs = run(signature, inputs)
    except (tf.errors.OpError, ValueError) as error:
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
    run = load(sys.argv[1])
    for line in sys.stdin:
        print(json.dumps([answer(run, *request) for request in json.loads(line)]), flush=True)
