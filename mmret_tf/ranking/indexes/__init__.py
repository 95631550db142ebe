"""Indexes (索引): exact search, and ScaNN with its tuning. `ranking.index` is their interface."""
