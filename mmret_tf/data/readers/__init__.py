"""Readers (读取): a file for each family of layouts; `reader` is their interface."""
