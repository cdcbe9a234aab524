"""Table 1 with the paper's data and protocol: the commands, and their results where they were run.

UCF101 and HMDB51, 64 frames of 112x112 pixels, batches of 8, Adam with a warm-up of 5 epochs and
drops after 100 and 200, the paper's rates and weight decays, all three rules. For accelerators: a
run takes days on a CPU.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from experiments.evidence.study import RULES

MAIN = Path(__file__).parents[1] / "main.py"
RATES = ("1e-4", "1e-5")
DECAYS = ("0", "1e-4", "1e-3", "1e-2")
# Data set, network, dropout: the rows of the paper's table.
ROWS = (
    ("hmdb51", "simple_cnn", "0"),
    ("hmdb51", "vgg8", "0"),
    ("ucf101", "simple_cnn", "0"),
    ("ucf101", "vgg8", "0"),
    ("ucf101", "vgg8", "0.9"),
)


class Command(NamedTuple):
    """One run of `experiments/main.py`."""

    workdir: Path
    words: tuple[str, ...]

    @property
    def is_done(self) -> bool:
        """Whether it ended."""
        return (self.workdir / "summary.json").exists()


def commands(folder: Path, data_dir: str, seeds: int) -> list[Command]:
    """Every run of the grid, the first seed of all rows before the next."""
    made = []
    for seed, (data, network, dropout), rate, decay, rule in itertools.product(
        range(seeds), ROWS, RATES, DECAYS, RULES
    ):
        config = MAIN.parent / "configs" / f"{data}.py"
        arguments = f"model={network},rule={rule},learning_rate={rate},weight_decay={decay}"
        arguments += f",dropout={dropout}" * (dropout != "0")
        name = f"{data}-{network}-{dropout}-{rule}-{rate}-{decay}-{seed}"
        words = [
            f"--config={config}:{arguments}",
            f"--config.seed={seed}",
            f"--workdir={folder / name}",
        ]
        # The paper's decays are tiny if the rate multiplies them.
        words.append("--config.optimizer.decay_coupling=schedule")
        if data_dir:
            words.append(f"--config.data.path={data_dir}")
        made.append(Command(folder / name, (sys.executable, str(MAIN), *words)))
    return made


def run(folder: Path, data_dir: str, seeds: int) -> int:
    """Runs what is not done, if the data are there; else prints the commands. The exit status."""
    wanted = commands(folder, data_dir, seeds)
    missing = [name for name in ("hmdb51", "ucf101") if not (Path(data_dir) / name).is_dir()]
    if not data_dir or missing:
        for one in wanted:
            print(" ".join(one.words))
        where = f"{data_dir} has no {' and no '.join(missing)}" if data_dir else "no --data_dir"
        print(
            f"{len(wanted)} runs, none started: {where}; docs/data.md says how to build them",
            file=sys.stderr,
        )
        return 1
    for one in wanted:
        if not one.is_done:
            done = subprocess.run(one.words, check=False)
            if done.returncode:
                return done.returncode
    for one in wanted:
        accuracy = json.loads((one.workdir / "summary.json").read_text())["test_accuracy"]
        print(f"{one.workdir.name}: {accuracy:.1%}")
    return 0
