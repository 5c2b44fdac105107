"""How many cores this process may use."""

import os
import sys


def usable_cores() -> int:
    """Cores of the machine, or fewer where Linux keeps this process to some of them; at least 1."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
