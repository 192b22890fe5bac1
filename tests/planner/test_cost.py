"""Predicted times: the law, its corrections, and files."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collcomp.codecs import CODECS
from collcomp.collectives import ALGORITHMS, NATIVE
from collcomp.planner.cost import CALIBRATION, NATIVE_CODEC, CodecCost, CostModel, Network, stored_model, work_of

COSTS = {
    "identity": CodecCost(4.0, 0.0, 1e-10, lossless=True),
    "int8": CodecCost(1.0, 2e-10, 2e-10),
    "exponents": CodecCost(3.4, 5e-10, 4e-10, lossless=True),
}


def model(size=4, latency=1e-5, bandwidth=25e6, **more):
    return CostModel(size, Network(latency, bandwidth), COSTS, **more)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_every_algorithm_has_its_work(algorithm, size):
    for collective in ALGORITHMS[algorithm]:
        work = work_of(collective, algorithm, size, groups=size)
        assert min(work) >= 0
        assert work.wire > 0 or size == 1 or algorithm == "hierarchical"


@pytest.mark.parametrize("collective", ["allreduce", "bcast", "allgather", "reduce", "scatter"])
def test_native_has_its_work(collective):
    assert work_of(collective, NATIVE, 4).wire > 0


def test_unknown_algorithms_are_named():
    with pytest.raises(ValueError, match="'ring' takes for 'bcast'"):
        work_of("bcast", "ring", 4)


def test_the_law_is_the_wire_on_a_slow_link():
    nbytes = 64 << 20
    seconds = model(latency=0.0).seconds("allreduce", "direct", "int8", nbytes)
    assert seconds == pytest.approx(2 * 3 / 4 * nbytes / 4 / 25e6)


def test_the_law_is_the_codec_on_a_fast_link():
    count = 1 << 20
    seconds = model(latency=0.0, bandwidth=1e15).seconds("allreduce", "direct", "int8", 4 * count)
    assert seconds == pytest.approx(count * (2e-10 + 2 * 3 / 4 * 2e-10))


def test_lossy_frames_do_not_grow_with_the_dtype():
    one = model(latency=0.0)
    assert one.seconds("allreduce", "direct", "int8", 8000, 8) == pytest.approx(
        one.seconds("allreduce", "direct", "int8", 4000, 4)
    )
    assert one.seconds("allreduce", "direct", "exponents", 8000, 8) == pytest.approx(
        2 * one.seconds("allreduce", "direct", "exponents", 4000, 4)
    )


@given(
    st.dictionaries(st.integers(8, 1 << 26), st.floats(1e-6, 10), min_size=1, max_size=8),
    st.sampled_from([("native", NATIVE_CODEC), ("direct", "int8"), ("direct", "identity")]),
)
def test_what_was_measured_is_predicted(times, way):
    kind = ("allreduce", *way)
    corrected = model().with_measured({kind: times}, {})
    for nbytes, seconds in times.items():
        assert corrected.seconds(*kind, nbytes) == pytest.approx(seconds, rel=1e-6)


def test_between_measured_sizes_it_is_in_between():
    times = {1 << 10: 1e-4, 1 << 20: 0.1}
    corrected = model().with_measured({("allreduce", "direct", "int8"): times}, {})
    seconds = [corrected.seconds("allreduce", "direct", "int8", 1 << k) for k in range(10, 21)]
    assert seconds == sorted(seconds)


def test_codecs_that_were_not_measured_follow_those_that_were():
    measured = model().seconds("allreduce", "direct", "int8", 1 << 20) * 3
    plain = model().with_measured({("allreduce", "direct", "int8"): {8: 1e-5, 1 << 20: measured}}, {})
    assert plain.seconds("allreduce", "direct", "exponents", 1 << 20) > 2 * model().seconds(
        "allreduce", "direct", "exponents", 1 << 20
    )


def test_files():
    corrected = model(groups=2).with_measured({("allreduce", "native", NATIVE_CODEC): {8: 1e-5, 4096: 2e-5}}, {})
    again = CostModel.from_dict(json.loads(json.dumps(corrected.to_dict())))
    assert again == corrected


def test_no_model_in_a_file():
    with pytest.raises(ValueError, match="cost model: not what"):
        CostModel.from_dict({"size": 3})


def test_the_environment_names_a_file(tmp_path, monkeypatch):
    monkeypatch.delenv(CALIBRATION, raising=False)
    assert stored_model() is None
    path = tmp_path / "topology.json"
    path.write_text(json.dumps({"calibration": model().to_dict()}))
    monkeypatch.setenv(CALIBRATION, str(path))
    assert stored_model() == model()
    path.write_text("[]")
    with pytest.raises(ValueError, match=f"{CALIBRATION}: '.*topology.json' is no file"):
        stored_model()


def test_costs_are_of_codecs_that_exist():
    assert set(COSTS) <= set(CODECS)
    assert np.isfinite([cost.nbytes for cost in COSTS.values()]).all()
