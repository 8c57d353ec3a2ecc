"""`python -m tunewright.scheduler`: see `tunewright.scheduler.main`."""

import gc
import sys

if __name__ == "__main__":
    # Until `main` has frozen what it holds, the collector would look at all that is imported, again and again: a
    # seventh of the start.
    gc.disable()
    from tunewright.scheduler.main import main

    sys.exit(main())
