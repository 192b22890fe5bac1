"""Write frozen frames of new codecs: ``python tests/codecs/freeze.py SPEC ...``. Existing ones are left as they are."""

import sys
from pathlib import Path

import numpy as np
from checks import WORKING, decode, frozen_name, normal

from collcomp.codecs import as_codec
from collcomp.frame import Frame

FOLDER = Path(__file__).parent.parent / "fixtures"


def freeze(spec, dtype):
    """The frame's length, the frame, and what it decodes to, of values some of which are zero, NaN or infinite."""
    path, codec = FOLDER / frozen_name(spec, dtype), as_codec(spec)
    if path.exists():
        print(f"{path.name} is there already")
        return
    x = normal(1000, dtype)
    x[::3] = 0
    x[[700, 701]] = np.nan, np.inf
    buffer = np.zeros(codec.max_encoded_nbytes(x.size, x.dtype), np.uint8)
    stored = buffer[: codec.encode(x, buffer)]
    decoded = decode(codec, Frame.read(stored), dtype)
    path.write_bytes(np.int64(stored.size).tobytes() + stored.tobytes() + decoded.tobytes())
    print(f"{path.name}: {stored.size} bytes")


if __name__ == "__main__":
    for spec in sys.argv[1:]:
        for dtype in WORKING:
            freeze(spec, dtype)
