"""Training a GPT: its text, the model, what is said of runs, and a run of two ranks that goes on."""

import json
import subprocess
import sys

import numpy as np
import pytest

from collcomp.bench import launch
from collcomp.bench.arguments import parse_methods
from collcomp.bench.ranks import MeasurementError
from collcomp.bench.train import results
from collcomp.bench.train.results import Point, Result, seconds_to
from collcomp.bench.train.text import ALPHABET, standard_library, symbols
from collcomp.errors import CollcompError


def command(*options):
    return [sys.executable, "-m", "collcomp.bench.cli", "train", *options]


# --- text ------------------------------------------------------------------------------------------------------------


def test_the_text_is_large_and_in_the_alphabet():
    text = standard_library()
    assert text.train.dtype == text.validation.dtype == np.uint8
    assert text.train.size > 5e6
    assert 0.03 < text.validation.size / text.train.size < 0.4
    for part in text:
        assert part.max() <= len(ALPHABET)
        assert np.unique(part).size > 90
        assert (part == len(ALPHABET)).mean() < 0.02


def test_held_out_files_are_not_trained_on():
    text = standard_library()
    train = text.train.tobytes()
    lines = [line for line in text.validation.tobytes().split(bytes([ALPHABET.index("\n")])) if len(line) > 60]
    chosen = lines[:: len(lines) // 200]
    assert sum(line in train for line in chosen) < 0.2 * len(chosen)


def test_symbols_are_places_in_the_alphabet():
    assert len(set(ALPHABET)) == 96
    assert symbols(ALPHABET).tolist() == list(range(96))
    assert symbols("a\té\x7f\U0001f600\n").tolist() == [ALPHABET.index("a"), 96, 96, 96, 96, 0]


# --- model -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny():
    torch = pytest.importorskip("torch")
    from collcomp.bench.train.gpt import Gpt, Shape

    return torch, lambda seed: Gpt(Shape(vocabulary=11, context=12, layers=2, heads=2, width=32), seed)


def test_what_follows_does_not_change_what_came_before(tiny):
    torch, make = tiny
    model = make(0)
    x = torch.arange(12).remainder(11)[None]
    changed = x.clone()
    changed[0, 7] = 5
    before, after = model(x)[0], model(changed)[0]
    assert torch.equal(before[:7], after[:7])
    assert not torch.equal(before[7:], after[7:])
    # Attention reaches back: the last position sees the change too.
    assert not torch.equal(before[11], after[11])


def test_the_model_begins_unsure_and_learns(tiny):
    torch, make = tiny
    from collcomp.bench.train.gpt import cross_entropy

    model = make(1)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    sequence = torch.arange(13).mul(3).remainder(11)[None]
    x, y = sequence[:, :-1], sequence[:, 1:]
    first = cross_entropy(model(x), y)
    assert first.item() == pytest.approx(np.log(11), rel=0.2)
    for _ in range(40):
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3 * first.item()


def test_seeds_give_the_weights(tiny):
    torch, make = tiny
    one, other, third = (list(make(seed).parameters()) for seed in (3, 3, 4))
    assert all(map(torch.equal, one, other))
    assert not torch.equal(one[0], third[0])


# --- results ---------------------------------------------------------------------------------------------------------


def curve(*pairs):
    return [Point(10 * i, seconds, None, loss) for i, (seconds, loss) in enumerate(pairs)]


@pytest.mark.parametrize(
    ("target", "seconds"),
    [
        (5.0, 0.0),  # before training
        (4.0, 0.0),
        (3.5, 1.0),  # between two validations
        (3.0, 2.0),  # at one
        (2.5, 4.6),  # the first time counts, though the loss rises again
        (2.0, 6.0),
        (1.9, None),
    ],
)
def test_time_to_a_loss(target, seconds):
    points = curve((0.0, 4.0), (2.0, 3.0), (3.0, 3.5), (5.0, 2.25), (5.5, 3.0), (6.0, 2.0))
    found = seconds_to(points, target)
    assert found == (None if seconds is None else pytest.approx(seconds))


def test_time_to_a_loss_is_interpolated():
    assert seconds_to(curve((0.0, 4.0), (2.0, 3.0), (6.0, 1.0)), 1.5) == 5.0


def result(**changes):
    fields = {
        "model": "gpt", "codec": "int8", "ranks": 2, "link": "shm", "seed": 0, "steps": 10, "loss": 2.5,
        "step_seconds": 0.1, "wire_bytes": None, "target_loss": 2.4, "seconds_to_target": None,
        "curve": curve((0.0, 4.5), (1.0, 2.5)),
    }  # fmt: skip
    return Result(**{**fields, **changes})


def test_results_survive_a_file(tmp_path):
    path = str(tmp_path / "results.json")
    assert results.load(path, {}) == []
    kept = [result(), result(seed=1, wire_bytes=1e6 / 3, curve=[Point(0, 0.1, 7.5, 1 / 3)])]
    results.save(path, kept)
    assert results.load(path, {"ranks": 2, "steps": 10}) == kept
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize(("name", "value"), [("ranks", 4), ("link", "1gbit"), ("steps", 20), ("model", "other")])
def test_results_of_other_settings_are_refused(tmp_path, name, value):
    path = str(tmp_path / "results.json")
    results.save(path, [result()])
    with pytest.raises(MeasurementError, match=f"--{name} .*, not {value}"):
        results.load(path, {name: value})


@pytest.mark.parametrize("content", ["", "[1", "{}x", "[[1]]", '[{"ranks": 2}]', '{"ranks": 2}'])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(MeasurementError, match="holds no results to go on from"):
        results.load(str(path), {})
    assert path.read_text() == content


def test_losses_are_plotted(tmp_path):
    pytest.importorskip("matplotlib")
    from collcomp.bench.plot import plot_losses

    longer = curve((0.0, 4.5), (1.0, 2.5), (2.0, 2.4))
    for wire_bytes, name in ((None, "time.png"), (5.0, "both.png")):
        points = [Point(*point[:2], None if wire_bytes is None else 1e6 * point.step, point.loss) for point in longer]
        runs = [result(wire_bytes=wire_bytes, curve=points), result(seed=1, wire_bytes=wire_bytes, curve=points[:2])]
        plot_losses(runs, str(tmp_path / name))
    time, both = ((tmp_path / name).read_bytes() for name in ("time.png", "both.png"))
    assert int.from_bytes(both[16:20], "big") == 2 * int.from_bytes(time[16:20], "big")  # width


# --- options ---------------------------------------------------------------------------------------------------------


def test_names_of_methods():
    text = "none,torch:fp16,topk:ratio=0.01,feedback,torch:powersgd:rank=8,torch:powersgd,int8,none,loco"
    assert parse_methods(text) == [
        "none", "torch:fp16", "topk:ratio=0.01,feedback", "torch:powersgd:rank=8", "torch:powersgd", "int8", "loco",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model=gpt", "--codec=none,torch:fp8"], "--codec: 'torch:fp8' is no hook of PyTorch's"),
        (["--model=gpt", "--codec=int5"], "--codec: codec: unknown codec 'int5'"),
        (["--codec=torch:fp16"], "--codec: codec: unknown codec 'torch'"),
        (["--model=gpt", "--epochs=2"], "--epochs is for --model digits"),
        (["--steps=2"], "--steps is for --model gpt"),
        (["--quick"], "--quick is for --model gpt"),
        (["--model=gpt", "--steps=0"], "--steps: 0 is too few"),
        (["--model=gpt", "--json=/nowhere/at/all.json"], "--json: '/nowhere/at/all.json'"),
    ],
)
def test_wrong_options(options, message, capfd):
    from collcomp.bench.cli import main

    assert main(["train", *options]) == 2
    assert message in capfd.readouterr().err


