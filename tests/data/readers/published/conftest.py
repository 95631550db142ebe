"""Small sounds and videos, as files of a collection."""

import numpy as np
import pytest

from mmret_tf.data.decoders.sounds import encode_wav

RATE = 8000


@pytest.fixture
def beep():
    """A function that writes a sound of a tenth of a second, of a pitch in Hz, in the format of the
    file's suffix."""

    def write(path, pitch=440):
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = 0.5 * np.sin(2 * np.pi * pitch * np.arange(RATE // 10) / RATE)
        if path.suffix == ".wav":
            path.write_bytes(encode_wav(samples, RATE))
        else:
            reason = 'needs pip install "mmret_tf[audio]"'
            pytest.importorskip("soundfile", reason=reason).write(path, samples, RATE)
        return path

    return write


@pytest.fixture
def film():
    """A function that writes a video of three frames of one grey level, in the format of the file's
    suffix."""
    av = pytest.importorskip("av", reason='needs pip install "mmret_tf[video]"')

    def write(path, level=128):
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width = stream.height = 32
            stream.pix_fmt = "yuv420p"
            for _ in range(3):
                pixels = np.full((32, 32, 3), level, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
        return path

    return write
