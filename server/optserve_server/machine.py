"""What this machine has."""

import os
from pathlib import Path


def memory_bytes() -> int:
    """The memory that this process may use: the machine's, or its control group's if that is less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    group = Path("/sys/fs/cgroup/memory.max")
    text = group.read_text().strip() if group.is_file() else "max"
    return min(machine, int(text) if text.isdigit() else machine)
