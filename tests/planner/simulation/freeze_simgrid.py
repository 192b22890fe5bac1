"""Write what SimGrid makes of random instances to tests/fixtures: python tests/planner/simulation/freeze_simgrid.py."""

import json
from pathlib import Path

from collcomp.bench.planning.instances import random_instance
from collcomp.bench.planning.reference import by_simgrid

FIXTURE = Path(__file__).parents[2] / "fixtures" / "simgrid.json"
SEEDS = range(1000, 1024)

if __name__ == "__main__":
    instances = [random_instance(seed) for seed in SEEDS]
    frozen = [{**instance, "finished": by_simgrid(instance).tolist()} for instance in instances]
    FIXTURE.write_text(json.dumps(frozen, separators=(",", ":")) + "\n")
