"""Ranks as threads: what every transport has to do, without MPI."""

import numpy as np
import pytest

from collcomp.errors import FrameError
from collcomp.transports import local_transports


def message(nbytes, value=1):
    return np.full(nbytes, value, np.uint8)


@pytest.mark.parametrize("nbytes", [0, 1, 1000, 65536, 65537, 1 << 20])
@pytest.mark.parametrize("receive_first", [True, False])
def test_bytes_arrive(nbytes, receive_first):
    a, b = local_transports(2)
    buffer = np.zeros(nbytes + 5, np.uint8)
    if receive_first:
        receive = b.irecv(buffer, 0, 7)
        assert b.wait_some([receive], 0) == []
        send = a.isend(message(nbytes), 1, 7)
    else:
        send = a.isend(message(nbytes), 1, 7)
        receive = b.irecv(buffer, 0, 7)
    assert b.wait_some([receive], 1) == [0]
    assert a.wait_some([send], 1) == [0]
    assert receive.data.tobytes() == bytes([1] * nbytes)
    assert (receive.source, receive.tag) == (0, 7)
    assert not buffer[nbytes:].any()


def test_order_and_tags():
    a, b = local_transports(2)
    for tag, value in ((1, 10), (2, 20), (1, 11), (2, 21)):
        a.isend(message(3, value), 1, tag)
    receives = [b.irecv(np.zeros(3, np.uint8), 0, tag) for tag in (2, 1, 1, 2)]
    assert b.wait_some(receives, 1) == [0, 1, 2, 3]
    assert [receive.data[0] for receive in receives] == [20, 10, 11, 21]


def test_small_messages_are_copies():
    """A sender may use its memory again once the send is complete."""
    a, b = local_transports(2)
    data = message(100)
    send = a.isend(data, 1, 0)
    assert a.wait_some([send], 0) == [0]
    data[...] = 9
    receive = b.irecv(np.zeros(100, np.uint8), 0, 0)
    assert (receive.data == 1).all()


def test_large_messages_wait_for_their_receiver():
    a, b = local_transports(2)
    send = a.isend(message(1 << 20), 1, 0)
    assert a.wait_some([send], 0) == []
    b.irecv(np.zeros(1 << 20, np.uint8), 0, 0)
    assert a.wait_some([send], 1) == [0]


@pytest.mark.parametrize("receive_first", [True, False])
def test_too_long(receive_first):
    a, b = local_transports(2)
    buffer = np.zeros(10, np.uint8)
    if receive_first:
        receive = b.irecv(buffer, 0, 0)
    send = a.isend(message(11), 1, 0)
    if not receive_first:
        receive = b.irecv(buffer, 0, 0)
    with pytest.raises(FrameError, match="11 bytes arrived from rank 0, at most 10 fit"):
        b.wait_some([receive], 1)
    assert not buffer.any()
    assert a.wait_some([send], 1) == [0]


def test_cancelled_requests_are_not_matched():
    a, b = local_transports(2)
    gone = b.irecv(np.zeros(5, np.uint8), 0, 0)
    b.cancel([gone])
    a.isend(message(5, 3), 1, 0)
    receive = b.irecv(np.zeros(5, np.uint8), 0, 0)
    assert b.wait_some([gone, receive], 1) == [1]
    large = a.isend(message(1 << 20), 1, 1)
    a.cancel([large])
    receive = b.irecv(np.zeros(1 << 20, np.uint8), 0, 1)
    assert b.wait_some([receive], 0) == []


def test_notices():
    ranks = local_transports(3)
    ranks[1].notify(5, "why")
    assert ranks[0].notice(4) is None
    assert ranks[0].notice(5) == (1, "why")
    assert ranks[2].notice(5) == (1, "why")
    assert ranks[1].notice(5) is None


def test_waiting_for_nothing():
    assert local_transports(1)[0].wait_some([], 1000) == []


@pytest.mark.parametrize("size", [0, -1])
def test_too_few_ranks(size):
    with pytest.raises(ValueError, match=f"size: {size}"):
        local_transports(size)
