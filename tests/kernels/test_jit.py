"""The cache of compiled kernels: it notices every change of a source, and is not needed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import collcomp.kernels.cpu
from collcomp.kernels.cpu.jit import source_stamp

FOLDER = Path(collcomp.kernels.cpu.__file__).parent
ENCODE = """
import sys
import numpy as np
sys.path.insert(0, {parent!r})
from collcomp.kernels.cpu import casts
codes = np.empty(1, np.uint16)
casts.encode(np.ones(1, np.float32), codes, None)
print(codes[0], sum(casts.encode.stats.cache_hits.values()))
"""


def encode_one(sources, **environment):
    """The float16 code of 1.0 and the cache hits, from the kernels in a copy of the sources."""
    code = ENCODE.format(parent=str(sources.parents[2]))
    variables = {**os.environ, **environment}
    run = subprocess.run([sys.executable, "-c", code], env=variables, check=True, capture_output=True, text=True)
    return tuple(map(int, run.stdout.split()))


def copy_of_sources(folder):
    """A package with the kernels and nothing else, found first where `folder` is the first to be searched."""
    kernels = folder / "collcomp" / "kernels"
    shutil.copytree(FOLDER, kernels / "cpu", ignore=shutil.ignore_patterns("__pycache__"))
    for package in (kernels, kernels.parent):
        (package / "__init__.py").touch()
    return kernels / "cpu"


def cache_folders(sources):
    return [path.name for path in (sources / "__pycache__").iterdir() if path.is_dir()]


def test_an_edited_helper_is_noticed(tmp_path):
    sources = copy_of_sources(tmp_path)
    assert encode_one(sources) == (0x3C00, 0)
    assert encode_one(sources) == (0x3C00, 1)
    helper = sources / "bits.py"
    source = helper.read_text()
    changed = source.replace("_c32(0x7C00), h)", "_c32(0x7C01), h)").replace("_c32(0x477FF000)", "_c32(0)")
    assert changed != source
    helper.write_text(changed)
    (before,) = cache_folders(sources)
    assert encode_one(sources) == (0x7C01, 0)
    # Compiled code of other sources is gone: no process can take it for that of these.
    (after,) = cache_folders(sources)
    assert after != before


def test_works_where_nothing_can_be_written(tmp_path):
    sources = copy_of_sources(tmp_path)
    (sources / "__pycache__").write_text("a file where the folder would be")
    (tmp_path / "home").write_text("no folder either")
    nowhere = str(tmp_path / "home")
    assert encode_one(sources, HOME=nowhere, XDG_CACHE_HOME=nowhere, PYTHONDONTWRITEBYTECODE="1") == (0x3C00, 0)


def test_stamp_covers_all_sources(tmp_path):
    copy_of_sources(tmp_path)
    before = source_stamp(tmp_path)
    assert before == source_stamp(tmp_path)
    for path in sorted(tmp_path.rglob("*.py")):
        path.write_text(path.read_text() + "\n")
        assert source_stamp(tmp_path) != before
        before = source_stamp(tmp_path)
