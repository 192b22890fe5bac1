"""The contract of a codec: values to a frame and back. A codec knows neither ranks nor transports."""

from __future__ import annotations

import dataclasses
import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

from collcomp.devices import device_of, empty, on_device, to_device, to_host
from collcomp.errors import FrameError
from collcomp.frame import HEADER_NBYTES, Envelope, Frame

__all__ = ["Codec", "working_dtype"]

_NARROW = {np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)}
_WIDE = {np.dtype(np.float32), np.dtype(np.float64)}


def working_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype that values of `dtype` are summed in: float32 for 16-bit floats, else `dtype` itself."""
    return np.dtype(np.float32) if dtype in _NARROW else dtype


def payload_beside(values: np.ndarray, dst: np.ndarray) -> np.ndarray:
    """Where the payload of frame `dst` is to be written: there, or on the device where `values` lie apart from it."""
    payload = dst[HEADER_NBYTES:]
    if type(dst) is type(values) is np.ndarray or on_device(values) == on_device(dst):
        return payload
    return empty(payload.size, payload.dtype, values)


def frame_beside(frame: Frame, values: np.ndarray) -> Frame:
    """`frame` with its payload on the device where `values` lie there."""
    if type(values) is np.ndarray or on_device(frame.payload) or not on_device(values):
        return frame
    return dataclasses.replace(frame, payload=to_device(frame.payload))


class Codec(ABC):
    """Encodes one-dimensional contiguous arrays into frames and decodes them.

    Subclasses are frozen dataclasses: their fields are their whole configuration, which gives `repr`, `==`, `hash`,
    `spec` and `get_config` for free. They are stateless; what an operation has to remember (residuals) is passed in.

    A family implements `max_payload_nbytes`, `_encode` and `_decode`; it overrides `_decode_add`, `_encode_keep`,
    `_encode_feedback` and `_encode_sum` where one fused pass is faster, and `reduction` where its payloads add. The
    underscored methods see the bare payload and values in a working dtype (float32 or float64), those of a lossless
    codec in any dtype that can travel; the public ones add the header, its checks, 16-bit floats, and copies of
    payloads from a device to the host and back, where values lie on the one and frames on the other.
    """

    #: Name in specs.
    codec_id: ClassVar[str]
    #: Number in frames; never reused.
    number: ClassVar[int]
    #: One line for `collcomp codecs`.
    summary: ClassVar[str]
    #: Decoding gives back the very bits.
    lossless: ClassVar[bool] = False
    #: There is a `reduction`: encoded values are added without decoding them.
    summable: ClassVar[bool] = False
    #: Frames hold a selection of the elements: sums are gathered, not re-encoded.
    sparse: ClassVar[bool] = False
    #: A part of a message is encoded in one piece, never in segments.
    whole: ClassVar[bool] = False
    #: The payload is the message's own bytes, so it may be sent from and received into the user's memory.
    verbatim: ClassVar[bool] = False
    #: Remembers more between calls with the same key than a residual.
    stateful: ClassVar[bool] = False
    #: The parameter that a spec may give without its name, first: ``"numcodecs:zstd"``.
    positional: ClassVar[str | None] = None
    #: Fields that came after the first frames: while they have their default, `digest` is what it was without them.
    later_fields: ClassVar[tuple[str, ...]] = ()
    #: A module that it needs and that collcomp does not depend on.
    library: ClassVar[str | None] = None
    #: The underscored methods take arrays that lie on a CUDA device, too: all arguments then do.
    on_devices: ClassVar[bool] = False
    #: Elements that are encoded together; segments are cut at multiples of it.
    block: int = 1
    #: Error feedback is on: calls must name a `key`.
    feedback: bool = False

    # ------------------------------------------------------------------ what a family implements

    @abstractmethod
    def max_payload_nbytes(self, count: int, dtype: np.dtype) -> int:
        """Upper bound of the payload of `count` elements, as the underscored methods see them, whatever they are."""

    @abstractmethod
    def _encode(self, src: np.ndarray, payload: np.ndarray, stream: int) -> tuple[int, int]:
        """Encode `src` into `payload` (uint8, large enough); return (payload bytes, the header's `extra`)."""

    @abstractmethod
    def _decode(self, frame: Frame, dst: np.ndarray) -> None:
        """Decode into `dst` (`frame.count` elements); `FrameError` when the payload contradicts the header."""

    def _decode_add(self, frame: Frame, acc: np.ndarray) -> None:
        decoded = empty(acc.size, frame.dtype if self.lossless else acc.dtype, acc)
        self._decode(frame, decoded)
        np.add(acc, decoded, out=acc, casting="same_kind")

    def _encode_keep(self, src: np.ndarray, kept: np.ndarray, payload: np.ndarray, stream: int) -> tuple[int, int]:
        nbytes, extra = self._encode(src, payload, stream)
        self._decode(self._frame_of(src, payload[:nbytes], extra), kept)
        return nbytes, extra

    def _encode_feedback(
        self, src: np.ndarray, residual: np.ndarray, payload: np.ndarray, stream: int, state: dict[str, np.ndarray]
    ) -> tuple[int, int]:
        """Encode ``src + residual`` and update `residual` (None for a `stateful` codec without feedback).

        `state` is for what else a `stateful` codec remembers of this part of the tensor: empty at first. The scales of
        a residual of integers stand in ``state["scales"]``, so that the engine can scale the residual.
        """
        residual += src
        nbytes, extra = self._encode(residual, payload, stream)
        decoded = np.empty_like(residual)
        self._decode(self._frame_of(residual, payload[:nbytes], extra), decoded)
        # Not a plain subtraction: a NaN or Inf was sent as it is, nothing of it may stay behind.
        np.subtract(residual, decoded, out=residual, where=np.isfinite(decoded))
        residual[~np.isfinite(decoded)] = 0
        return nbytes, extra

    def _encode_sum(
        self,
        frames: Sequence[Frame],
        own: np.ndarray,
        position: int,
        divisor: int,
        kept: np.ndarray | None,
        payload: np.ndarray,
        stream: int,
    ) -> tuple[int, int] | None:
        return None

    def residual_dtype(self, dtype: np.dtype) -> np.dtype:
        """The dtype that residuals of messages of `dtype` are kept in."""
        return working_dtype(dtype)

    def reduction(
        self,
        src: np.ndarray,
        dst: np.ndarray,
        size: int,
        *,
        shared: int,
        stream: int,
        residual: np.ndarray | None,
        state: dict[str, np.ndarray],
    ) -> Iterator[tuple[np.ndarray, str]]:
        """Sum `src` over all ranks in rounds of plain reductions; a generator.

        Each round yields a contiguous array and ``"sum"``, ``"max"`` or ``"or"``. The caller replaces its elements by
        their reduction over all ranks and resumes; integers are reduced exactly and wrap around, floats are summed in
        rank order, so every rank sees the same bits. At the end `dst` holds the sum of the operands that the ranks
        encoded, the same bits on every rank.

        Parameters
        ----------
        src, dst : ndarray, shape (count,)
            Of a working dtype; may be the same array.
        size : int
            Number of ranks; all yield arrays of the same shapes and dtypes.
        shared, stream : int
            Numbers of random streams: one that all ranks draw alike, and this rank's own.
        residual, state
            As in `_encode_feedback`; `residual` is None without feedback.

        Raises
        ------
        FrameError
            What was reduced is not what ranks of the same codec can have sent.
        """
        raise NotImplementedError

    def selection(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        """The elements that a checked frame of a `sparse` codec holds: their ascending indices and their values."""
        raise NotImplementedError

    # ------------------------------------------------------------------ what callers use

    def error_bound(self, peak: np.ndarray, size: int = 1) -> np.ndarray | None:
        """Largest error of an element that is encoded once, for float32.

        Parameters
        ----------
        peak : ndarray of float64
            For each element, the largest magnitude that it is encoded together with: of its block, or of the whole
            message (and, for a `reduction`, of all ranks' messages) where `whole`.
        size : int
            Number of ranks whose operands a `reduction` adds; 1 for a frame.

        Returns
        -------
        ndarray or None
            One bound for each element, for normal numbers; None where magnitudes alone tell no useful one.
        """
        return np.zeros_like(peak) if self.lossless else None

    def most_ranks(self) -> int | None:
        """How many ranks a `reduction` has room for; None for any number."""
        return None

    def fixed_payload_nbytes(self, count: int, dtype: np.dtype) -> int | None:
        """Bytes of every payload of `count` elements without a raw block; None where they depend on the values."""
        return None

    @property
    def fixed_count(self) -> int | None:
        """How many elements every message has, each encoded in one piece; None for any number."""
        return None

    def for_shapes(self, shapes: Sequence[tuple[int, ...]]) -> Codec:
        """The codec for messages that consist of tensors of these shapes; itself where shapes are nothing to it."""
        return self

    @property
    def monotone(self) -> bool:
        """Whether x <= y implies decoded(x) <= decoded(y) for any two elements: MAX and MIN keep their meaning."""
        return False

    @property
    def needs_key(self) -> bool:
        """Whether reductions have to name the tensor, for what this codec remembers of it."""
        return self.feedback or self.stateful

    def max_encoded_nbytes(self, count: int, dtype: np.dtype) -> int:
        """Upper bound of the frame of `count` elements of a message of `dtype`, in bytes, header included."""
        return HEADER_NBYTES + self.max_payload_nbytes(count, dtype if self.lossless else working_dtype(dtype))

    def encode(self, src: np.ndarray, dst: np.ndarray, envelope: Envelope | None = None, stream: int = 0) -> int:
        """Encode `src` into the frame `dst`.

        Parameters
        ----------
        src : ndarray, shape (count,)
            The values; float32 or float64, or a 16-bit float, which is widened first. For a lossless codec, of any
            dtype that can travel; cast to the envelope's if they are of another.
        dst : ndarray of uint8
            At least `max_encoded_nbytes` long, aligned to 64 bytes for speed.
        envelope : Envelope, optional
            The message that this frame is a part of; `src` alone by default.
        stream : int
            Number of the random stream (stochastic codecs): equal streams give equal frames.

        Returns
        -------
        int
            Bytes written.
        """
        values = self._prepared(src, envelope)
        payload = payload_beside(values, dst)
        return self._finish(dst, src, envelope, payload, self._encode(values, payload, stream))

    def encode_keep(
        self,
        src: np.ndarray,
        kept: np.ndarray,
        dst: np.ndarray,
        envelope: Envelope | None = None,
        stream: int = 0,
    ) -> int:
        """`encode`, and write what a receiver will decode into `kept` (may be `src` itself, or a narrower dtype)."""
        values = self._prepared(src, envelope)
        payload = payload_beside(values, dst)
        if self.lossless:
            written = self._finish(dst, src, envelope, payload, self._encode(values, payload, stream))
            if not np.may_share_memory(values, kept):
                kept[...] = values
            return written
        wide = kept if kept.dtype == values.dtype else np.empty_like(values)
        written = self._finish(dst, src, envelope, payload, self._encode_keep(values, wide, payload, stream))
        if wide is not kept:
            kept[...] = wide
        return written

    def encode_sum(
        self,
        frames: Sequence[Frame],
        own: np.ndarray,
        position: int,
        divisor: int,
        kept: np.ndarray | None,
        dst: np.ndarray,
        envelope: Envelope,
        stream: int = 0,
    ) -> int | None:
        """Decode all ranks' operands, sum them in rank order, divide, encode: in one pass.

        Parameters
        ----------
        frames : sequence of Frame
            Operands of the other ranks, by rank; each was checked to hold ``own.size`` elements.
        own : ndarray
            This rank's operand; may share memory with `kept`.
        position : int
            This rank: where `own` comes in the order.
        divisor : int
        kept : ndarray or None
            Gets what receivers will decode.
        dst, envelope, stream
            As for `encode`.

        Returns
        -------
        int or None
            Bytes written; None where this codec, or these frames, have no such pass: decode, sum and encode then.
        """
        if own.dtype not in _WIDE or (kept is not None and kept.dtype != own.dtype):
            return None
        self.check_device(own)
        payload = payload_beside(own, dst)
        if on_device(own):
            frames = [frame_beside(frame, own) for frame in frames]
        outcome = self._encode_sum(frames, own, position, divisor, kept, payload, stream)
        return None if outcome is None else self._finish(dst, own, envelope, payload, outcome)

    def encode_feedback(
        self,
        src: np.ndarray,
        residual: np.ndarray | None,
        dst: np.ndarray,
        envelope: Envelope | None = None,
        stream: int = 0,
        state: dict[str, np.ndarray] | None = None,
    ) -> int:
        """Encode ``src + residual`` and leave in `residual` what did not fit into the frame.

        Parameters
        ----------
        residual : ndarray, shape (count,), or None
            Of `residual_dtype`; None for a `stateful` codec without feedback.
        state : dict, optional
            What a `stateful` codec remembers besides, to be given again with the next values of the same tensor.
        src, dst, envelope, stream
            As for `encode`.

        Returns
        -------
        int
            Bytes written.
        """
        values = self._prepared(src, envelope)
        payload = payload_beside(values, dst)
        kept: Any = residual  # None only where the codec expects it
        outcome = self._encode_feedback(values, kept, payload, stream, {} if state is None else state)
        return self._finish(dst, src, envelope, payload, outcome)

    def decode(self, frame: Frame, dst: np.ndarray) -> None:
        """Decode `frame` into `dst` (its message's dtype or its working dtype); `FrameError` when it does not fit."""
        self.check(frame, dst.size)
        self._check_dtype(frame, dst.dtype)
        self.check_device(dst)
        frame = frame_beside(frame, dst)
        seen = frame.dtype if self.lossless else working_dtype(dst.dtype)
        if self.verbatim or dst.dtype == seen:
            self._decode(frame, dst)
        else:
            decoded = empty(dst.size, seen, dst)
            self._decode(frame, decoded)
            with np.errstate(over="ignore"):
                dst[...] = decoded

    def decode_add(self, frame: Frame, acc: np.ndarray) -> None:
        """Decode `frame` and add it to `acc` (working dtype)."""
        self.check(frame, acc.size)
        self._check_dtype(frame, acc.dtype)
        self.check_device(acc)
        self._decode_add(frame_beside(frame, acc), acc)

    def check(self, frame: Frame, count: int) -> None:
        """`FrameError` unless `frame` comes from an equal codec and holds `count` elements."""
        if frame.codec != self.number:
            raise FrameError(f"codec: the sender used codec number {frame.codec}, this rank {self.spec!r}")
        if frame.config != self.digest:
            raise FrameError(f"codec: the sender used {self.codec_id!r} with other parameters than {self.spec!r}")
        if frame.count != count:
            raise FrameError(f"count: the sender's frame holds {frame.count} elements, this rank expects {count}")
        limit = self.max_encoded_nbytes(count, frame.dtype) - HEADER_NBYTES
        if frame.payload.size > limit:
            raise FrameError(f"frame: {frame.payload.size} payload bytes, {count} elements take at most {limit}")

    def check_device(self, values: np.ndarray) -> None:
        """Raise where `values` lie on a device, and this codec has no kernels for one, or they are too many for it."""
        if type(values) is np.ndarray or not on_device(values):
            return
        if not self.on_devices:
            raise TypeError(f"codec: {self.spec!r} has kernels for the CPU only, the values are on {device_of(values)}")
        if values.size >= 2**31:
            raise ValueError(f"count: {values.size} elements on a device, which counts to 2**31 - 1")

    def write_header(self, dst: np.ndarray, envelope: Envelope, count: int, nbytes: int, extra: int = 0) -> None:
        """Write the header of a payload of this codec's into the first 64 bytes of `dst`."""
        Frame.write_header(
            dst, envelope, codec=self.number, config=self.digest, count=count, nbytes=nbytes, extra=extra
        )

    # ------------------------------------------------------------------ configuration

    @cached_property
    def spec(self) -> str:
        """The string that gives this codec back, with only what differs from the defaults."""
        parts = []
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if value != field.default and not isinstance(value, Codec):
                bare = value if field.name == self.positional else field.name if value is True else None
                parts.append(bare or f"{field.name}={value}")
        inner = getattr(self, "inner", None)
        return self.codec_id + (":" + ",".join(parts) if parts else "") + (f"+{inner.spec}" if inner else "")

    @cached_property
    def label(self) -> str:
        """What records call it: `spec` without what only describes the message."""
        return self.spec

    @cached_property
    def digest(self) -> int:
        """CRC-32 of the configuration, which frames carry."""
        return zlib.crc32(json.dumps(self._first_config(), sort_keys=True).encode())

    def get_config(self) -> dict[str, Any]:
        """The configuration as a JSON-able dict; `collcomp.codecs.from_config` gives the codec back."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        inner = {name: value.get_config() for name, value in values.items() if isinstance(value, Codec)}
        return {"codec": self.codec_id, **values, **inner}

    # ------------------------------------------------------------------ helpers

    def _first_config(self) -> dict[str, Any]:
        """`get_config` without the defaults of `later_fields`."""
        config: dict[str, Any] = {"codec": self.codec_id}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if "float" in str(field.type) and value is not None:
                value = float(value)  # 1 and 1.0 are the same
            if field.name not in self.later_fields or value != field.default:
                config[field.name] = value._first_config() if isinstance(value, Codec) else value
        return config

    def _finish(
        self,
        dst: np.ndarray,
        src: np.ndarray,
        envelope: Envelope | None,
        payload: np.ndarray,
        outcome: tuple[int, int],
    ) -> int:
        nbytes, extra = outcome
        if type(payload) is not np.ndarray and not on_device(dst):
            to_host(payload[:nbytes], dst[HEADER_NBYTES : HEADER_NBYTES + nbytes])
        self.write_header(dst, envelope or Envelope(src.dtype, src.size), src.size, nbytes, extra)
        return HEADER_NBYTES + nbytes

    def _prepared(self, src: np.ndarray, envelope: Envelope | None) -> np.ndarray:
        self.check_device(src)
        if self.lossless:
            return src if envelope is None else src.astype(envelope.dtype, copy=False)
        if src.dtype in _WIDE:
            return src
        if src.dtype in _NARROW:
            return src.astype(np.float32)
        raise TypeError(f"codec: {self.spec!r} encodes floating-point numbers, not {src.dtype}")

    def _check_dtype(self, frame: Frame, dtype: np.dtype) -> None:
        expected = working_dtype(dtype)
        if working_dtype(frame.dtype) != expected or not (self.lossless or expected in _WIDE):
            raise FrameError(f"dtype: the sender's frame holds {frame.dtype}, this rank expects {dtype}")

    def _frame_of(self, src: np.ndarray, payload: np.ndarray, extra: int) -> Frame:
        return Frame(self.number, src.dtype, self.digest, 0, src.size, extra, src.size, payload)
