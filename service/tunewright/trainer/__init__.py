"""The process of one fine-tuning job: `python -m tunewright.trainer JOB_DIR`.

It knows its job folder, but neither the API nor the store. It reads `spec.json` and writes `events.jsonl`
(append-only), `checkpoints/step-N/`, `adapter/` or `model/`, and finally `result.json`. Importing this package must not
import torch: other processes import its `spec`.
"""
