"""`python -m tunewright.engine.server MODULE ARGUMENT...`: runs an inference server as `python -m MODULE` does, with
less processor time for its start.

vLLM's server imports over ten thousand modules. Python's garbage collector examines their objects again and again, in
the server and in the processes that it forks, and finds nothing: here it is off meanwhile, and leaves them alone
afterwards.
"""

from __future__ import annotations

import gc
import runpy
import sys
from importlib import import_module


def main() -> None:
    module = sys.argv[1]
    del sys.argv[0]
    gc.disable()
    import_module(module)
    gc.freeze()
    gc.enable()
    del sys.modules[module]  # runpy would warn that it is there
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
