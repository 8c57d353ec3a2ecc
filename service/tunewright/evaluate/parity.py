"""`python -m tunewright.evaluate.parity FOLDER...`: what adapters change in transformers and peft, then exits.

In: the `spec.json` of each folder. Out: the `reference.json` of each, in this order; the base is loaded once for those
that follow each other on the same. Killed, it is just run again. Exit codes: 0 all are there; 2 a folder has no spec;
75 no device has room for the base; else it crashed over the first folder without a reference.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from setproctitle import setproctitle

from tunewright.evaluate.folder import NO_ROOM, ParityFolder


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tunewright.evaluate.parity", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="+", help="folder with a spec.json")
    folders = [ParityFolder(path.resolve()) for path in parser.parse_args().folder]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ["HF_HUB_OFFLINE"] = "1"  # the base is a folder: nothing is to be looked up
    # peft imports it where it is there, for 4-bit bases, which this is never about: a fifth of the whole run
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
    status, base = 0, None
    for folder in folders:
        try:
            spec = folder.read_spec()
        except (OSError, ValueError) as error:  # its adapter was deleted meanwhile, say
            print(f"{folder.spec_file}: not a spec: {error}", file=sys.stderr)
            status = 2
            continue
        setproctitle(f"tunewright: parity of {spec.adapter_id}")
        if folder.reference_file.exists():
            continue
        from tunewright.evaluate.reference import NoRoom, ReferenceBase

        if base is None or base.spec != spec.base:
            base = None  # before the next takes its room
            try:
                base = ReferenceBase(spec.base)
            except NoRoom as error:
                print(error, file=sys.stderr)
                return NO_ROOM
        reference = base.measure(spec)
        if folder.path.exists():  # else nobody waits for it any more
            folder.write_reference(reference)
    return status


if __name__ == "__main__":
    sys.exit(main())
