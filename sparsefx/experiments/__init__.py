"""The experiments of the papers: their networks, data and recipes.

Only this package knows of papers. Nothing else in sparsefx imports it, and what it does with a model
any user could do with the public functions.
"""
