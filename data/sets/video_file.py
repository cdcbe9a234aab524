"""One video as a stream of frames: a file, a camera, or a pipe that another program writes to.

`path` is a file in any of the formats of `data.video.decoding`; or a camera, as a number (0 is the
first) or as `/dev/videoN`; or a named pipe.

**Splits of a file.** "train" is its first three quarters and "test" its last quarter, so test
frames are never trained on, but they come from the same recording. "all" is the whole file; with
one slot it starts at once, where the other splits first decode the file to count its frames
(`data.video.scan` keeps what it found in the user's cache). What is live has no end that could be
held out: it has "all" alone, and "train" is the same.

**Several slots.** A part is cut into `batch_size` segments, equally long to within a frame, and
every slot plays one of them. A camera or a pipe has one slot.

**The end.** A segment is played once, or with `repeat` over and over: after its last frame comes
its first, as another stream with a reset. It never runs backwards. "test" is always played once.
Going back, and beginning in the middle, decode the file from its start: seeking is not exact.

**Size.** The shorter side is resized to `size` and the middle is cut out, `size` x `size` pixels.

**Live sources** are read as fast as frames are asked for, one frame ahead. While no frame is asked
for, the camera's driver or the writer of the pipe decides what is lost.
"""

import contextlib
import itertools
import os
import stat
import sys
from collections.abc import Iterator

import ml_collections
import numpy as np
from absl import logging

from data.batches import sampling
from data.batches.streams import Piece, Programme
from data.video import boxes, decoding, scan

_TRAIN_SHARE = 0.75
_AHEAD = 8  # frames that are decoded before they are asked for, for every slot
_CAMERAS = {"linux": "v4l2", "darwin": "avfoundation"}
_PIPE_OPTIONS = {"format_whitelist": decoding.FORMATS, "protocol_whitelist": "file,pipe"}


def default_config() -> ml_collections.ConfigDict:
    """The fields of `config.data` for one video, with their defaults."""
    config = ml_collections.ConfigDict()
    config.name = "video_file"
    config.path = ""  # a file, a named pipe, or a camera: its number or /dev/videoN
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
    live = _is_live(path)
    if live and config.batch_size > 1:
        raise ValueError(f"batch_size is {config.batch_size}; {path} is live and fills one slot")
    if live and split == "test":
        raise ValueError(
            f"{path} is live: there is no last quarter of it to test on. Record it to a file, or "
            "score while it trains"
        )
    if not live:
        path = os.path.abspath(os.path.expanduser(path))
    segments = [(0, None)]
    if not live and (split != "all" or config.batch_size > 1):
        segments = _segments(path, split, config.batch_size, config.stride)
    repeat = config.repeat and split != "test" and not live

    def piece(slot: int, number: int) -> Piece | None:
        if number and not repeat:
            return None
        if number == 1:
            logging.info("%s: slot %d starts again from its first frame", path, slot)
        first, num_frames = segments[slot]
        return Piece(number * config.batch_size + slot, first, num_frames)

    def frames(piece: Piece, start: int) -> Iterator[np.ndarray | None]:
        return _frames(path, piece, 0 if live else start, config.size, config.stride, live)

    lengths = [num_frames for _, num_frames in segments]
    return Programme(
        batch_size=config.batch_size,
        size=config.size,
        piece=piece,
        frames=frames,
        num_steps=None if repeat or None in lengths else max(lengths),
        stall_seconds=config.stall_seconds or None,
        name=path,
        live=live,
        ahead=1 if live else _AHEAD,  # the newest frames are wanted, not old ones
        what={
            "name": "video_file",
            "path": path,
            "split": split,
            **{field: config[field] for field in ("size", "stride", "batch_size", "repeat")},
        },
    )


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
    segments = [(first, -(-(end - first) // stride)) for first, end in itertools.pairwise(edges)]
    if not all(num_frames for _, num_frames in segments):
        raise ValueError(
            f"{path} has {info.num_frames} frames; its {split} part is too short for batch_size="
            f"{batch_size} segments"
        )
    return segments


def _frames(
    path: str, piece: Piece, start: int, size: int, stride: int, live: bool
) -> Iterator[np.ndarray | None]:
    """Frames of a piece; None for every frame that is decoded and left out."""
    wanted = piece.first + start * stride
    num_frames, found = piece.num_frames, start
    convert = decoding.Converter(path, size, None)
    number = -1
    with contextlib.closing(_live_frames(path) if live else decoding.decode(path)) as decoded:
        for number, frame in enumerate(decoded):
            if number != wanted:
                yield None
                continue
            pixels = convert(frame)
            yield np.ascontiguousarray(
                boxes.crop(pixels, sampling.centre_crop(*pixels.shape[:2], size))
            )
            found += 1
            wanted += stride
            if found == num_frames:
                return
    if num_frames is not None:
        raise decoding.BadVideo(path, f"has {number + 1} frames, but frame {wanted} was asked for")
    if live:
        logging.warning("%s ended after %d frames", path, number + 1)


def _is_live(path: str) -> bool:
    if path.isdecimal() or path.startswith("/dev/video"):
        return True
    try:
        return stat.S_ISFIFO(os.stat(os.path.expanduser(path)).st_mode)
    except OSError:
        return False  # decoding will say what is wrong


def _live_frames(path: str):
    if path.isdecimal() or path.startswith("/dev/video"):
        device = _CAMERAS.get(sys.platform)
        if device is None:
            raise decoding.UnreadableVideo(path, f"cameras are not supported on {sys.platform}")
        if device == "v4l2":
            path = f"/dev/video{path}" if path.isdecimal() else path
            if not os.path.exists(path):
                raise decoding.UnreadableVideo(path, "there is no such camera")
        opened = decoding.opened(path, device=device, options={})
    else:
        opened = decoding.opened(os.path.expanduser(path), options=_PIPE_OPTIONS)
    with opened as container:
        yield from decoding.frames_of(path, container)


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
