"""Caches (缓存) of what frozen layers give: features for a head, regions for a re-ranker (8.1)."""
