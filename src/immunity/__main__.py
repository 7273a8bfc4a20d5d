"""`python -m immunity`, and `accelerate launch -m immunity` for several processes."""

import sys

from immunity.cli import main

if __name__ == "__main__":
    sys.exit(main())
