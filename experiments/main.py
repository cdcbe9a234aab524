"""Trains and evaluates a network on videos, or on a stream of frames.

python experiments/main.py --config=experiments/configs/quickstart.py --workdir=/tmp/quickstart

Every field of the config can be overridden, `--config.train.num_steps=50` (`--help` behind a
`--config` lists them all), and configs take
arguments, `--config=experiments/configs/quickstart.py:rule=backprop`. The same command again goes
on from the last checkpoint.
"""

import signal

if __name__ == "__main__":  # First of all: what comes meanwhile waits for `end_at_once`.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))

import os
import sys

# Run from a checkout: `experiments` and `data` are packages of the repository, not installed ones.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.append(os.getcwd())  # For networks and data of the user's own.
from experiments.processes import interrupts

if __name__ == "__main__":  # Before the imports, which take seconds; not in worker processes.
    interrupts.end_at_once(
        "Stopped. Nothing new was there to be saved; run the same command again to go on."
    )
    interrupts.end_with_launcher()
elif __name__ == "__mp_main__":
    interrupts.end_with_parent()

from absl import app, flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "FILE or FILE:ARGUMENT=VALUE,...")
_WORKDIR = flags.DEFINE_string("workdir", None, "The directory of the run, for all it writes.")
_DEBUG = flags.DEFINE_bool("debug", False, "Show where an error came from.")


def main(argv: list[str]) -> int:
    """Runs the job; what a user can get wrong ends in one line, not in a traceback."""
    del argv
    from experiments.terminal.command_line import quiet

    quiet()  # Orbax tells a lot.
    # Not at the top: the processes that make batches import this file, too, and need no JAX.
    import jax

    from data import BadVideo
    from experiments.configs._checks import check_fields
    from experiments.jobs.autoencoding import job as autoencoding
    from experiments.jobs.classification import job as classification
    from experiments.processes import distributed
    from experiments.running import execution
    from experiments.running.stopping import NonFiniteError, Stopped

    jobs = {"classification": classification, "autoencoding": autoencoding}
    try:
        check_fields(_CONFIG.value)
        cluster = distributed.given()
        if cluster is None:
            execution.force_cpu_devices(_CONFIG.value)
        else:
            distributed.initialize(cluster)
        jobs[_CONFIG.value.task].train_and_evaluate(_CONFIG.value, _WORKDIR.value)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 128 + stopped.signal_number
    except (ValueError, OSError, BadVideo, NonFiniteError, jax.errors.JaxRuntimeError) as error:
        if _DEBUG.value:
            raise
        print(f"Error: {distributed.explain(error)}", file=sys.stderr)
        return distributed.leave(1)
    return 0


def _parse_flags(argv: list[str]) -> list[str]:
    from experiments.configs._descriptions import describe
    from experiments.processes import distributed  # noqa: F401, for its flags
    from experiments.terminal.command_line import parse_flags

    return parse_flags(argv, describe)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    flags.register_validator("workdir", lambda value: value != "", "give a directory, not nothing")
    app.run(main, flags_parser=_parse_flags)
