"""Training: the classifier's gradients, and a run of two ranks."""

import json
import subprocess
import sys

import numpy as np
import pytest

from collcomp.bench import launch
from collcomp.bench.train.mlp import Mlp
from collcomp.errors import CollcompError


def test_gradients_are_the_slopes_of_the_loss():
    rng = np.random.default_rng(0)
    model = Mlp((5, 7, 6, 3), seed=1)
    for name, value in model.parameters.items():
        model.parameters[name] = value.astype(np.float64)
    x, labels = rng.standard_normal((8, 5)), rng.integers(0, 3, 8)
    gradients = model.gradients(x, labels)
    assert gradients.keys() == model.parameters.keys()
    for name, value in model.parameters.items():
        where = tuple(rng.integers(0, n) for n in value.shape)
        before, step = value[where], 1e-6
        value[where] = before + step
        above = model.evaluate(x, labels)[0]
        value[where] = before - step
        below = model.evaluate(x, labels)[0]
        value[where] = before
        assert gradients[name][where] == pytest.approx((above - below) / (2 * step), rel=1e-4, abs=1e-8)


def test_equal_seeds_begin_with_equal_weights():
    one, other, third = Mlp((4, 3), 5), Mlp((4, 3), 5), Mlp((4, 3), 6)
    assert np.array_equal(one.parameters["weight0"], other.parameters["weight0"])
    assert not np.array_equal(one.parameters["weight0"], third.parameters["weight0"])


def test_two_ranks_learn(tmp_path):
    pytest.importorskip("sklearn")
    try:
        launch.find_mpirun()
    except CollcompError as error:
        pytest.skip(str(error))
    path = tmp_path / "results.json"
    outcome = subprocess.run(
        [
            sys.executable, "-m", "collcomp.bench.cli", "train", "--ranks=2", "--link=shm", "--seeds=1", "--epochs=2",
            "--codec=none,int8,int4:feedback", f"--json={path}",
        ],
        capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert outcome.returncode == 0, outcome.stderr
    results = json.loads(path.read_text())
    assert [result["codec"] for result in results] == ["none", "int8", "int4:feedback"]
    for result in results:
        assert " ".join(result) == "model codec ranks link seed loss accuracy step_seconds wire_bytes"
        assert result["accuracy"] > 0.8
        assert result["step_seconds"] > 0
    none, int8, int4 = (result["wire_bytes"] for result in results)
    assert none > 3.5 * int8 > 3.5 * int4
