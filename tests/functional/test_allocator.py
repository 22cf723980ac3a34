"""Memory that is kept."""

import os
import subprocess
import sys

import pytest

CODE = """
import resource, torch
from lightning_meta.functional.allocator import keep_freed_memory
print(keep_freed_memory())
x = torch.ones(2**22)
for _ in range(20):  # the heap may grow by one more tensor until all of them fit
    y = x + 1
    del y
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    y = x + 1
    del y
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it is a setting of glibc")
def test_freed_memory_is_used_again_unless_that_is_turned_off():
    def faults(setting):
        environment = os.environ | {"LIGHTNING_META_KEEP_MEMORY": setting}
        done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True, env=environment)
        kept, count = done.stdout.split()
        return kept == "True", int(count)

    kept, count = faults("1")
    assert kept
    assert count < 200  # 20 times 16 MiB are 81,920 pages
    assert not faults("0")[0]
