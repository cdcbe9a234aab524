"""One process of the suite `peers` in PyTorch: Simple-CNN in `torch.distributed.pipelining`.

`peers.py` starts it and requests programs through stdin (`rig/turns.py`). Each process has
the modules of one device, and as many threads as it has cores. The only file that imports torch.
"""

from __future__ import annotations

import sys
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed
from absl import app, flags
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from experiments.benchmarks.rig import turns
from experiments.processes import children

_ADDRESS = flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0", required=True)
_PROCESSES = flags.DEFINE_integer("num_processes", None, "how many", required=True)
_PROCESS = flags.DEFINE_integer("process_id", None, "the number of this one", required=True)
_REFERENCE = flags.DEFINE_string("reference", None, "written by `reference.save`", required=True)
_GROUPS = flags.DEFINE_list("groups", None, "how many modules each process has", required=True)

TOLERANCE = 1e-4  # of logits
LEARNING_RATE = 1e-3
SCHEDULES = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}


class ConvReLU(nn.Module):
    """A 3x3 convolution without bias, padded as XLA's SAME does, and a ReLU."""

    def __init__(self, kernel: np.ndarray, stride: int):
        """`kernel`: `[h, w, in, out]`, as JAX has it."""
        super().__init__()
        self.stride = stride
        size, _, channels, width = kernel.shape
        self.conv = nn.Conv2d(channels, width, size, stride, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.from_numpy(kernel).permute(3, 2, 0, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, C, H, W]` to `[B, width, ceil(H / stride), ceil(W / stride)]`."""
        rows, columns = (self.padding(size) for size in x.shape[-2:])
        if rows == columns and rows[0] == rows[1]:
            y = functional.conv2d(x, self.conv.weight, stride=self.stride, padding=rows[0])
        else:  # Which `conv2d` has no argument for: a padded copy.
            y = self.conv(functional.pad(x, (*columns, *rows)))
        return functional.relu(y)

    def padding(self, size: int) -> tuple[int, int]:
        """Pixels before and after: SAME puts the odd one after."""
        total = max((-(-size // self.stride) - 1) * self.stride + 3 - size, 0)
        return total // 2, total - total // 2


class Logits(nn.Module):
    """Global average pooling and a linear layer."""

    def __init__(self, kernel: np.ndarray, bias: np.ndarray):
        """`kernel`: `[in, out]`, as JAX has it."""
        super().__init__()
        self.linear = nn.Linear(*kernel.shape)
        with torch.no_grad():
            self.linear.weight.copy_(torch.from_numpy(kernel).T)
            self.linear.bias.copy_(torch.from_numpy(bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, C, H, W]` to `[B, classes]`."""
        return self.linear(x.mean((2, 3)))


class _ChannelsLast(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        del ctx
        return x.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx, grad):
        del ctx
        return grad.contiguous()


class Stage(nn.Sequential):
    """Modules that compute in `channels_last`, the faster layout (and JAX's), inside.

    What comes in and goes out is contiguous, gradients too: gloo sends nothing else.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the modules one after the other."""
        return super().forward(_ChannelsLast.apply(x)).contiguous()


def simple_cnn(weights: dict[str, np.ndarray]) -> list[nn.Module]:
    """The modules of `sideways_jax.models.simple_cnn`, with these weights."""
    top = len({name.split("/")[0] for name in weights}) - 1
    # "striding 2 in every second layer starting from the first one"
    convs = [ConvReLU(weights[f"{n}/conv/kernel"], 1 + (n % 2 == 0)) for n in range(top)]
    return [*convs, Logits(weights[f"{top}/linear/kernel"], weights[f"{top}/linear/bias"])]


def check(modules: list[nn.Module], weights: dict[str, np.ndarray], frame, logits) -> None:
    """Raises ValueError unless this is the network that was saved, and computes the same."""
    here = sum(weight.numel() for module in modules for weight in module.parameters())
    there = sum(weight.size for weight in weights.values())
    if here != there:
        raise ValueError(f"the network has {here} parameters in PyTorch and {there} in JAX")
    with torch.no_grad():
        difference = np.abs(nn.Sequential(*modules)(frame).numpy() - logits).max()
    if not difference <= TOLERANCE:
        raise ValueError(
            f"with the same weights the logits of PyTorch and JAX differ by {difference:.2e}, "
            f"more than {TOLERANCE:.0e}"
        )


class Place(NamedTuple):
    """Which of the processes this is."""

    process: int
    num_processes: int


def make_step(
    place: Place, schedule_class, module: nn.Module, clip: torch.Tensor, labels: torch.Tensor
):
    """A function that makes one SGD step with a clip, every frame of it a microbatch.

    Args:
      place: of this process, which is its stage.
      schedule_class: of `torch.distributed.pipelining`.
      module: of this process.
      clip: `[K * B, C, H, W]`, frame by frame.
      labels: `[K, B]`.
    """
    process, last = place.process, place.num_processes - 1
    stage = PipelineStage(module, process, last + 1, torch.device("cpu"))
    # The mean over frames of the mean over the batch: `scale_grads` divides by the microbatches.
    schedule = schedule_class(stage, len(labels), loss_fn=functional.cross_entropy)
    optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE)
    flat_labels = labels.reshape(-1)

    def step() -> dict[str, float]:
        optimizer.zero_grad()
        losses: list[torch.Tensor] = []
        frames = (clip,) if process == 0 else ()
        if process == last:
            schedule.step(*frames, target=flat_labels, losses=losses)
        else:
            schedule.step(*frames)
        # What JAX reports as well: the loss, and the norm of all gradients.
        squares = sum(weight.grad.square().sum() for weight in module.parameters())
        loss = torch.stack(losses).mean() if losses else torch.zeros(())
        sums = torch.stack([loss.detach(), squares])
        torch.distributed.all_reduce(sums)
        optimizer.step()
        return {"loss": sums[0].item(), "grad_norm": sums[1].sqrt().item()}

    return step


def main(argv: list[str]) -> None:
    """Builds the programs, and runs those that are requested."""
    del argv
    place = Place(_PROCESS.value, _PROCESSES.value)
    torch.set_num_threads(children.usable_cores())
    torch.distributed.init_process_group(
        "gloo", f"tcp://{_ADDRESS.value}", rank=place.process, world_size=place.num_processes
    )
    with np.load(_REFERENCE.value) as saved:
        arrays = dict(saved)
    frames, labels, logits = (arrays.pop(name) for name in ("frames", "labels", "logits"))
    modules = simple_cnn(arrays)
    clip = torch.from_numpy(frames.reshape(-1, *frames.shape[2:])).permute(0, 3, 1, 2)
    modules = [module.to(memory_format=torch.channels_last) for module in modules]
    check(modules, arrays, clip[: labels.shape[1]], logits)

    sizes = [int(size) for size in _GROUPS.value]
    first = sum(sizes[: place.process])
    module = Stage(*modules[first : first + sizes[place.process]])
    labels = torch.from_numpy(labels).long()
    turns.serve(
        {
            # Weights of its own each: they are changed in place.
            f"backprop {name} pipelining": make_step(
                place, schedule, deepcopy(module), clip, labels
            )
            for name, schedule in SCHEDULES.items()
        },
        torch=torch.__version__,
    )
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    app.run(main)
