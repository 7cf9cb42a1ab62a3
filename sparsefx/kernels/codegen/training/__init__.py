"""Kernels that a training step needs beside those of inference.

``combine`` computes what stands between convolutions, ``derivative`` its gradient, with the functions of
``activations``; ``statistics`` normalises by the batch; ``weight_gradient`` makes the gradients of weights,
``reorder`` puts weights in the order that a pass reads them in. ``images`` has the loops that they share.
"""
