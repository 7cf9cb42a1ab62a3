"""Sparse CPU kernels: exported layers whose remaining zeros cost no time.

From the outside in: :mod:`backend`, :mod:`lowering` and :mod:`nodes` make regions of a graph's nodes;
:mod:`region` is the module that the graph then holds, :mod:`operators` the custom operator that it calls,
:mod:`program` the computation as data, :mod:`schedule` how a batch is divided, :mod:`plan` and :mod:`steps`
the computation for given sizes, :mod:`lanes` the layout, :mod:`packed` the weights, :mod:`native` and
:mod:`team` machine code and threads, and :mod:`code` the kernels.
"""