def test_missing_torch_is_told(monkeypatch, capfd):
    from collcomp.bench.cli import main

    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["train", "--model=gpt"]) == 1
    assert "pip install 'collcomp[torch]'" in capfd.readouterr().err


# --- ranks -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def start(tmp_path):
    pytest.importorskip("torch")
    try:
        launch.find_mpirun()
    except CollcompError as error:
        pytest.skip(str(error))

    def run(codecs):
        options = (f"--codec={codecs}", "--ranks=2", "--link=shm", "--seeds=1", "--steps=4")
        path = tmp_path / "results.json"
        return subprocess.run(
            command("--model=gpt", *options, f"--json={path}"), capture_output=True, text=True, timeout=110
        )

    return run


def test_two_ranks_train_and_go_on(tmp_path, start):
    outcome = start("int8,none")
    assert outcome.returncode == 0, outcome.stderr
    path = tmp_path / "results.json"
    none, int8 = json.loads(path.read_text())  # whatever the order, the others need the loss of none
    assert (none["codec"], int8["codec"]) == ("none", "int8")
    for run in (none, int8):
        assert " ".join(run) == (
            "model codec ranks link seed steps loss step_seconds wire_bytes target_loss seconds_to_target curve"
        )
        assert run["target_loss"] == none["loss"]
        assert run["wire_bytes"] is None  # no interface counts
        assert [point[0] for point in run["curve"]][:2] == [0, 4]
        assert run["curve"][1][3] == run["loss"] < run["curve"][0][3]
        assert run["step_seconds"] > 0
    # Equal seeds: the same model, and so nearly the same training.
    assert none["curve"][0][3] == int8["curve"][0][3]
    assert int8["loss"] == pytest.approx(none["loss"], rel=0.01)

    # A finished run is not run again, even where others are added: its times would differ.
    outcome = start("none,int8,torch:powersgd")
    assert outcome.returncode == 0, outcome.stderr
    assert json.loads(path.read_text())[:2] == [none, int8]
    assert json.loads(path.read_text())[2]["target_loss"] == none["loss"]
    assert [line.split()[0] for line in outcome.stdout.splitlines()][-3:] == ["none", "int8", "torch:powersgd"]


def test_results_of_other_settings_end_all_ranks(tmp_path, start):
    path = str(tmp_path / "results.json")
    results.save(path, [result(model="gpt-3x256", steps=5)])
    outcome = start("none")
    assert outcome.returncode == 1
    assert f"{path} holds results of --steps 5, not 4" in outcome.stderr
