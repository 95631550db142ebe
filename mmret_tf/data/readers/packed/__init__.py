"""Rows that hold their pictures (打包数据): tar shards, Parquet, TFRecord, datasets in memory.

Pictures in files stay there, and are read when they are needed. `rows` turns a row into an item.
"""
