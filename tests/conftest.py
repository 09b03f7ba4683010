"""The programs of tests run once or twice: they are compiled for that, and not for speed."""

import os

os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
