"""`python -m tunewright.api --fd N`: see `tunewright.api.http.process`."""

import sys

if __name__ == "__main__":  # LitServe's worker imports this module too, and does not need the api
    from tunewright.api.http.process import main

    sys.exit(main())
