"""Ctrl-C and SIGTERM at any moment: one line, 130 or 143, and nothing left behind."""

import signal
import subprocess
import sys
import time

import psutil
import pytest

from experiments.trials import interrupts as trial
from tests.experiments import tiny

PROGRAM = """
import sys
sys.path.insert(0, {root!r})
from experiments.processes import interrupts

if __name__ == "__main__":
    interrupts.end_at_once("Stopped.")
elif __name__ == "__mp_main__":
    interrupts.end_with_parent()
import ctypes, multiprocessing, time

class Swallows:
    def __del__(self):
        say("busy")
        {wait}

def say(text):
    print(text, flush=True)

if __name__ == "__main__":
    {start}
    say("ended")
"""
IN_C = "ctypes.CDLL(None).sleep(30)"  # as a compilation: nothing of Python runs meanwhile
ASKED = """
    with interrupts.Asked("soon\\n", "at once\\n") as asked:
        say("busy")
        ctypes.CDLL(None).usleep(500_000)
        time.sleep(0.1)
        say(f"asked {asked.number}")
        say("busy")
        ctypes.CDLL(None).sleep(30)
"""


def start(program, tmp_path):
    file = tmp_path / "program.py"
    file.write_text(program)
    return subprocess.Popen(
        [sys.executable, str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def until(process, said):
    while said not in (line := process.stdout.readline()):
        assert line, process.stderr.read()


def ended(process):
    try:
        return process.communicate(timeout=20)
    finally:
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("wait", [IN_C, "time.sleep(30)"])
def test_nothing_swallows_or_delays_it(number, wait, tmp_path):
    """Python prints what is raised in `__del__`, and goes on."""
    process = start(PROGRAM.format(root=str(tiny.ROOT), wait=wait, start="Swallows()"), tmp_path)
    until(process, "busy")
    time.sleep(0.1)
    process.send_signal(number)
    sent = time.monotonic()
    output, errors = ended(process)
    assert time.monotonic() - sent < 10
    assert (process.returncode, errors) == (128 + number, "Stopped.\n")
    assert "ended" not in output


def test_the_first_is_a_flag_the_second_ends_it(tmp_path):
    program = PROGRAM.format(root=str(tiny.ROOT), wait="pass", start=ASKED.strip())
    process = start(program, tmp_path)
    until(process, "busy")
    process.send_signal(signal.SIGTERM)
    until(process, f"asked {int(signal.SIGTERM)}")
    until(process, "busy")
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = ended(process)
    assert process.returncode == 130
    assert [line for line in errors.splitlines() if line] == ["soon", "at once"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_are_ended(number, tmp_path):
    worker = """
    worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    worker.start()
    say(f"worker {worker.pid}")
    time.sleep(60)
"""
    process = start(
        PROGRAM.format(root=str(tiny.ROOT), wait="pass", start=worker.strip()), tmp_path
    )
    pid = int(process.stdout.readline().split()[1])
    time.sleep(1.0)
    process.send_signal(number)
    process.wait(20)
    if number == signal.SIGINT:
        assert (process.returncode, process.stderr.read()) == (130, "Stopped.\n")
    process.stdout.close()
    process.stderr.close()
    deadline = time.monotonic() + 20
    while psutil.pid_exists(pid):
        assert time.monotonic() < deadline, "the worker is still there"
        time.sleep(0.1)


IMPORTS_SLOWLY = """
import sys, time

class Finder:
    def find_spec(self, name, path, target=None):
        if name == "experiments":
            print("importing", flush=True)
            time.sleep(0.5)

sys.meta_path.insert(0, Finder())
"""


OTHERS = "live", "table3", "torture", "reproduce", "evaluate_checkpoint", "predict"


@pytest.mark.parametrize(
    "program",
    ["main", "launch", *(pytest.param(name, marks=pytest.mark.full) for name in OTHERS)],
)
def test_from_the_first_line_of_a_program(program, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(IMPORTS_SLOWLY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = subprocess.Popen(
        [sys.executable, f"experiments/{program}.py"], cwd=tiny.ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    until(process, "importing")
    process.send_signal(signal.SIGTERM)
    _, errors = ended(process)
    assert process.returncode == 143, errors
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    ("program", "after"),
    [
        ("quickstart", 1.0),
        ("launch", 1.5),
        pytest.param("live", 1.0, marks=pytest.mark.full),
        pytest.param("table3", 1.0, marks=pytest.mark.full),
        *(pytest.param("workers", after, marks=pytest.mark.full) for after in (8.0, 20.0)),
    ],
)
def test_while_a_program_starts(program, after):
    outcome = trial.interrupt(program, "SIGINT", after)
    assert outcome.passed, outcome
