"""The process of one export: `python -m tunewright.export JOB_DIR`.

It makes new weights from existing ones, without training: it combines adapters, merges them into their base, quantizes,
and measures the loss of quality. It knows its job folder, but neither the API nor the store. It reads `spec.json` and
writes `events.jsonl`, `model/` or `adapter/`, and finally `result.json`. Importing this package must not import torch:
other processes import `export.folder`.
"""
