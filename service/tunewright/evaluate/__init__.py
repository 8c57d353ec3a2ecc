"""Measures adapters and exported models, in processes of their own.

`parity` is the reference process of the parity check: `python -m tunewright.evaluate.parity FOLDER`. It reads
`spec.json` and writes `reference.json`. Importing this package must not import torch: the scheduler imports `folder`
and `compare`.
"""
