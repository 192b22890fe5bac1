"""What is known of devices where there is none."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
from device import to_device, to_host

from collcomp import devices

WITHOUT = """
import sys
sys.modules["cupy"] = sys.modules["numba.cuda"] = None  # importing either fails
"""


def run(program):
    done = subprocess.run([sys.executable, "-c", WITHOUT + textwrap.dedent(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_of_cuda_is_needed():
    run(
        """
        import numpy as np, collcomp, collcomp.kernels
        def main(comm):
            total = np.empty(1000, np.float32)
            comm.allreduce(np.ones(1000, np.float32), total, codec="int8")
            return total.sum()
        assert collcomp.local.run(2, main) == [2000, 2000]
        """
    )


def test_a_buffer_on_a_device_says_what_to_install():
    printed = run(
        """
        import collcomp
        class Buffer:
            __cuda_array_interface__ = {"shape": (4,), "typestr": "<f4", "data": (0, False), "version": 3}
        def main(comm):
            try:
                comm.allreduce(Buffer(), Buffer(), codec="int8")
            except TypeError as error:
                return str(error)
        print(collcomp.local.run(1, main)[0])
        """
    )
    assert printed.startswith("recvbuf: the buffer is on a CUDA device; device: 'cuda' needs CuPy")
    assert "pip install 'collcomp[cuda13]'" in printed


def test_what_is_counted_is_counted_once():
    to_device(np.zeros(1, np.int32))
    devices.counters()[1] = np.int32(7)
    assert devices.read()[1] == 7
    assert devices.read() == [0, 0, 0, 0]


def test_copies():
    x = np.arange(5.0)
    device = devices.to_device(x)
    back = np.empty(5)
    devices.to_host(device, back)
    assert np.array_equal(back, x)
    assert np.array_equal(to_host(devices.like(x, device)), x)
    assert devices.like(x, x) is x
    assert devices.device_of(device) == "cuda:0"
    assert not devices.share_memory(device, x)
    assert devices.share_memory(device, device[2:])
    with pytest.raises(TypeError, match="Implicit conversion"):
        np.asarray(device)
