"""`python -m m3_simulation --seeds 1-200`; see `campaign`."""

import sys

from m3_simulation.campaign import main

if __name__ == "__main__":
    sys.exit(main())
