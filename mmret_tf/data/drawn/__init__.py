"""Drawn data (合成数据): scenes and composed queries that need no download."""
