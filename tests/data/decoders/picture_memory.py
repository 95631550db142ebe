"""Decode the largest pictures that are accepted, and measure the memory that each takes.

    python tests/data/decoders/picture_memory.py --side 8192

Each picture is decoded in a process of its own, after one of 8 pixels of the same format. Prints
the most bytes a pixel above the idle process, and exits with 1 if a picture takes more than 16.
"""

import argparse
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

MOST = 16  # bytes a pixel
OTHER_ORIENTATION = Image.Exif()
OTHER_ORIENTATION[0x0112] = 6

# Name of the file, its mode, and Pillow's settings.
PICTURES = {
    "rgba.png": ("RGBA", {"compress_level": 1}),
    "black_and_white.png": ("1", {"compress_level": 1}),
    "turned.jpg": ("RGB", {"exif": OTHER_ORIENTATION}),
    "transparent.gif": ("P", {"transparency": 3}),
    "32_bits.bmp": ("RGBA", {}),
    "24_bits.bmp": ("RGB", {}),
    "16_bits.bmp": ("", {}),
    "8_bits.bmp": ("L", {}),
    "1_bit.bmp": ("1", {}),
    "rgba.webp": ("RGBA", {"quality": 50, "method": 0}),
}

# Linux resets the peak on request.
DECODE = """
import sys
from pathlib import Path
from mmret_tf.data.decoders.image import check_image

def memory(name):
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split(name + ":")[1].split()[0])

small, large = (Path(path).read_bytes() for path in sys.argv[1:])
check_image(small)
idle = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
check_image(large)
print(memory("VmHWM") - idle)
"""


def bmp_of_16_bits(side):
    """Noise, in a form that Pillow does not write."""
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 16, 0, 0, 0, 0, 0, 0)
    noise = np.random.default_rng(0).bytes(2 * side * side)
    return b"BM" + struct.pack("<IHHI", 54 + len(noise), 0, 0, 54) + header + noise


def bytes_a_pixel(name, side):
    """The most memory that a picture of this side takes while it is decoded."""
    mode, settings = PICTURES[name]
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{each}_{name}") for each in (8, side)]
        for path, each in zip(paths, (8, side), strict=True):
            if not mode:
                path.write_bytes(bmp_of_16_bits(each))
                continue
            image = Image.fromarray(noise, "RGBA").resize((each, each))
            image.convert("RGB" if mode == "P" else mode).convert(mode).save(path, **settings)
        command = [sys.executable, "-c", DECODE, *map(str, paths)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1]) / side**2


def main(side, names=tuple(PICTURES)):
    """Print what each picture takes; return those that take too much."""
    taken = {name: bytes_a_pixel(name, side) for name in names}
    for name, each in taken.items():
        print(f"{name}: {each:.1f} bytes a pixel")
    return [name for name, each in taken.items() if each > MOST]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=8192)
    sys.exit(bool(main(parser.parse_args().side)))
