"""Readers (读取): a file for each family of layouts; `reader` is their interface.

Readers of rows that hold pictures are in `packed/`, those of published sets in `published/`.
"""
