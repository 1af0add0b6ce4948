"""A meter: CPU seconds, wall seconds and peak memory of one piece of work in this process.

CPU time is what is compared: it is user plus system time, so page faults count, and it hardly
depends on what else the machine is doing. Peak memory is the high-water mark of resident memory,
reset when the work begins; what is resident then is what loading took.
"""

from __future__ import annotations

import gc
import resource
import time


class Meter:
    """Measures a `with` block; `figures` holds what was found, seconds and MiB."""

    def __enter__(self) -> Meter:
        gc.collect()  # what loading left behind is not collected on the work's time
        try:
            with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
                file.write("5")  # the high-water mark starts again from what is resident now
        except OSError:
            pass
        self.before = resident()
        self.usage, self.clock = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        wall = time.perf_counter() - self.clock
        usage, after = resource.getrusage(resource.RUSAGE_SELF), resident()
        user = usage.ru_utime - self.usage.ru_utime
        system = usage.ru_stime - self.usage.ru_stime
        self.figures = {
            "cpu_s": user + system,
            "user_s": user,
            "system_s": system,
            "wall_s": wall,
            "page_faults": usage.ru_minflt - self.usage.ru_minflt,
            "loaded_mib": self.before["VmRSS"],
            "peak_mib": after["VmHWM"],
            "above_loading_mib": after["VmHWM"] - self.before["VmRSS"],
            "files_mapped_mib": after["RssFile"] - self.before["RssFile"],
        }


def resident() -> dict[str, float]:
    """Resident memory in MiB: now (VmRSS), at most (VmHWM), of it mapped files (RssFile)."""
    with open("/proc/self/status", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    return {name: int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM", "RssFile")}
