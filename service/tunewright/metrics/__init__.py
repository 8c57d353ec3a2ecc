"""Figures of a model's answers, compared with the answers that were expected: pure functions of texts and numbers.

`names` and `auto` know no numpy; the rest does. Imports nothing of the service.
"""
