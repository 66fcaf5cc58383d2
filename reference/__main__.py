"""`python -m reference REQUEST.json`: one stage of a run."""

import sys

from reference.stage import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
