"""Profiles the api of a benchmarked service: SIGUSR1 begins, and SIGUSR2 writes the numbers to `BENCH_PROFILE`."""

import os
import sys

if "BENCH_PROFILE" in os.environ and "tunewright.api" in sys.orig_argv:
    import cProfile
    import signal
    import time

    _profile = cProfile.Profile(time.thread_time)  # of the event loop's thread

    def _end(*_: object) -> None:
        _profile.disable()
        _profile.dump_stats(os.environ["BENCH_PROFILE"])

    signal.signal(signal.SIGUSR1, lambda *_: _profile.enable())
    signal.signal(signal.SIGUSR2, _end)
