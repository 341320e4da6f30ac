"""How the scripts of this folder run."""

import sys
from collections.abc import Callable


def run(main: Callable[[], object]) -> None:
    """Run a script's `main`; Ctrl-C ends it with one line and the status that shells expect."""
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
