"""Run PyTorch's own distributed tests on gloo and on collcomp, and compare.

``python tests/pytorch/suite [-k EXPRESSION]``. The exit status is 1 when the tests that gloo passes and collcomp does
not are others than those in `differences.json`. Each test runs on 2 ranks, or as many as ``WORLD_SIZE`` says.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

FOLDER = Path(__file__).resolve().parent
#: Tests that gloo passes and collcomp does not: for each way to run it, their names and why.
KNOWN = json.loads((FOLDER / "differences.json").read_text())
#: Seconds after which a test counts as failed and its ranks are killed.
PATIENCE_S = 100


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-k", dest="expression", metavar="EXPRESSION", help="run these only, chosen as by pytest -k")
    options = parser.parse_args()
    found = {tested: outcomes(tested, options.expression) for tested in ("gloo", *KNOWN)}
    print(f"\n{'backend':18}{'passed':>8}{'failed':>8}{'skipped':>8}{'seconds':>9}")
    for tested, (tests, seconds) in found.items():
        counts = [list(tests.values()).count(outcome) for outcome in ("passed", "failed", "skipped")]
        print(f"{tested:18}" + "".join(f"{count:8}" for count in counts) + f"{seconds:9.0f}")
    gloo, _ = found["gloo"]
    as_known = [compare(gloo, found[tested][0], tested) for tested in KNOWN]
    return int(not gloo or not all(as_known))


def compare(gloo: dict[str, str], tests: dict[str, str], tested: str) -> bool:
    """Print where `tests` come out otherwise than with gloo; whether that is as known."""
    different = {test for test in gloo if gloo[test] == "passed" != tests.get(test)}
    known = {test: why for test, why in KNOWN[tested].items() if test in gloo}
    for title, names in (
        (f"gloo passes, {tested} does not; known:", different & known.keys()),
        (f"gloo passes, {tested} does not; not known:", different - known.keys()),
        (f"{tested} passes, though differences.json names it:", known.keys() - different),
        (f"{tested} passes, gloo does not:", {test for test in gloo if tests.get(test) == "passed" != gloo[test]}),
    ):
        if names:
            print(f"\n{title}", *(f"  {test}: {known.get(test, tests.get(test))}" for test in sorted(names)), sep="\n")
    return different == known.keys()


def outcomes(tested: str, expression: str | None) -> tuple[dict[str, str], float]:
    """What became of each test, "passed", "failed" or "skipped", and the seconds that they took."""
    print(f"== {tested}", flush=True)
    chosen = "not cuda and not nccl and not gpu" + (f" and ({expression})" if expression else "")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", str(FOLDER / "cases.py"), "-k", chosen, f"--junitxml={report}"]
        command += ["--quiet", "-rf", "--disable-warnings", "--tb=short", "--show-capture=no", "--timeout=0"]
        environment = {
            "COLLCOMP_TESTED": tested,
            "DISTRIBUTED_TESTS_DEFAULT_TIMEOUT": str(PATIENCE_S),
            "OMP_NUM_THREADS": "1",
        }
        start = time.monotonic()
        subprocess.run(command, env=os.environ | environment, check=False)
        seconds = time.monotonic() - start
        cases = ElementTree.parse(report).iter("testcase")
        return {case.attrib["name"]: _outcome(case) for case in cases}, seconds


def _outcome(case: ElementTree.Element) -> str:
    kinds = {child.tag for child in case}
    return "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"


if __name__ == "__main__":
    sys.exit(main())
