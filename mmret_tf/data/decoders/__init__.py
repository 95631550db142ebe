"""Decoders (解码): encoded bytes to tensors, and what users hold to encoded bytes."""
