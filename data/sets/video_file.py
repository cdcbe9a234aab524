"""One video as a stream of frames: a file, a camera, an address, or a pipe of another program.

`path` is a file in any of the formats of `data.video.decoding`; or a camera, as a number (0 is the
first) or as `/dev/videoN`; or an address, http, https, rtsp or rtsps; or a named pipe.

**Splits of a file.** "train" is its first three quarters and "test" its last quarter, so test
frames are never trained on, but they come from the same recording. "all" is the whole file; with
one slot it starts at once, where the other splits first decode the file to count its frames
(`data.video.scan` keeps what it found in the user's cache). What is live has no end that could be
held out: it has "all" alone, and "train" is the same.

**Several slots.** A part is cut into `batch_size` segments, equally long to within a frame, and
every slot plays one of them. What is live has one slot.

**The end.** A segment is played once, or with `repeat` over and over: after its last frame comes
its first, as another stream with a reset. It never runs backwards. "test" is always played once.
Going back, and beginning in the middle, decode the file from its start: seeking is not exact.

**Size.** The shorter side is resized to `size` and the middle is cut out, `size` x `size` pixels.

**Going on.** A file may have moved since: its content is compared, by size and samples.

**Live sources** are read as fast as frames are asked for, one frame ahead. While no frame is asked
for, the camera's driver, the server or the writer of the pipe decides what is lost. Damaged frames
from an address are left out and counted in a warning.
"""

import contextlib
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator

import av
import ml_collections
import numpy as np
from absl import logging

from data.batches import sampling
from data.batches.streams import Piece, Programme
from data.video import boxes, decoding, live, scan

_TRAIN_SHARE = 0.75
_PIECE = 2**16  # bytes that are hashed, at five places of a file
_AHEAD = 8  # frames that are decoded before they are asked for, for every slot


def default_config() -> ml_collections.ConfigDict:
    """The fields of `config.data` for one video, with their defaults."""
    config = ml_collections.ConfigDict()
    config.name = "video_file"
    config.path = ""  # a file, a camera (its number or /dev/videoN), an address or a named pipe
    config.size = 240  # height and width of the frames, pixels
    config.stride = 1  # take every stride-th frame
    config.batch_size = 1  # segments of the file that are played at the same time
    config.repeat = True  # a file starts again from its first frame, or ends
    config.stall_seconds = 10.0  # an error after so long without a frame; 0 waits for ever
    return config


def programme(config: ml_collections.ConfigDict, *, seed: int, split: str) -> Programme:
    """The whole source, or segments of a file. The seed changes nothing.

    Raises:
      BadVideo: if the source does not exist or is no video. While the stream plays, also if a
        frame is damaged or has another size than those before it, or if the source stalls.
      ValueError: if a value of `config` is out of range, or the split does not fit the source.
    """
    del seed
    _check(config, split)
    path = str(config.path)
    is_live = live.is_live(path)
    name = live.printable(path)
    if is_live and config.batch_size > 1:
        raise ValueError(f"batch_size is {config.batch_size}; {name} is live and fills one slot")
    if is_live and split == "test":
        raise ValueError(
            f"{name} is live: there is no last quarter of it to test on. Record it to a file, or "
            "score while it trains"
        )
    if not is_live:
        path = name = os.path.abspath(os.path.expanduser(path))
    segments = [(0, None)]
    if not is_live and (split != "all" or config.batch_size > 1):
        segments = _segments(path, split, config.batch_size, config.stride)
    repeat = config.repeat and split != "test" and not is_live

    def piece(slot: int, number: int) -> Piece | None:
        if number and not repeat:
            return None
        if number == 1:
            logging.info("%s: slot %d starts again from its first frame", path, slot)
        first, num_frames = segments[slot]
        return Piece(number * config.batch_size + slot, first, num_frames)

    def frames(piece: Piece, start: int) -> Iterator[np.ndarray | None]:
        if is_live:
            decoded = live.frames(path, config.stall_seconds or None)
            return _live_frames(name, decoded, config.size, config.stride)
        decoded = decoding.decode(path)
        return _frames(path, decoded, piece, start, config.size, config.stride)

    lengths = [num_frames for _, num_frames in segments]
    return Programme(
        batch_size=config.batch_size,
        size=config.size,
        piece=piece,
        frames=frames,
        num_steps=None if repeat or None in lengths else max(lengths),
        stall_seconds=config.stall_seconds or None,
        name=name,
        live=is_live,
        ahead=1 if is_live else _AHEAD,  # the newest frames are wanted, not old ones
        what={
            "name": "video_file",
            "path": name,
            **({} if is_live else {"content": content(path)}),
            "split": split,
            **{field: config[field] for field in ("size", "stride", "batch_size", "repeat")},
        },
    )


