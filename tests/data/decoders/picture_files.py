"""Pictures of every format, depth and mode, crafted, mutated, and compared with Pillow.

    python tests/data/decoders/picture_files.py --crafted 500 --mutated 10000

Each picture is refused by `decode_image`, or decoded within one level of Pillow. It prints the
numbers, and why pictures that Pillow opens were refused, and exits with 1 if one differs.
"""

import argparse
import collections
import io
import struct
import sys
import warnings
import zlib

import numpy as np
from PIL import Image, ImageFile, ImageOps

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")


def packed(values, bits):
    """Rows of numbers as bytes, highest bits first."""
    if bits == 16:
        return [row.astype(">u2").tobytes() for row in values]
    texts = ["".join(f"{value:0{bits}b}" for value in row) for row in values]
    texts = [text + "0" * (-len(text) % 8) for text in texts]
    return [int(text, 2).to_bytes(len(text) // 8, "big") for text in texts]


def exif_block(orientation, little=True):
    """An EXIF block with one entry, the orientation."""
    order = "<" if little else ">"
    head = b"II*\0" if little else b"MM\0*"
    return head + struct.pack(f"{order}IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def png_file(random, kind, depth, is_clear=False, orientation=None, late=False):
    """A PNG of a colour type (0, 2, 3, 4 or 6) and a depth; `is_clear` adds a tRNS chunk."""
    height, width = random.integers(1, 12, 2)
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    values = random.integers(0, 2**depth, (height, width * channels))

    def chunk(name, content):
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    chunks = [chunk(b"IHDR", header)]
    if kind == 3:
        chunks.append(chunk(b"PLTE", random.bytes(3 * 2**depth)))
    if is_clear and kind == 3:
        chunks.append(chunk(b"tRNS", random.bytes(int(random.integers(1, 2**depth + 1)))))
    elif is_clear and kind in (0, 2):
        chunks.append(chunk(b"tRNS", values[0, :channels].astype(">u2").tobytes()))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in packed(values, depth))))
    exif = [] if orientation is None else [chunk(b"eXIf", exif_block(orientation, depth != 8))]
    chunks += [pixels, *exif] if late else [*exif, pixels]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


