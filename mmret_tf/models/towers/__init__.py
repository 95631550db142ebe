"""Towers (塔): `tower` is the interface, `head` their common end, and one file a modality."""
