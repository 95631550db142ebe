"""Past one device (分布式计算, section 8.3): training, embedding and search on several machines.

    gradient of a batch = sum over replicas of the gradients of their rows
    the k best of a gallery = the k best among the k best of its shards

Read `training` first, then `sharded_index`. `scale/README.md` says what it costs.
"""
