"""``python -m pruning …``, and so ``accelerate launch -m pruning …``."""

import sys

from pruning.cli import main

if __name__ == "__main__":
    sys.exit(main())