def content(path: str) -> str:
    """What tells files apart, wherever they are: the size, and a hash of the beginning and the end
    and of a piece out of each quarter.

    Raises:
      BadVideo: if the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest = hashlib.sha256()
            for quarter in range(5):
                file.seek((size - _PIECE) * quarter // 4 if size > _PIECE else 0)
                digest.update(file.read(_PIECE))
    except OSError as error:
        raise decoding.UnreadableVideo(path, f"cannot be read: {error.strerror}") from error
    return f"{size} bytes, {digest.hexdigest()[:16]}"


def part(num_frames: int, split: str) -> tuple[int, int]:
    """The first frame of a split of a file, and one more than its last.

    >>> part(310, "train"), part(310, "test")
    ((0, 232), (232, 310))
    """
    boundary = int(_TRAIN_SHARE * num_frames)
    return {"train": (0, boundary), "test": (boundary, num_frames), "all": (0, num_frames)}[split]


def _segments(path: str, split: str, batch_size: int, stride: int) -> list[tuple[int, int]]:
    """The first frame and the number of frames of every slot's segment."""
    folder, name = os.path.split(path)
    [info] = scan.scan(folder, [name]).values()
    if isinstance(info, decoding.BadVideo):
        raise type(info)(path, info.reason)
    start, stop = part(info.num_frames, split)
    edges = [start + (stop - start) * slot // batch_size for slot in range(batch_size + 1)]
    shortest = min(end - first for first, end in itertools.pairwise(edges))
    if stride > 1 and 0 < shortest <= stride:
        raise ValueError(
            f"stride is {stride}, but {path} has {info.num_frames} frames, and a segment of its "
            f"{split} part {shortest}: one frame would be left of it; set stride to less than that"
        )
    segments = [(first, -(-(end - first) // stride)) for first, end in itertools.pairwise(edges)]
    if not all(num_frames for _, num_frames in segments):
        raise ValueError(
            f"{path} has {info.num_frames} frames; its {split} part is too short for batch_size="
            f"{batch_size} segments"
        )
    return segments


def _frames(
    path: str, decoded: Iterator[av.VideoFrame], piece: Piece, start: int, size: int, stride: int
) -> Iterator[np.ndarray | None]:
    """Frames of a piece of a file; None for every frame that is decoded and left out."""
    wanted = piece.first + start * stride
    num_frames, found = piece.num_frames, start
    picture = _pictures(path, size)
    number = -1
    with contextlib.closing(decoded):
        for number, frame in enumerate(decoded):
            if number != wanted:
                yield None
                continue
            yield picture(frame)
            found += 1
            wanted += stride
            if found == num_frames:
                return
    if num_frames is not None:
        raise decoding.BadVideo(path, f"has {number + 1} frames, but frame {wanted} was asked for")


def _live_frames(
    name: str, decoded: Iterator[av.VideoFrame], size: int, stride: int
) -> Iterator[np.ndarray | None]:
    """Frames as they come; None for every frame that is left out."""
    picture = _pictures(name, size)
    number = -1
    with contextlib.closing(decoded):
        for number, frame in enumerate(decoded):
            yield None if number % stride else picture(frame)
    logging.warning("%s ended after %d frames", name, number + 1)


def _pictures(name: str, size: int) -> Callable[[av.VideoFrame], np.ndarray]:
    """A function that cuts the middle out of a frame: uint8 [size, size, 3]."""
    convert = decoding.Converter(name, size, None)

    def picture(frame: av.VideoFrame) -> np.ndarray:
        pixels = convert(frame)
        middle = sampling.centre_crop(*pixels.shape[:2], size)
        return np.ascontiguousarray(boxes.crop(pixels, middle))

    return picture


def _check(config: ml_collections.ConfigDict, split: str) -> None:
    if split not in ("train", "test", "all"):
        raise ValueError(f"split is {split!r}; it can be train, test or all")
    if not str(config.path):
        raise ValueError(
            "path is empty; give a video file or a camera: --config.data.path=FILE, or =0"
        )
    for name in ("size", "stride", "batch_size"):
        if config[name] < 1:
            raise ValueError(f"{name} is {config[name]}; it must be at least 1")
    if config.stall_seconds < 0:
        raise ValueError(f"stall_seconds is {config.stall_seconds}; it must be 0 or more")
