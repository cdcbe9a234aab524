"""main.py as a user runs it: in a process of its own."""

import re

import pytest

from tests.experiments import tiny

QUICKSTART = "--config=experiments/configs/quickstart.py"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        pytest.param([QUICKSTART, "--wrokdir=w"], "Did you mean: workdir", id="flag"),
        pytest.param(
            [QUICKSTART + ":rul=backprop", "--workdir=w"],
            "unknown config argument 'rul'; did you mean 'rule'?",
            id="argument",
        ),
        pytest.param(
            [QUICKSTART, "--workdir=w", "--config.train.nmu_steps=3"],
            "unknown config field 'train.nmu_steps'; did you mean 'train.num_steps'?",
            id="field",
        ),
        pytest.param(
            [QUICKSTART, "--workdir=w", "--config.trian.num_steps", "3"],
            "unknown config field 'trian.num_steps'; did you mean 'train.num_steps'?",
            id="inner field",
        ),
        pytest.param(
            ["--config=experiments/configs/quickstrat.py", "--workdir=w"],
            "no such file; did you mean 'experiments/configs/quickstart.py'?",
            id="file",
        ),
        pytest.param([QUICKSTART + ":smoke"], "--workdir", id="no workdir"),
        pytest.param(
            [QUICKSTART + ":smoke", "--workdir="],
            "--workdir=: give a directory",
            id="empty workdir",
        ),
    ],
)
def test_command_line_errors_name_the_closest(flags, said):
    result = tiny.run_main(*flags)
    assert result.returncode != 0
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_user_errors_are_one_line_unless_debugged(tmp_path):
    flags = [QUICKSTART + ":smoke,rule=backprob", f"--workdir={tmp_path / 'w'}"]
    result = tiny.run_main(*flags)
    assert result.returncode == 1
    assert result.stderr.startswith("Error: unknown rule 'backprob'; did you mean 'backprop'?")
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "w").exists()  # An impossible config does not claim a workdir.


def test_help_lists_the_fields_of_the_config():
    result = tiny.run_main(QUICKSTART, "--help")
    assert result.returncode == 0
    assert "--workdir" in result.stdout
    assert "--config.train.num_steps=1000  # weight updates in all; may grow later" in result.stdout


def test_overrides_and_the_table_at_the_end(tmp_path):
    result = tiny.run_main(
        QUICKSTART + ":smoke,rule=backprop",
        f"--workdir={tmp_path}",
        *tiny.overrides(train__num_steps=3),
    )
    assert result.returncode == 0, result.stderr
    assert "step 3/3" in result.stdout  # Plain lines, this is no terminal.
    *_, header, _, row, written = result.stdout.rstrip().splitlines()
    assert [word.strip() for word in header.split("┃")] == [
        "rule", "execution", "steps", "test accuracy", "NLL", "ECE", "steps/s",
    ]  # fmt: skip
    cells = [word.strip() for word in row.split("│")]
    assert cells[:3] == ["backprop", "time_parallel", "3"]
    assert cells[3].endswith("%")
    assert all(float(cell) > 0 for cell in cells[4:])
    assert re.fullmatch(
        rf"written to {tmp_path}; best: [\d.]+% after step [123], in best/", written
    )
    assert tiny.lines(tmp_path)[-1]["step"] == 3
