"""Checkpoints of a run, with Orbax: the train state, the position in the data, the open log line.

Only this file knows Orbax. A checkpoint is a directory `checkpoints/STEP` that appears under this
name once it is complete; the next run removes what a killed one left half written. The checksums of
its files are written after that: without them, which is how a kill in between leaves it, whatever
Orbax can read is taken.

What is saved does not depend on where it was computed: one pytree for every module, and one
position in the data for all processes (grain.checkpoint would write one for each process, that
another number of processes would not find).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from experiments.workdir import checksums
from experiments.workdir.files import BEST, LAST
from sideways_jax.step import TrainState

KEPT = 3  # how many of the newest checkpoints stay


class DamagedError(RuntimeError):
    """A checkpoint that is not as it was saved; the message names the file."""


class Restored(NamedTuple):
    """What `Checkpoints.restore` gives; the iterator that it was handed has moved, too."""

    train_state: TrainState
    progress: dict  # as it was saved


class Checkpoints:
    """The checkpoints of one workdir.

    Args:
      workdir: the directory of the run.
      to_modules, from_modules: conversions to and from a train state with one pytree for every
        module. That is what is saved, so that a run can go on with another execution and on
        another number of devices.
      check: `check(step, train_state)` is called with what is about to be saved, and raises what is
        wrong with it.
      folder: below the workdir.
      kept: how many of the newest stay.
    """

    def __init__(
        self,
        workdir: os.PathLike[str] | str,
        to_modules: Callable[[TrainState], TrainState] = lambda train_state: train_state,
        from_modules: Callable[[TrainState], TrainState] = lambda train_state: train_state,
        check: Callable[[int, TrainState], None] = lambda step, train_state: None,
        *,
        folder: str = LAST,
        kept: int = KEPT,
    ):
        self._to_modules, self._from_modules, self._check = to_modules, from_modules, check
        self.directory = Path(workdir).absolute() / folder
        # Saved while the caller waits: `train_step` donates its input, so that a save in the
        # background would read buffers which the next step overwrites.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=kept, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *error) -> None:
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint; None if there is none."""
        return self._manager.latest_step()

    @property
    def steps(self) -> list[int]:
        """The steps of all checkpoints, the newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def save(
        self, step: int, train_state: TrainState, data: grain.DatasetIterator, progress: dict
    ) -> None:
        """Saves, unless there is a checkpoint of this step.

        Args:
          step: the number of weight updates so far.
          train_state: what it has learned is finite; to look at that is the caller's part.
          data: the iterator over training batches.
          progress: anything else; JSON.

        Raises:
          What `check` raises; nothing is saved then.
        """
        if step == self.latest:
            return
        modules = self._to_modules(train_state)
        self._check(step, modules)
        with _silently():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    train_state=ocp.args.StandardSave(modules),
                    data=ocp.args.JsonSave(data.get_state()),
                    progress=ocp.args.JsonSave(progress),
                ),
            )
        if jax.process_index() == 0:
            checksums.write(self.directory / str(step))

    def restore(self, step: int, train_state: TrainState, data: grain.DatasetIterator) -> Restored:
        """Restores the checkpoint of a step.

        Args:
          step: one that there is, such as `latest`.
          train_state: a freshly initialised one. Every array is restored with the shape, dtype and
            sharding that it has there. It may have been saved from other devices.
          data: a fresh iterator over training batches, moved to where the saved one was.

        Raises:
          DamagedError: if a file of it is missing, or is not as it was written.
          ValueError: if the data are others than those it was saved with, or if an earlier version
            saved it.
        """
        folder = self.directory / str(step)
        if damage := checksums.damage(folder):
            raise DamagedError(damage)
        abstract = jax.tree.map(_abstract, self._to_modules(train_state))
        try:
            with _silently():
                earlier = self._is_earlier(step)
                restored = None if earlier else self._read(step, abstract)
        except (ValueError, KeyError, TypeError, OSError) as error:
            if checksums.written(folder):  # It is as it was saved: something else is wrong.
                raise
            raise DamagedError(f"{folder} cannot be read ({_first_line(error)})") from error
        if restored is None:
            raise ValueError(
                f"{folder} was saved by version 0.1.0 before 2026-11-21, whose checkpoints do not "
                "say how many frames had arrived: go on with that version, or start in another "
                "workdir"
            )
        data.set_state(restored.data)
        return Restored(self._from_modules(restored.train_state), restored.progress)

    def read_progress(self, step: int) -> dict:
        """What was saved as `progress` with the checkpoint of a step.

        Raises:
          DamagedError: if the checkpoint is not as it was written.
        """
        folder = self.directory / str(step)
        if damage := checksums.damage(folder):
            raise DamagedError(damage)
        try:
            with _silently():
                parts = ocp.args.Composite(progress=ocp.args.JsonRestore())
                return self._manager.restore(step, args=parts)["progress"]
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise DamagedError(f"{folder} cannot be read ({_first_line(error)})") from error

    def remove(self, step: int) -> None:
        """Removes a checkpoint; all processes call this."""
        self._manager.delete(step)

    def set_aside(self, steps: Sequence[int]) -> Path:
        """Moves damaged checkpoints out of the way; all processes call this.

        Returns:
          The folder that they are in now.
        """
        folder = self.directory.parent / "damaged"
        if jax.process_index() == 0:
            folder.mkdir(exist_ok=True)
            for step in steps:
                shutil.rmtree(folder / str(step), ignore_errors=True)
                (self.directory / str(step)).rename(folder / str(step))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints are set aside")
        self._manager.reload()
        return folder

    def _read(self, step: int, abstract: TrainState) -> Any:
        return self._manager.restore(
            step,
            args=ocp.args.Composite(
                train_state=ocp.args.StandardRestore(abstract),
                data=ocp.args.JsonRestore(),
                progress=ocp.args.JsonRestore(),
            ),
        )

    def _is_earlier(self, step: int) -> bool:
        """Whether the train state lacks the number of frames that had arrived."""
        saved = self._manager.item_metadata(step)["train_state"]
        return saved is not None and "frames" not in saved


def find(workdir: Path, which: int | str) -> Path:
    """The folder of a checkpoint, which is only looked at: a run may be at work there.

    Args:
      workdir: the directory of a run.
      which: "last", "best", or a step.

    Raises:
      FileNotFoundError: if nothing was saved.
      ValueError: if there is no such checkpoint.
    """
    last, best = (
        {int(one.name): one for one in (workdir / name).glob("*") if one.name.isdecimal()}
        for name in (LAST, BEST)
    )
    if not last and not best:
        raise FileNotFoundError(f"{workdir} has no checkpoint: nothing has been saved yet")
    if which == "best" and not best:
        raise ValueError(
            f"{workdir} has no best checkpoint: the run was not tested yet; take --checkpoint=last"
        )
    which = int(which) if str(which).isdecimal() else which
    choice = {"last": max(last or best), "best": max(best, default=None)}.get(which, which)
    found = (best if which == "best" else best | last).get(choice)
    if found is None:
        there = ", ".join(map(str, sorted(last | best)))
        raise ValueError(
            f"{workdir} has no checkpoint {which!r}: give last, best, or one of {there}"
        )
    return found


def read_weights(folder: Path, params: tuple, state: tuple, opt_state: Any = None) -> tuple:
    """The parameters and the state of the modules, and nothing else of a checkpoint.

    Args:
      folder: of the checkpoint, see `find`.
      params, state: their shapes, D pytrees each.
      opt_state: the shapes of the optimizer's state, if that is wanted, too.

    Returns:
      `(params, state, opt_state)`, on the first device of this process, wherever they were saved.

    Raises:
      ValueError: if the checkpoint is damaged, or is of another network.
    """
    if damage := checksums.damage(folder):
        raise ValueError(f"{damage}: take another checkpoint")
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
        {"params": params, "state": state}
        | ({} if opt_state is None else {"opt_state": opt_state}),
    )
    arguments = ocp.args.PyTreeRestore(
        item=wanted,
        restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
        partial_restore=True,
    )
    try:
        with _silently(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            read = reader.restore(folder.absolute() / "train_state", args=arguments)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(
            f"{folder} cannot be read as the network of its config ({_first_line(error)})"
        ) from error
    return read["params"], read["state"], read.get("opt_state")


@contextlib.contextmanager
def _silently() -> Iterator[None]:
    """Without what Orbax logs: what goes wrong is raised as well, and has one line then.

    After an error it stays silent: other threads of Orbax still tell of the same.
    """
    verbosity, hook = logging.get_verbosity(), sys.unraisablehook

    def without_closed_loops(what):
        if "Event loop is closed" not in str(what.exc_value):  # TensorStore's threads come later.
            hook(what)

    logging.set_verbosity(logging.FATAL)
    sys.unraisablehook = without_closed_loops
    yield
    logging.set_verbosity(verbosity)
    sys.unraisablehook = hook


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _abstract(x: jax.Array | np.ndarray) -> Any:
    """What Orbax restores like: shape, dtype and devices, or an array in host memory."""
    return x if isinstance(x, np.ndarray) else ocp.utils.to_shape_dtype_struct(x)
