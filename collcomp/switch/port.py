"""A communicator's way to its switch: joined when it is first needed."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from collcomp.errors import DeadlineError, FrameError, TransportError

if TYPE_CHECKING:
    from collcomp.switch.client import SwitchClient

__all__ = ["SwitchPort"]


class SwitchPort:
    """Where a rank's operations through a switch go out.

    Parameters
    ----------
    address : str
        ``"HOST:PORT"`` of a switch.
    rank, size : int
    """

    def __init__(self, address: str, rank: int, size: int) -> None:
        self.address = address
        self._rank = rank
        self._size = size
        self._client: SwitchClient | None = None

    def client(
        self, share: Callable[[np.ndarray], None], *, deadline: float, check: Callable[[], None]
    ) -> SwitchClient:
        """The connection; collective when it is first asked for.

        `share` gives all ranks the number that an int64 array of one element has on rank 0.
        """
        if self._client is None:
            from collcomp.switch.client import SwitchClient  # sockets and all: few programs need it

            number = np.array([secrets.randbits(62) + 1], np.int64)
            share(number)
            job = int(number[0])
            self._client = SwitchClient(self.address, job, self._rank, self._size, deadline=deadline, check=check)
        return self._client

    def give_up(self, epoch: int, error: BaseException) -> None:
        """Leave operation `epoch`, which fails on all ranks.

        Where the connection is lost, the next operation joins anew, on all ranks: those that only heard of it do too.
        So it does after the first operation, of which some ranks may have heard before they had joined.
        """
        if self._client is None:
            return
        own = not isinstance(error, FrameError)  # which says already who is to blame
        self._client.give_up(epoch, f"rank {self._rank} gave up: {_described(error)}" if own else str(error))
        late = isinstance(error, DeadlineError)  # the next operation may find everybody
        lost = not late and f"{TransportError.__name__}: " in _described(error)
        if lost or not self._client.proven:
            self.close()

    def close(self) -> None:
        """Leave the switch."""
        if self._client is not None:
            self._client.close()
            self._client = None


def _described(error: BaseException) -> str:
    """An error as the other ranks are told of it."""
    return f"{type(error).__name__}: {error}"
