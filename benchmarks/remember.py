"""Have fluxsmith remember the hashes of files: `python -m benchmarks.remember FILE ...`."""

import sys
from pathlib import Path

from fluxsmith.engine.input_hashes import InputHashes
from fluxsmith.io.checkpoint import local_file

if __name__ == "__main__":
    InputHashes([local_file(Path(name)) for name in sys.argv[1:]]).wait()
