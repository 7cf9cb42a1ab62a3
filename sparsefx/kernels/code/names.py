"""Names of the activations that kernels know."""

FUNCTION_NAMES = (*("identity", "sigmoid", "tanh", "silu", "gelu", "gelu_tanh", "hardsigmoid", "hardswish"),)
