"""What one operation encodes on one rank: with residuals, with what receivers will decode, with errors measured."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np

from collcomp.codecs import Codec
from collcomp.codecs.base import working_dtype
from collcomp.devices import is_capturing, squared_norm
from collcomp.feedback import Memory
from collcomp.frame import HEADER_NBYTES, Envelope, Frame

__all__ = ["Encoder"]


class Encoder(ABC):
    """Encodes the values of one operation.

    Parameters
    ----------
    codec : Codec
    envelope : Envelope
        What every frame of this operation says of its message.
    rank, size : int
    draw : int
        What codecs draw random numbers by, equal on all ranks and different for each operation.
    memory : Memory, optional
        What is remembered of the whole message, for codecs that remember.
    measure_error : bool
        Sum up the squared error of what this rank encodes.
    """

    def __init__(
        self,
        codec: Codec,
        envelope: Envelope,
        rank: int,
        size: int,
        draw: int,
        memory: Memory | None,
        measure_error: bool,
    ) -> None:
        self.codec = codec
        self.envelope = envelope
        self.rank = rank
        self.size = size
        self.dtype = working_dtype(envelope.dtype)
        #: Numbers of random streams: this rank's own, and one that all ranks draw alike.
        self.stream = (draw * size + rank) * 0x9E3779B97F4A7C15
        self.shared_stream = draw
        self.error_sq = 0.0 if measure_error else None
        self._memory = memory

    @abstractmethod
    def array(self, count: int) -> np.ndarray:
        """Room for `count` values of the working dtype, where the operation's values lie."""

    @property
    def error_norm(self) -> float | None:
        """Euclidean norm of what this rank's encoding lost, where it is measured."""
        return None if self.error_sq is None else math.sqrt(self.error_sq)

    def remembered(self, part: slice) -> tuple[np.ndarray | None, dict[str, np.ndarray]]:
        """Residual and state of a part of the message; None and an empty dict where nothing is remembered."""
        return (None, {}) if self._memory is None else self._memory.part(part)

    def encode_into(
        self,
        memory: np.ndarray,
        values: np.ndarray,
        place: int,
        envelope: Envelope,
        part: slice | None,
        kept: np.ndarray | None,
        divisor: int,
    ) -> int:
        """Encode `values` into `memory`; parameters as of `Exchange.encode`. Returns the bytes of the frame."""
        if self._memory is not None and part is not None:
            nbytes = self._encode_feedback(values, place, self.remembered(part), divisor, memory, envelope)
            if kept is not None:
                self.codec.decode(self._own_frame(memory, nbytes, values), kept)
            return nbytes
        if kept is None and self.error_sq is None:
            return self.codec.encode(values, memory, envelope, self.stream + place)
        return self._encode_keep(values, place, kept, memory, envelope)

    def trusted(self, codec: Codec, count: int, payload: np.ndarray) -> Frame:
        """The frame of a payload whose header nobody can look at, because a graph is captured."""
        envelope = self.envelope
        return Frame(codec.number, envelope.dtype, codec.digest, envelope.sequence, count, 0, envelope.total, payload)

    def _own_frame(self, memory: np.ndarray, nbytes: int, values: np.ndarray) -> Frame:
        if is_capturing(values):
            return self.trusted(self.codec, values.size, memory[HEADER_NBYTES:nbytes])
        return Frame.read(memory[:nbytes])

    def encode_sum_into(
        self,
        memory: np.ndarray,
        own: np.ndarray,
        place: int,
        frames: Mapping[int, Frame],
        kept: np.ndarray | None,
        divisor: int,
    ) -> int | None:
        """Encode the sum of `own` and of the frames of other ranks, in rank order, in one pass, where there is one."""
        if self._memory is not None or self.error_sq is not None:
            return None
        ordered = [frames[rank] for rank in sorted(frames)]
        position = sum(rank < self.rank for rank in frames)
        stream = self.stream + place
        return self.codec.encode_sum(ordered, own, position, divisor, kept, memory, self.envelope, stream)

    def _encode_feedback(
        self,
        values: np.ndarray,
        place: int,
        remembered: tuple[np.ndarray | None, dict[str, np.ndarray]],
        divisor: int,
        memory: np.ndarray,
        envelope: Envelope,
    ) -> int:
        residual, state = remembered
        if divisor != 1 and (held := self._held(*remembered)) is not None:
            np.divide(held, divisor, out=held)
        nbytes = self.codec.encode_feedback(values, residual, memory, envelope, self.stream + place, state)
        held = self._held(*remembered)
        if self.error_sq is not None:
            if held is not None and held is residual:
                error = held
            else:
                self.codec.decode(self._own_frame(memory, nbytes, values), error := self.array(values.size))
                error -= values
            self.error_sq += squared_norm(error)
        if divisor != 1 and held is not None:
            np.multiply(held, divisor, out=held)
        return nbytes

    def _held(self, residual: np.ndarray | None, state: dict[str, np.ndarray]) -> np.ndarray | None:
        """What scales with what is remembered: the residual itself, or the scales of one of integers."""
        return residual if residual is not None and residual.dtype == self.dtype else state.get("scales")

    def _encode_keep(
        self, values: np.ndarray, place: int, kept: np.ndarray | None, memory: np.ndarray, envelope: Envelope
    ) -> int:
        decoded = self.array(values.size) if kept is None else kept
        if self.error_sq is None:
            return self.codec.encode_keep(values, decoded, memory, envelope, self.stream + place)
        error = values.astype(np.float64)  # before `kept`, which may be the values themselves, is written to
        nbytes = self.codec.encode_keep(values, decoded, memory, envelope, self.stream + place)
        error -= decoded
        self.error_sq += squared_norm(error)
        return nbytes
