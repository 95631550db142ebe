"""Formats of pictures (图像格式), one file each: header, limits and decoding.

Everything is TensorFlow ops, so that one definition serves training, Python and the exported graph.
Pillow is the truth: a file decodes as `ImageOps.exif_transpose` of it over white, within one level,
or it is refused with a reason. Each module has `decode(contents, data)`: from the bytes, as
a string and as numbers, to the picture as it is stored, uint8 `[height, width, channels]`, and the
position of its EXIF block.
"""
