"""Past one device (分布式计算, section 8.3): training on several devices and machines.

    gradient of a batch = sum over replicas of the gradients of their rows

Read `training` first.
"""
