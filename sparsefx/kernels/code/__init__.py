"""The kernels, each a file that writes one function in LLVM's intermediate language."""

LANES = 16
"""Values that one instruction computes with: a vector of AVX-512; on narrower machines LLVM takes several."""

VECTOR_BYTES = 4 * LANES
