"""How fast training clips come, and whether training has to wait for them.

python experiments/data_benchmark.py --json=/tmp/data.json

Builds a small UCF101 with the real builder, out of videos that it makes (320x240 pixels, MPEG-4
with B-frames, 186 frames, as in UCF101; a textured scene that moves), or out of copies of --video.
Then it takes batches [8, 64, 112, 112, 3] from the records, and beside it from the AVI files
themselves (`video_folder`), in turn. Last it trains Simple-CNN on the records, as the job does, and
says which fraction of the time went into waiting for a batch. --train_steps=0 leaves that out.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

# Run from a checkout: `experiments` and `data` are packages of the repository, not installed ones.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import app, flags

_VIDEO = flags.DEFINE_string("video", "", "A video to build from, instead of made ones.")
_VIDEOS = flags.DEFINE_integer("videos", 24, "How many there are.", lower_bound=2)
_WORKERS = flags.DEFINE_list("workers", ["0", "1", "2"], "The numbers of worker processes.")
_BATCHES = flags.DEFINE_integer("batches", 24, "Batches that are timed at once.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "How often.", lower_bound=1)
_TRAIN_STEPS = flags.DEFINE_integer("train_steps", 3, "Steps of Simple-CNN.", lower_bound=0)
_JSON = flags.DEFINE_string("json", None, "Write the numbers there.")

NUM_FRAMES, HEIGHT, WIDTH = 186, 240, 320  # of a video of UCF101, on average
UCF101_TRAIN = 9537  # videos of split 1


def write_videos(folder: Path, count: int, source: str) -> list[str]:
    """UCF101 of one class, in folders; the names of the videos."""
    names = [f"YoYo/v_YoYo_g{number:02}_c01.avi" for number in range(1, count + 1)]
    for number, name in enumerate(names):
        path = folder / "UCF-101" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if source:
            shutil.copy(source, path)
        else:
            write_scene(path, seed=number)
    lists = folder / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 YoYo\n")
    (lists / "trainlist01.txt").write_text("".join(f"{name} 1\n" for name in names[1:]))
    (lists / "testlist01.txt").write_text(f"{names[0]}\n")
    return names


def write_scene(path: Path, seed: int) -> None:
    """A camera that pans over a random scene with detail at every scale."""
    import av
    import cv2
    import numpy as np

    rng = np.random.default_rng(seed)
    scene = np.zeros((2 * HEIGHT, 2 * WIDTH, 3), np.float32)
    for octave in range(2, 8):
        coarse = rng.normal(size=(2**octave, 2**octave, 3)).astype(np.float32)
        fine = cv2.resize(coarse, scene.shape[1::-1], interpolation=cv2.INTER_CUBIC)
        scene += fine * 0.6**octave
    scene = np.clip(128 + 60 * scene / scene.std(), 0, 255).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.bit_rate = 400_000
        stream.codec_context.max_b_frames = 2
        for number in range(NUM_FRAMES):
            frame = scene[number : number + HEIGHT, number : number + WIDTH]
            video = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(video.reformat(format="yuv420p")))
        container.mux(stream.encode())


def sources(folder: Path, num_workers: int) -> dict:
    """The records and the files, as data sets."""
    import data

    records = data.default_config("ucf101")
    records.path = str(folder / "data")
    files = data.default_config("video_folder")
    files.path, files.cache_dir = str(folder / "downloads/UCF-101"), str(folder / "cache")
    files.test_fraction = 0.0
    records.num_workers = files.num_workers = num_workers
    made = {}
    for name, config in (("records", records), ("files", files)):
        videos = data.load(config, seed=0).videos
        repeated = Repeated(videos["train"], UCF101_TRAIN // len(videos["train"].labels))
        made[name] = data.make_source(
            data.Splits(["YoYo"], repeated, videos["test"]),
            data.ClipOptions.of(config),
            seed=0,
        )
    return made


class Repeated:
    """Videos, each many times over, as a data set of the size of UCF101 (`data.Videos`).

    Grain needs 5 ms to find a place in a permutation of 23 elements, and far less for thousands.
    """

    def __init__(self, videos, times: int):
        self._videos = videos
        self.labels = list(videos.labels) * times
        self.num_frames = list(videos.num_frames) * times
        self.fingerprint = videos.fingerprint

    def frame_size(self, index: int) -> tuple[int, int]:
        """Height and width."""
        return self._videos.frame_size(index % len(self._videos.labels))

    def read(self, index: int, *arguments):
        """Some frames."""
        return self._videos.read(index % len(self._videos.labels), *arguments)


class Rate(NamedTuple):
    """What some batches took."""

    clips_per_second: float
    cpu_ms_per_clip: float  # of this process and of its workers


def rate(batches, num_batches: int) -> Rate:
    """Takes `num_batches` batches.

    On a machine that others use, too, the processor time says what the rate would be without them.
    """
    cpu, start = cpu_seconds(), time.perf_counter()
    num_clips = sum(len(next(batches)["label"]) for _ in range(num_batches))
    took = time.perf_counter() - start
    return Rate(num_clips / took, 1e3 * (cpu_seconds() - cpu) / num_clips)


def cpu_seconds() -> float:
    """Processor time of this process and its workers so far."""
    import psutil

    me = psutil.Process()
    return sum(sum(one.cpu_times()[:2]) for one in [me, *me.children(recursive=True)])


def waiting(source, num_steps: int) -> dict[str, float]:
    """Trains Simple-CNN as `experiments.running.loop` does; seconds a step, and of these, waiting.

    The step before the first that counts compiles. The loop hands a step to the device, takes the
    next batch while it runs, and only then looks at the results of the last but one.
    """
    import jax

    from experiments.configs import ucf101
    from experiments.jobs.classification import job
    from experiments.running.execution import choose
    from experiments.running.optimizer import make_tx

    config = ucf101.get_config()
    network = job.make_network(config.model, len(source.classes))
    tx = make_tx(config.optimizer, source.steps_per_epoch)
    init, step = job.make_train_step(config, network, tx, choose(config, network.depth))
    step = jax.jit(step, donate_argnums=0)
    state = jax.jit(init)(jax.random.key(0))
    with contextlib.closing(iter(source.train)) as batches:
        state, metrics = step(state, jax.device_put(next(batches)))
        jax.block_until_ready(metrics)
        start, waited = time.perf_counter(), 0.0
        for _ in range(num_steps):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            last = metrics
            state, metrics = step(state, jax.device_put(batch))
            jax.block_until_ready(last)
        jax.block_until_ready(metrics)
        took = time.perf_counter() - start
    return {"seconds_a_step": took / num_steps, "fraction_waiting": waited / took}


class Settings(NamedTuple):
    """What is measured."""

    video: str  # a video to build from; "": made ones
    videos: int  # how many
    workers: tuple[int, ...]  # the numbers of worker processes
    batches: int  # that are timed at once
    rounds: int
    train_steps: int  # of Simple-CNN; 0: none


def main(argv: list[str]) -> None:
    """Runs the benchmark."""
    del argv
    from rich.console import Console

    from experiments.processes.machine import machine

    settings = Settings(
        video=_VIDEO.value,
        videos=_VIDEOS.value,
        workers=tuple(map(int, _WORKERS.value)),
        batches=_BATCHES.value,
        rounds=_ROUNDS.value,
        train_steps=_TRAIN_STEPS.value,
    )
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(settings, Path(scratch), Console())
    if _JSON.value:
        text = json.dumps({"machine": machine(), **result}, indent=2)
        Path(_JSON.value).write_text(text + "\n")


def measure(settings: Settings, folder: Path, console) -> dict:
    """Builds in `folder`, times and trains; prints the numbers and gives them, JSON."""
    result = build(settings, folder, console)
    rates = clip_rates(settings, folder)
    print_rates(settings, rates, console)
    result["clips_per_second"] = [
        {"source": name, "workers": workers, "rounds": [one._asdict() for one in values]}
        for (name, workers), values in rates.items()
    ]
    if settings.train_steps:
        num_workers = max(settings.workers)
        found = waiting(sources(folder, num_workers)["records"], settings.train_steps)
        console.print(
            f"training Simple-CNN: {found['seconds_a_step']:.2f} s a step, waiting "
            f"{100 * found['fraction_waiting']:.2f}% of the time ({num_workers} workers)",
            highlight=False,
        )
        result |= found
    return result


def build(settings: Settings, folder: Path, console) -> dict[str, float]:
    """Builds the data set; frames a second, and bytes a frame."""
    import data
    from experiments.processes.machine import machine

    names = write_videos(folder / "downloads", settings.videos, settings.video)
    start = time.perf_counter()
    built = data.build("ucf101", folder / "downloads", folder / "data", name="side_128")
    took = time.perf_counter() - start
    frames = sum(n for part in built.info.metadata["videos"].values() for _, n, *_ in part)
    size = built.info.dataset_size
    console.print(
        f"built {len(names)} videos, {frames} frames of {size / frames / 1000:.1f} kB, in "
        f"{took:.1f} s: {frames / took:.0f} frames/s on {machine()['cores']} cores",
        highlight=False,
    )
    return {"build_frames_per_second": frames / took, "bytes_a_frame": size / frames}


def clip_rates(settings: Settings, folder: Path) -> dict[tuple[str, int], list[Rate]]:
    """How fast clips come, by source and number of workers, round by round."""
    rates = {}
    for num_workers in settings.workers:
        with contextlib.ExitStack() as stack:
            streams = {
                name: stack.enter_context(contextlib.closing(iter(source.train)))
                for name, source in sources(folder, num_workers).items()
            }
            for _ in range(settings.rounds):
                for name, stream in streams.items():
                    # What the workers had ready does not count. Those of the other stream
                    # have filled their buffers by then, and are idle.
                    for _ in range(2 * num_workers + 2):
                        next(stream)
                    measured = rate(stream, settings.batches)
                    rates.setdefault((name, num_workers), []).append(measured)
    return rates


def print_rates(settings: Settings, rates: dict[tuple[str, int], list[Rate]], console) -> None:
    """Prints a row for every number of workers."""
    from rich.table import Table

    table = Table(title="clips/s, median (lowest to highest)")
    for column in ("workers", "JPEG records", "CPU", "AVI files", "CPU"):
        table.add_column(column, justify="right")
    for num_workers in settings.workers:
        cells = []
        for name in ("records", "files"):
            speeds, cpu = zip(*rates[name, num_workers], strict=True)
            middle = statistics.median(speeds)
            cells += [f"{middle:.1f} ({min(speeds):.1f} to {max(speeds):.1f})"]
            cells += [f"{statistics.median(cpu):.1f} ms/clip"]
        table.add_row(str(num_workers), *cells)
    console.print(table)


if __name__ == "__main__":
    app.run(main)
