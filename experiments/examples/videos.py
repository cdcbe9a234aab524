"""A few tiny videos, for smoke tests of training on files."""

from pathlib import Path

import av
import numpy as np

CLASSES = {"falling": (1, 0), "rightwards": (0, 1)}  # pixels a frame, down and to the right
NUM_FRAMES = 20
HEIGHT, WIDTH = 32, 48


def write(folder: Path) -> None:
    """Writes `FOLDER/{train,test}/CLASS/*.avi`: a square that falls or moves to the right.

    MPEG-4, 48x32 pixels, 20 frames; two videos of each class to train on and one to test. Existing
    files stay.
    """
    for name, velocity in CLASSES.items():
        for split, start in (("train", 0), ("train", 5), ("test", 9)):
            file = folder / split / name / f"from_{start}.avi"
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                write_video(file, start, velocity)


def write_lists(folder: Path) -> tuple[Path, Path]:
    """Writes the videos, and CSV files that list those to train on and those to test."""
    write(folder)
    lists = folder / "train.csv", folder / "test.csv"
    for file in lists:
        videos = sorted((folder / file.stem).glob("*/*.avi"))
        rows = [f"{video.relative_to(folder)},{video.parent.name}\n" for video in videos]
        file.write_text("".join(rows))
    return lists


def write_video(file: Path, start: int, velocity: tuple[int, int], codec: str = "mpeg4") -> None:
    """Writes one video, an AVI of a square that starts at `start` and moves by `velocity`."""
    unfinished = file.with_suffix(".part")
    with av.open(str(unfinished), "w", format="avi") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = WIDTH, HEIGHT
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.bit_rate = 400_000
        for number in range(NUM_FRAMES):
            pixels = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
            top, left = (start + step * number for step in velocity)
            rows = np.arange(top, top + 8) % HEIGHT
            columns = np.arange(left, left + 8) % WIDTH
            pixels[np.ix_(rows, columns)] = 220
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    unfinished.rename(file)
