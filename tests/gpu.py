"""Whether there is a GPU to test on."""

import ctypes

__all__ = ["has_gpu"]


def has_gpu() -> bool:
    """Whether a CUDA device can be used."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int()
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
