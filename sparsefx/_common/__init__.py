"""Small things that the whole library shares and that know nothing of models.

Values and their checks (:mod:`values`, :mod:`inputs`), tables of named parts (:mod:`registry`), text
tables (:mod:`table`), and how a density is spread over layers (:mod:`distributions`). Imports errors
only.

To add a distribution: a function ``(shapes, density) -> densities`` and its row in ``distributions``.
"""
