"""Settings that every test runs under."""

import torch

# The tests' tensors are small: a second thread costs more than it brings.
torch.set_num_threads(1)
