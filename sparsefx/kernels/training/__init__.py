"""Sparse kernels for training: a region of a model, forward and backward, in lanes."""
