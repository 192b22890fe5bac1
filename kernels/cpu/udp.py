"""Datagrams in batches: Linux's `recvmmsg`, `sendmmsg`, `ppoll` and clock for kernels, without Python in between.

`messages` is an int64 array (n, 8), a `struct mmsghdr` a row; `iovecs` an int64 array (n, 2, 2), two `struct iovec` a
row: `collcomp.switch.datagrams.Datagrams` makes both. The layouts are those of 64-bit Linux, on x86-64 and aarch64.
Functions of the C library are called by name, so that what calls them can be cached on disk. Nothing here waits but
`wait`.
"""

from __future__ import annotations

import errno
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from collcomp.kernels.cpu.jit import inlined, kernel

__all__ = ["address", "length", "now", "receive", "send", "set_message", "truncated", "unsent", "wait"]

# Words of a `struct mmsghdr`.
_NAME, _NAME_NBYTES, _IOVECS, _IOVEC_COUNT, _FLAGS, _LENGTH = 0, 1, 2, 3, 6, 7
_SOCKADDR_NBYTES = 16
_WORDS = types.CPointer(types.int64)

# Linux's numbers, so that this can be imported elsewhere.
_MONOTONIC = 1
_MSG_TRUNC, _MSG_DONTWAIT = 0x20, 0x40
_POLLIN, _POLLOUT = 1, 4
_TIOCOUTQ = 0x5411
_LONGEST_WAIT = 1e9  # seconds that surely fit a `struct timespec`

_recvmmsg = types.ExternalFunction("recvmmsg", types.int32(types.int32, types.intp, types.uint32, types.int32, _WORDS))
_sendmmsg = types.ExternalFunction("sendmmsg", types.int32(types.int32, types.intp, types.uint32, types.int32))
_ppoll = types.ExternalFunction("ppoll", types.int32(_WORDS, types.uint64, _WORDS, _WORDS))
_clock_gettime = types.ExternalFunction("clock_gettime", types.int32(types.int32, _WORDS))
_ioctl = types.ExternalFunction("ioctl", types.int32(types.int32, types.uint64, _WORDS))
_errno_location = types.ExternalFunction("__errno_location", types.CPointer(types.int32)())


@intrinsic
def _two_words(typingctx: Any) -> Any:
    """Memory for two integers of 64 bits on the stack of the function that it stands in."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        words = cgutils.alloca_once(builder, ir.ArrayType(ir.IntType(64), 2))
        return builder.bitcast(words, context.get_value_type(_WORDS))

    return _WORDS(), generate


@intrinsic
def _nowhere(typingctx: Any) -> Any:
    """A null pointer."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.get_constant_null(_WORDS)

    return _WORDS(), generate


@inlined
def address(x):
    """Address of the first byte of the array `x`."""
    return x.ctypes.data


@inlined
def length(messages, i):
    """Bytes of datagram `i` that `receive` stored, or that `send` sent."""
    return messages[i, _LENGTH] & 0xFFFFFFFF


@inlined
def truncated(messages, i):
    """Whether datagram `i`, received, was longer than its buffer."""
    return messages[i, _FLAGS] & _MSG_TRUNC != 0


@inlined
def set_message(iovecs, messages, i, name, head, head_nbytes, body, body_nbytes):
    """Let message `i` be `head_nbytes` bytes at address `head` and then `body_nbytes` at `body`, sent from there.

    `name` is the address of a `struct sockaddr_in`, or 0 on a connected socket. What lies at the addresses has to stay
    until the message is sent.
    """
    iovecs[i, 0, 0] = head
    iovecs[i, 0, 1] = head_nbytes
    iovecs[i, 1, 0] = body
    iovecs[i, 1, 1] = body_nbytes
    messages[i, _NAME] = name
    messages[i, _NAME_NBYTES] = _SOCKADDR_NBYTES if name != 0 else 0
    messages[i, _IOVECS] = address(iovecs[i])
    messages[i, _IOVEC_COUNT] = 2


@kernel
def receive(fd, messages):
    """Take the datagrams that have arrived, as many as there are messages at most, into the messages' buffers.

    Returns their number; 0 where there is none; -errno on an error. ECONNREFUSED, which says that a datagram sent
    earlier on this connected socket found nobody, is reported once and leaves the socket as it was.
    """
    for i in range(messages.shape[0]):
        messages[i, _NAME_NBYTES] = _SOCKADDR_NBYTES  # the last call wrote there
    n = _recvmmsg(np.int32(fd), address(messages), np.uint32(messages.shape[0]), np.int32(_MSG_DONTWAIT), _nowhere())
    return _count(n)


@kernel
def send(fd, messages, start, n):
    """Send the `n` messages from `start` on, as far as the socket takes them.

    Returns the number sent, from 0 (its buffer is full) to `n`; -errno on an error where none was sent, of which
    ECONNREFUSED is as harmless as it is to `receive`: the same messages can be sent again.
    """
    if n <= 0:
        return np.int64(0)
    sent = _sendmmsg(np.int32(fd), address(messages[start:]), np.uint32(n), np.int32(_MSG_DONTWAIT))
    return _count(sent)


@inlined
def _count(n):
    if n >= 0:
        return np.int64(n)
    code = _errno_location()[0]
    if code == errno.EAGAIN or code == errno.EINTR or code == errno.ENOBUFS:
        return np.int64(0)
    return -np.int64(code)


@kernel
def unsent(fd):
    """Bytes of datagrams, as the system counts them, that wait in queues of this machine to be sent; 0 if unknown."""
    answer = _two_words()
    answer[0] = 0
    if _ioctl(np.int32(fd), np.uint64(_TIOCOUTQ), answer) < 0:
        return np.int64(0)
    return answer[0]


@kernel
def wait(fd, seconds, for_writing):
    """Wait `seconds` at most until datagrams (or an error) can be received, or sent too if `for_writing`.

    Returns whether that is so; a signal ends the wait early, without.
    """
    events = _POLLIN | (_POLLOUT if for_writing else 0)
    poll, timeout = _two_words(), _two_words()
    poll[0] = np.int64(fd) | np.int64(events) << 32
    seconds = min(max(seconds, 0.0), _LONGEST_WAIT)
    timeout[0] = np.int64(seconds)
    timeout[1] = np.int64((seconds - np.floor(seconds)) * 1e9)
    return _ppoll(poll, np.uint64(1), timeout, _nowhere()) > 0


@kernel
def now():
    """Seconds of the clock of `time.monotonic`."""
    timespec = _two_words()
    _clock_gettime(np.int32(_MONOTONIC), timespec)
    return timespec[0] + timespec[1] * 1e-9
