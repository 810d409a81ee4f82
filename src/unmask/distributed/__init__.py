"""Tensor parallelism: sharded models, the control channel between ranks, replicated stores."""
