"""A rank as a program: `python -m hagane.engine.parallel FD` (see `follower`)."""

import gc
import sys

# As in `hagane.engine`.
gc.disable()

from hagane.engine.parallel.follower import main  # noqa: E402

if __name__ == "__main__":
    main(int(sys.argv[1]))