def bmp_file(random, bits, header=40, is_top_down=False, masks=None, colours=None):
    """A BMP; `masks` of red, green, blue and alpha for 16 and 32 bits."""
    height, width = random.integers(1, 12, 2)
    colours = colours or 2 ** min(bits, 8)
    palette = b""
    if bits <= 8:
        entry = 3 if header == 12 else 4
        palette = random.bytes(entry * colours)
        rows = packed(random.integers(0, colours, (height, width)), bits)
    else:
        rows = [random.bytes(width * bits // 8) for _ in range(height)]
    pixels = b"".join(row + b"\0" * (-len(row) % 4) for row in rows)
    if header == 12:
        info = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        signed = -height if is_top_down else height
        listed = colours if bits <= 8 and colours < 2**bits else 0
        kind = 3 if masks else 0
        info = struct.pack("<IiiHHIIiiII", header, width, signed, 1, bits, kind, 0, 0, 0, listed, 0)
        masked = struct.pack("<IIII", *(masks or (0, 0, 0, 0)))
        if masks and header == 40:
            palette = masked[:12]
        info = (info + masked).ljust(header, b"\0")[:header]
    start = 14 + len(info) + len(palette)
    size = start + len(pixels)
    return b"BM" + struct.pack("<IHHI", size, 0, 0, start) + info + palette + pixels


def gif_file(random, is_clear=False, is_local=False, is_small=False, is_interlaced=False, frames=1):
    """A GIF of 2 to 8 bits; `is_small` has a frame that does not fill its screen."""
    bits = int(random.integers(1, 9))
    height, width = random.integers(1, 12, 2)
    left, top, right, bottom = random.integers(0, 4, 4) if is_small else (0, 0, 0, 0)
    screen = struct.pack("<HH", left + width + right, top + height + bottom)
    colours = random.bytes(3 * 2**bits)
    flags = 0 if is_local else 0x80 | (bits - 1)
    file = b"GIF89a" + screen + bytes([flags, 0, 0]) + (b"" if is_local else colours)
    code = max(bits, 2)
    for _ in range(frames):
        if is_clear:
            file += b"\x21\xf9\x04\x01\0\0" + bytes([random.integers(0, 2**bits)]) + b"\0"
        local = 0x80 | (bits - 1) if is_local else 0
        file += b"\x2c" + struct.pack("<HHHH", left, top, width, height)
        file += bytes([local | 0x40 * is_interlaced]) + (colours if is_local else b"")
        # Codes of one length: the table of the decoder is cleared before it grows.
        numbers, every = [], 2**code - 2
        for place, index in enumerate(random.integers(0, 2**bits, height * width)):
            numbers += [2**code] * (place % every == 0) + [int(index)]
        text = "".join(f"{number:0{code + 1}b}"[::-1] for number in [*numbers, 2**code + 1])
        text += "0" * (-len(text) % 8)
        data = bytes(int(text[at : at + 8][::-1], 2) for at in range(0, len(text), 8))
        blocks = [data[at : at + 255] for at in range(0, len(data), 255)]
        file += bytes([code]) + b"".join(bytes([len(each)]) + each for each in blocks) + b"\0"
    return file + b"\x3b"


def pillow_file(random, kind):
    """A JPEG or WebP with random settings, by Pillow."""
    mode = random.choice(["L", "RGB", "CMYK"] if kind == "JPEG" else ["RGB", "RGBA"])
    height, width = random.integers(1, 40, 2)
    noise = random.integers(0, 256, (4, 4, 4), np.uint8)
    image = Image.fromarray(noise, "RGBA").resize((width, height), Image.Resampling.BICUBIC)
    settings = {"quality": int(random.integers(20, 96))}
    if kind == "JPEG":
        settings |= {
            "progressive": bool(random.integers(2)),
            "subsampling": int(random.integers(3)),
        }
    else:
        settings |= {"lossless": bool(random.integers(2))}
    if random.integers(2):
        block = exif_block(int(random.integers(0, 10)), bool(random.integers(2)))
        settings["exif"] = b"Exif\0\0" + block
    file = io.BytesIO()
    image.convert(mode).save(file, kind, **settings)
    return file.getvalue()


MASKS_16 = ((0x7C00, 0x3E0, 0x1F, 0), (0xF800, 0x7E0, 0x1F, 0))
MASKS_32 = (
    (0xFF0000, 0xFF00, 0xFF, 0),
    (0xFF0000, 0xFF00, 0xFF, 0xFF000000),
    (0xFF000000, 0xFF0000, 0xFF00, 0xFF),
    (0xFF, 0xFF00, 0xFF0000, 0xFF000000),
)
PNG_KINDS = [(0, depth) for depth in (1, 2, 4, 8, 16)] + [(3, depth) for depth in (1, 2, 4, 8)]
PNG_KINDS += [(kind, depth) for kind in (2, 4, 6) for depth in (8, 16)]


def crafted(random):
    """One of all kinds of pictures: its name and its bytes."""

    def flag():
        return bool(random.integers(2))

    kind = random.choice(FORMATS)
    if kind == "PNG":
        colour, depth = PNG_KINDS[random.integers(len(PNG_KINDS))]
        orientation = int(random.integers(1, 9)) if flag() else None
        is_clear = flag()
        name = f"PNG of type {colour}, {depth} bits, tRNS {is_clear}, orientation {orientation}"
        return name, png_file(random, colour, depth, is_clear, orientation, flag())
    if kind == "BMP":
        bits = int(random.choice([1, 4, 8, 16, 24, 32]))
        header = int(random.choice([12, 40, 108, 124] if bits in (1, 4, 8, 24) else [40, 108, 124]))
        masks = None
        if bits == 16 and flag():
            masks = MASKS_16[random.integers(2)]
        elif bits == 32 and flag():
            masks = MASKS_32[random.integers(len(MASKS_32) if header > 40 else 1)]
        return f"BMP of {bits} bits, header {header}, masks {masks}", bmp_file(
            random, bits, header, header > 12 and flag(), masks
        )
    if kind == "GIF":
        options = {name: flag() for name in ("is_clear", "is_local", "is_small", "is_interlaced")}
        frames = int(random.integers(1, 3))
        return f"GIF {options}, {frames} frames", gif_file(random, **options, frames=frames)
    return str(kind), pillow_file(random, kind)


def mutated(random, contents):
    """The same file with some bytes changed, inserted, deleted or cut off."""
    contents = bytearray(contents)
    for _ in range(int(random.integers(1, 4))):
        at = int(random.integers(len(contents) + 1) * random.random() ** 2)  # headers more often
        change = random.integers(5)
        if change == 0:
            contents[at : at + 1] = random.bytes(1)
        elif change == 1:
            contents[at : at + 1] = (
                bytes([contents[at] ^ 1 << int(random.integers(8))]) if at < len(contents) else b""
            )
        elif change == 2:
            contents[at:at] = random.bytes(int(random.integers(1, 4)))
        elif change == 3:
            del contents[at : at + int(random.integers(1, 4))]
        elif random.random() < 0.3:
            del contents[at:]
    return bytes(contents)


def by_pillow(contents):
    """The picture as Pillow has it, float `[height, width, 3]`; None if it cannot open it."""
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(contents), formats=FORMATS)
            if image.width * image.height > 2**26:
                return None
            image.load()
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I;16"):
                return np.repeat(np.asarray(image, float)[:, :, None] / 257, 3, axis=2)
            levels = np.asarray(image.convert("RGBA"), float)
    except Exception:  # Pillow raises a dozen kinds
        return None
    alpha = levels[:, :, 3:] / 255
    return levels[:, :, :3] * alpha + 255 * (1 - alpha)


class Counts:
    """How pictures were taken.

    Attributes:
        taken: Number that both open, within one level of each other.
        lenient: Number that Pillow alone refuses.
        refused: Number that both refuse.
        reasons: Number of pictures that are refused here alone, by reason.
        wrong: Names and bytes of the pictures that differ.
    """

    def __init__(self):
        self.taken = self.lenient = self.refused = 0
        self.reasons = collections.Counter()
        self.wrong = []

    def add(self, name, contents):
        """Decode a picture in both ways and count it."""
        from mmret_tf.data.decoders.image import check_image, decode_image

        expected = by_pillow(contents)
        try:
            check_image(contents)
        except ValueError as reason:
            if expected is None:
                self.refused += 1
            else:
                self.reasons[str(reason)] += 1
            return
        found = decode_image(contents).numpy().astype(float)
        if expected is None:
            self.lenient += 1
        elif found.shape == expected.shape and np.abs(found - expected).max() <= 1:
            self.taken += 1
        else:
            self.wrong.append((name, contents))

    @property
    def share_refused(self):
        """Share of what Pillow opens that is refused here."""
        opened = self.taken + len(self.wrong) + sum(self.reasons.values())
        return sum(self.reasons.values()) / max(opened, 1)

    def __str__(self):
        lines = [
            f"{self.taken} equal within a level, {len(self.wrong)} different; "
            f"{self.refused} refused by both, {self.lenient} by Pillow alone; "
            f"{sum(self.reasons.values())} refused here alone ({self.share_refused:.2%})"
        ]
        lines += [f"  {count:5}  {reason}" for reason, count in self.reasons.most_common()]
        return "\n".join(lines + [f"  different: {name}" for name, _ in self.wrong[:20]])


def tried(n_crafted, n_mutated, seed=0):
    """Counts of crafted pictures, and of mutated ones."""
    random = np.random.default_rng(seed)
    whole, changed = Counts(), Counts()
    for _ in range(n_crafted):
        whole.add(*crafted(random))
    for _ in range(n_mutated):
        name, contents = crafted(random)
        changed.add(f"{name}, mutated", mutated(random, contents))
    return whole, changed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--crafted", type=int, default=500)
    parser.add_argument("--mutated", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    whole, changed = tried(options.crafted, options.mutated, options.seed)
    print(f"{options.crafted} crafted: {whole}")
    print(f"{options.mutated} mutated: {changed}")
    sys.exit(bool(whole.wrong or changed.wrong))


if __name__ == "__main__":
    main()
