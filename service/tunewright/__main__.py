"""`python -m tunewright` is the same as `tunewright`."""

import sys

from tunewright.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
