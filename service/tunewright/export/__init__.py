"""An export's own process: `python -m tunewright.export JOB_DIR`.

Makes new weights out of weights, without training: it combines adapters, merges them into their base, quantizes, and
measures what was lost on the way. Knows its job folder and nothing of the API or the store. In: `spec.json`. Out:
`events.jsonl`, `model/` or `adapter/`, and last `result.json`. Importing this package must not import torch: the
scheduler shares `export.folder`.
"""
