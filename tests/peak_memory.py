"""The peak of this process's memory."""

import sys


def peak_memory() -> int:
    """Return the peak in KiB; always 0 on Windows, which does not tell it."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak >> 10 if sys.platform == "darwin" else peak  # macOS counts bytes
