"""Settings that every test runs under."""

import gc

import pytest

# What torch 2.6 says of itself; of every later version a warning is an error.
_OF_TORCH_2_6 = (
    "<class 'torch.utils.checkpoint._NoopSaveInputs'> should not be instantiated",
    "Graph break due to unsupported builtin",
    "torch.distributed is unavailable or uninitialized",
    "TypedStorage is deprecated",
)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return  # this process only hands tests to others, which wait until it has begun
    import properties
    import torch

    # The tests' tensors are small: a second thread costs more than it brings.
    torch.set_num_threads(1)
    properties.all_examples = "not slow" not in config.getoption("markexpr")
    if torch.__version__ < "2.7":
        for message in _OF_TORCH_2_6:
            config.addinivalue_line("filterwarnings", f"ignore:{message}")


def pytest_collection_finish() -> None:
    """What is imported by now stays: the garbage collector need not look at it again and again."""
    gc.collect()
    gc.freeze()
