"""`python -m sparrowlm`, which is also what `torchrun -m sparrowlm` starts."""

import sys

from sparrowlm.cli import main

if __name__ == "__main__":
    sys.exit(main())
