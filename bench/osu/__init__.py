"""OSU-style benchmarks: one file a collective over one driver."""

from .allgather import Allgather
from .allreduce import Allreduce
from .alltoall import Alltoall
from .bcast import Bcast
from .bibw import BidirectionalBandwidth
from .bw import Bandwidth
from .collective import Collective
from .gather import Gather
from .latency import Latency
from .reduce import Reduce
from .reduce_scatter import ReduceScatter
from .scatter import Scatter

__all__ = ["COLLECTIVES"]

#: What can be measured, by name. To add one: write its file and its name here.
COLLECTIVES: dict[str, type[Collective]] = {
    cls.name: cls
    for cls in (
        Allreduce, Reduce, Allgather, ReduceScatter, Bcast, Alltoall, Gather, Scatter,
        Latency, Bandwidth, BidirectionalBandwidth,
    )
}  # fmt: skip
