"""One run at a time in a workdir; what a killed run left does not count."""

import json
import os
import socket
import subprocess
import sys

import psutil
import pytest

from experiments.jobs.classification.job import train_and_evaluate
from experiments.workdir import lock
from tests.experiments import tiny


def leave(workdir, **fields):
    there = {"host": socket.gethostname(), "pid": os.getpid(),
             "started": psutil.Process().create_time()}  # fmt: skip
    (workdir / lock.NAME).write_text(json.dumps(there | fields))


def test_a_second_run_is_refused_and_changes_nothing(tmp_path):
    with lock.held(tmp_path):
        with pytest.raises(
            lock.LockedError, match=rf"process {os.getpid()} on {socket.gethostname()}"
        ):
            train_and_evaluate(tiny.config(), tmp_path)
        with pytest.raises(lock.LockedError), lock.held(tmp_path):
            pass
        assert [path.name for path in tmp_path.iterdir()] == [lock.NAME]
    assert not list(tmp_path.iterdir())
    with lock.held(tmp_path):
        pass


def test_a_process_that_is_gone_holds_nothing(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    leave(tmp_path, pid=gone.pid)
    with lock.held(tmp_path), pytest.raises(lock.LockedError):
        lock.check(tmp_path)


def test_a_number_that_is_used_again_holds_nothing(tmp_path):
    leave(tmp_path, started=psutil.Process().create_time() - 100)
    with lock.held(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": "here"}'])
def test_a_lock_that_says_nothing_holds_nothing(text, tmp_path):
    (tmp_path / lock.NAME).write_text(text)
    with lock.held(tmp_path):
        pass


def test_of_another_host_nothing_is_known(tmp_path):
    leave(tmp_path, host="elsewhere", pid=1)
    with pytest.raises(
        lock.LockedError, match=r"process 1 on elsewhere.* if it is gone, remove .*lock"
    ):
        lock.check(tmp_path)


def test_of_many_at_once_one_has_it(tmp_path):
    """All find the same stale lock."""
    leave(tmp_path, started=0.0)
    code = (
        "import sys, time; from pathlib import Path; from experiments.workdir import lock\n"
        "try:\n  with lock.held(Path(sys.argv[1])): print('held', flush=True); time.sleep(5)\n"
        "except lock.LockedError: print('refused', flush=True)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    said = sorted(run.stdout.readline().strip() for run in runs)
    for run in runs:
        run.kill()
        run.communicate()
    assert said == ["held", *["refused"] * 5]
