"""Run the `kwise` command as `python -m kwise`."""

import sys

from kwise.cli import main

if __name__ == "__main__":
    sys.exit(main())
