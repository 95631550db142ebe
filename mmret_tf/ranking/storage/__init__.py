"""Embeddings on disk (嵌入存储): written in chunks, resumed after a kill, checked when opened."""
