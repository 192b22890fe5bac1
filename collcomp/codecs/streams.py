"""Numbers of random streams."""

__all__ = ["random_key"]


def random_key(seed: int, stream: int) -> int:
    """One key for both; below 2**63, so that kernels are compiled for one integer type only."""
    return (seed * 0xD1B54A32D192ED03 + stream * 0x8CB92BA72F3D8DD7) & 0x7FFFFFFFFFFFFFFF
