"""Video files to JPEG frames, in several processes."""

import collections
import concurrent.futures
import itertools
import math
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2

from data.building import archives
from data.video import decoding


class Frames(NamedTuple):
    """A whole video, every frame a JPEG."""

    jpegs: list[bytes]
    height: int  # pixels, after resizing
    width: int


class Bad(NamedTuple):
    """Why a video cannot be used, in a few words."""

    reason: str


def encode(member: archives.Member, resize: int, quality: int) -> Frames | Bad:
    """Decodes a whole video, resizes its frames, and encodes every one of them.

    Args:
      member: the video.
      resize: how many pixels the shorter side gets (bilinear); 0 keeps the size.
      quality: of the JPEGs, 1 to 100.
    """
    jpegs, size = [], (0, 0)
    try:
        with archives.as_file(member) as path:
            for frame in decoding.iter_frames(path, resize=resize):
                size = frame.shape[:2]
                jpegs.append(_jpeg(frame, quality))
    except archives.DamagedMemberError as error:
        return Bad(str(error))
    except decoding.BadVideo as error:
        return Bad(error.reason)
    return Frames(jpegs, *size)


def encode_all(
    members: Sequence[archives.Member], resize: int, quality: int, num_processes: int
) -> Iterator[Frames | Bad]:
    """`encode` of every one of `members`, in order, made ahead in worker processes.

    Args:
      members: the videos.
      resize: how many pixels the shorter side gets (bilinear); 0 keeps the size.
      quality: of the JPEGs, 1 to 100.
      num_processes: how many; 0 takes one for every core that this process may use, 1 works in this
        process.

    Yields:
      What `encode` returns. At most three videos for each worker are in memory.

    Raises:
      OSError: if a worker runs out of disk space, or a program that unpacks is missing.
      RuntimeError: if a worker dies (of too little memory, most likely).
    """
    # Starting a process takes as long as decoding a few videos.
    workers = min(num_processes or available_cores(), math.ceil(len(members) / 8))
    if workers <= 1:
        for member in members:
            yield encode(member, resize, quality)
        return
    # Fork would copy the locks of threads that this process has, and JAX has many.
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(workers, context, initializer=_start)
    running = collections.deque()
    rest = iter(members)
    try:
        for member in itertools.islice(rest, 3 * workers):
            running.append(pool.submit(encode, member, resize, quality))
        while running:
            result = running.popleft().result()
            for member in itertools.islice(rest, 1):
                running.append(pool.submit(encode, member, resize, quality))
            yield result
    except concurrent.futures.process.BrokenProcessPool as error:
        raise RuntimeError(
            f"a process that decodes videos died, of too little memory most likely; take fewer "
            f"than {workers}: num_processes of the builder's configuration"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def available_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _start() -> None:
    cv2.setNumThreads(1)  # the processes are the parallelism


def _jpeg(frame, quality: int) -> bytes:
    bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
