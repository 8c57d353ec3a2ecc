"""`python -m tunewright.evaluate.parity FOLDER`: what an adapter changes in transformers and peft, then exits.

In: `spec.json`. Out: `reference.json`, written last. Killed, it is just run again. Exit codes: 0 it is there; 2 the
folder has no spec; 75 no device has room for the base; else it crashed.
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
    parser.add_argument("folder", type=Path, help="folder with a spec.json")
    folder = ParityFolder(parser.parse_args().folder.resolve())
    try:
        spec = folder.read_spec()
    except (OSError, ValueError) as error:
        print(f"{folder.spec_file}: not a spec: {error}", file=sys.stderr)
        return 2
    setproctitle(f"tunewright: parity of {spec.adapter_id}")
    if folder.read_reference() is not None:
        return 0
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ["HF_HUB_OFFLINE"] = "1"  # the base is a folder: nothing is to be looked up
    # peft imports it where it is there, for 4-bit bases, which this is never about: a fifth of the whole run
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
    from tunewright.evaluate.reference import NoRoom, measure

    try:
        folder.write_reference(measure(spec))
    except NoRoom as error:
        print(error, file=sys.stderr)
        return NO_ROOM
    return 0


if __name__ == "__main__":
    sys.exit(main())
