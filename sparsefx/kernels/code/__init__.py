"""The kernels, each a file that writes one function in LLVM's intermediate language."""
