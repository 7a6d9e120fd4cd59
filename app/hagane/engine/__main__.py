"""The engine as a program: `python -m hagane.engine FD` (see `hagane.engine.loop`)."""

import gc
import sys

# A start makes no garbage: collections would look through all that torch's import makes, again and
# again. The loop turns them on.
gc.disable()

from hagane.engine.loop import main  # noqa: E402

if __name__ == "__main__":
    main(int(sys.argv[1]))
