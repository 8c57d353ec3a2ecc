"""`python -m tunewright.export JOB_DIR`: runs or resumes the export in a folder, then exits."""

from __future__ import annotations

import sys

from tunewright.export.folder import ExportSpec
from tunewright.imports import quick_imports
from tunewright.jobs.folder import JobFolder
from tunewright.jobs.process import run_in_folder


def _run(folder: JobFolder, spec: ExportSpec) -> int:
    with quick_imports():
        from tunewright.export.run import run_export

    return run_export(folder, spec)


if __name__ == "__main__":
    sys.exit(
        run_in_folder("tunewright.export", __doc__, ExportSpec, lambda spec: f"export {spec.job_id}", _run)
    )
