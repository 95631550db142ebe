"""Published sets (公开数据集): a file for each family, read as they are distributed.

Chinese captions of photographs, sounds, videos, and the stamps of Tux Paint.
"""
