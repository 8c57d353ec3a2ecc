"""Measures what was made, each measurement in a process of its own.

`parity` is the reference side of the parity check: `python -m tunewright.evaluate.parity FOLDER`. In: `spec.json`. Out:
`reference.json`. Importing this package must not import torch: the scheduler shares `folder` and `compare`.
"""
