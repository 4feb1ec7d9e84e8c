"""`python -m glue_bench`: the command line."""

import sys

from glue_bench.cli import main

if __name__ == "__main__":
    sys.exit(main())
