"""Names of what kernels compute element by element."""

OPERATION_NAMES = ("add", "multiply", "maximum")

FUNCTION_NAMES = (
    *("identity", "sigmoid", "tanh", "silu", "mish", "gelu", "gelu_tanh", "elu"),
    *("hardsigmoid", "hardswish", "square", "cube"),
)
