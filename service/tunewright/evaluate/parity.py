"""`python -m tunewright.evaluate.parity FOLDER...`: measures what adapters change in transformers and peft, then exits.

It reads `spec.json` and writes `reference.json` in each folder, in the given order. The base is loaded once for
successive adapters on it. After a kill it is run again. Exit codes: 0 every folder has its reference; 2 a folder has no
spec; 75 no device has room for the base; any other: it crashed on the first folder without a reference.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from setproctitle import setproctitle

from tunewright.evaluate.folder import NO_ROOM, ParityFolder
from tunewright.imports import prepare_environment, quick_imports


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tunewright.evaluate.parity", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="+", help="folder with a spec.json")
    folders = [ParityFolder(path.resolve()) for path in parser.parse_args().folder]
    prepare_environment()
    status, base = 0, None
    needs_four_bits = any(map(_needs_four_bits, folders))
    for folder in folders:
        try:
            spec = folder.read_spec()
        except (OSError, ValueError) as error:  # its adapter may have been deleted
            print(f"{folder.spec_file}: not a spec: {error}", file=sys.stderr)
            status = 2
            continue
        setproctitle(f"tunewright: parity of {spec.adapter_id}")
        if folder.reference_file.exists():
            continue
        with quick_imports(four_bits=needs_four_bits):
            from tunewright.evaluate.reference import NoRoom, ReferenceBase

        if base is None or base.spec != spec.base:
            base = None  # free its memory before the next is loaded
            try:
                base = ReferenceBase(spec.base)
            except NoRoom as error:
                print(error, file=sys.stderr)
                return NO_ROOM
        reference = base.measure(spec)
        if folder.path.exists():  # else the check was cancelled
            folder.write_reference(reference)
    return status


def _needs_four_bits(folder: ParityFolder) -> bool:
    try:
        return folder.read_spec().four_bit
    except (OSError, ValueError):
        return False


if __name__ == "__main__":
    sys.exit(main())
