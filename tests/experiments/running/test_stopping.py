import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from experiments.running import stopping
from experiments.running.stopping import (
    NonFiniteError,
    StopSignal,
    check_finite,
    hidden_from_children,
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_sets_a_flag_the_second_interrupts(number, capfd):
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert not stop
        signal.raise_signal(number)
        assert stop
        assert stop.number == number
        assert "again stops at once" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("seconds", [0.0, 0.3])
def test_says_what_it_waits_for_when_saving_takes_long(seconds, monkeypatch, capfd):
    monkeypatch.setattr(stopping, "LATE_SECONDS", 0.1)
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGTERM)
        stop.waits_for = "the checkpoint of step 7 is being written"
        time.sleep(seconds)
    time.sleep(0.2)  # Not after the run was saved.
    late = "Not saved 0.1 s after the signal: the checkpoint of step 7 is being written."
    assert (late in capfd.readouterr().err) == (seconds > 0)


def test_does_nothing_in_other_threads():
    entered = []

    def enter():
        with StopSignal() as stop:
            entered.append(bool(stop))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [False]


def test_children_do_not_notice_interrupts():
    # A shell's background job, as these tests may run in, ignores interrupts; not this child.
    code = "signal.signal(signal.SIGINT, signal.SIG_DFL); os.kill(os.getpid(), signal.SIGINT)"
    child = [sys.executable, "-c", f"import os, signal; {code}"]
    with hidden_from_children():
        assert subprocess.run(child, check=False).returncode == 0
    interrupted = subprocess.run(child, check=False, stderr=subprocess.DEVNULL)
    assert interrupted.returncode == -signal.SIGINT


def test_the_parent_does_notice():
    with StopSignal() as stop:
        with hidden_from_children():
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.number == signal.SIGINT


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"loss": float("nan"), "finite": 1.0}, "the loss is nan at step 7"),
        ({"grad_norm": float("inf"), "finite": 1.0}, "the norm of the gradients is inf at step 7"),
        ({"loss": 1.0, "finite": 0.0}, "not finite after step 7"),
    ],
)
def test_check_finite(metrics, said):
    with pytest.raises(NonFiniteError, match=said) as error:
        check_finite(7, metrics)
    assert error.value.step == 7
    check_finite(7, {"loss": 1.0, "finite": 1.0})
