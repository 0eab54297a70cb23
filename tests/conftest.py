"""What makes the whole suite cheaper; no test sees any of it."""

import gc
import os
import sys

# Tests are rewritten by pytest before they run, and commands are started as programs: compiled once, not every time.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

gc.disable()  # until all tests are found: nothing of what is imported is garbage


def pytest_collection_finish():
    """What is there before the first test stays to the end, and need not be searched for garbage again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)  # libraries that load later are many objects too
    gc.enable()
