"""One job's own process: `python -m tunewright.trainer JOB_DIR`.

Knows its job folder and nothing of the API or the store. In: `spec.json`. Out: `events.jsonl` (append-only),
`checkpoints/step-N/`, `adapter/` or `model/`, and last `result.json`. Importing this package must not import torch:
the scheduler shares `jobs.folder`.
"""
