"""How one pool of replicas serves a mix of classes: the step model and queueing, put together.

Both the candidate table and the verification call these functions; neither calls the other.
"""
