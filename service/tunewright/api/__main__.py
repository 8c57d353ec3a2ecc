"""`python -m tunewright.api --fd N`: see `tunewright.api.http.process`."""

import gc
import sys

if __name__ == "__main__":  # LitServe's worker imports this module too, and does not need the api
    # Until `main` has frozen what it holds, the collector would look at all that is imported, again and again: a sixth
    # of the start.
    gc.disable()
    from tunewright.api.http.process import main

    sys.exit(main())
