"""Video files, decoded with PyAV.

A file is always decoded from its first frame, and frames are counted as they come: seeking by time
stamp lands on other frames in containers whose time stamps the muxer guessed, MPEG-4 with B-frames
in AVI above all. Frames are converted, resized and cropped one at a time, and only those that were
asked for, so memory depends on what is asked for and not on the length of the video.

What cannot be noticed: damage that is valid in the codec's own terms (a few zeros in the middle of
a picture), a hole in a WebM file, which declares no number of frames, if the frames after it
decode, and an end that is missing in a container that declares neither frames nor a duration: MPEG,
MPEG-TS, WMV, FLV, Ogg and GIF.
"""

import contextlib
import os
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from data.video import boxes, timing

# The demuxers of video containers. Without this list FFmpeg also opens still pictures, ANSI art and
# playlists that name other files, whatever the extension says.
FORMATS = "avi,mov,matroska,mpeg,mpegts,flv,asf,ogg,gif"

# What such files are called. Their content decides how they are read, not their name.
EXTENSIONS = (
    *(".avi", ".divx", ".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".mkv", ".webm", ".flv", ".f4v"),
    *(".mpg", ".mpeg", ".mpe", ".vob", ".ts", ".m2ts", ".mts", ".wmv", ".asf", ".ogv", ".ogg"),
    ".gif",
)

# A file that declares a duration instead of a number of frames may end this part of a frame early:
# Matroska rounds its time stamps to milliseconds.
_SLACK_FRAMES = 0.5


class BadVideo(Exception):
    """A video file that cannot be used.

    Attributes:
      path: the file.
      reason: what is wrong with it, in a few words.
    """

    def __init__(self, path: str, reason: str):
        # Both go to Exception, so that the error survives the way back from a worker process.
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{printable(self.path)}: {self.reason}"


class UnreadableVideo(BadVideo):
    """A file that could not even be opened: missing, or not ours to read. That may change."""


class VideoInfo(NamedTuple):
    """What is known of a video once it has been decoded."""

    num_frames: int  # frames that decode
    height: int  # pixels, as displayed
    width: int
    # When each frame begins, seconds, where the rate varies; see `data.video.timing`.
    times: array | None = None


def probe(path: str | os.PathLike) -> VideoInfo:
    """Decodes the whole file and says what is in it.

    Raises:
      BadVideo: if the file is missing, empty or not a video, if any part of it does not decode, if
        it decodes to fewer frames than it declares (or, for containers that declare a duration,
        Matroska and WebM, ends earlier), or if its frames differ in size.
    """
    path = os.fspath(path)
    stamps, first = [], None
    with _file(path) as container:
        for frame in frames_of(path, container):
            stamps.append(frame.time)
            first = first or frame
        # AVI has no time stamps: those of B-frames are guesses.
        times = None if container.format.name == "avi" else timing.varying(stamps)
    height, width = first.height, first.width
    if first.rotation % 180:
        height, width = width, height
    return VideoInfo(len(stamps), height, width, times)


def resized(height: int, width: int, resize: int | None) -> tuple[int, int]:
    """The size of a frame once its shorter side has `resize` pixels (None or 0: as it is).

    >>> resized(240, 320, 128)
    (128, 171)
    """
    if not resize:
        return height, width
    if height <= width:
        return resize, round(width * resize / height)
    return round(height * resize / width), resize


def iter_frames(
    path: str | os.PathLike,
    *,
    start: int = 0,
    stop: int | None = None,
    resize: int | None = None,
    crop: boxes.Box | None = None,
) -> Iterator[np.ndarray]:
    """Yields frames `start` to `stop - 1` in order, one at a time.

    Args:
      path: the file.
      start: the first frame, 0-based.
      stop: one more than the last frame; None goes to the end of the file.
      resize: how many pixels the shorter side gets (bilinear); None or 0 keeps the size.
      crop: the part of the resized frame that is wanted; None takes all of it.

    Yields:
      uint8 [H, W, 3], RGB, upright (the rotation that phones write into the file is applied).

    Raises:
      BadVideo: as soon as the file turns out to be bad, or if it ends before `stop`.
    """
    path = os.fspath(path)
    convert = Converter(path, resize, crop)
    number = -1
    with contextlib.closing(decode(path)) as decoded:
        for number, frame in enumerate(decoded):
            if number >= start:
                yield convert(frame)
            if stop is not None and number + 1 >= stop:
                return
    if stop is not None and number + 1 < stop:
        raise BadVideo(path, f"has {number + 1} frames, but frame {stop - 1} was asked for")


def read_frames(
    path: str | os.PathLike,
    indices: Sequence[int] | np.ndarray,
    *,
    resize: int | None = None,
    crop: boxes.Box | None = None,
) -> np.ndarray:
    """The frames of the video at `indices`.

    Args:
      path: the file.
      indices: 0-based frame numbers, in any order, repetitions allowed. The file is decoded up to
        the largest.
      resize: how many pixels the shorter side gets (bilinear); None or 0 keeps the size.
      crop: the part of the resized frames that is wanted; None takes all of it.

    Returns:
      uint8 [len(indices), H, W, 3], RGB, upright.

    Raises:
      BadVideo: if the file is bad or has no such frame.
      ValueError: if there is no index, or a negative one.
    """
    path = os.fspath(path)
    wanted, place = np.unique(np.asarray(indices, np.int64), return_inverse=True)
    if not wanted.size or wanted[0] < 0:
        raise ValueError(f"indices must be one or more frame numbers from 0, got {indices!r}")
    convert = Converter(path, resize, crop)
    frames = None
    found = 0
    with contextlib.closing(decode(path)) as decoded:
        for number, frame in enumerate(decoded):
            if number != wanted[found]:
                continue
            pixels = convert(frame)
            if frames is None:
                frames = np.empty((len(wanted), *pixels.shape), np.uint8)
            frames[found] = pixels
            found += 1
            if found == len(wanted):
                break
        else:
            raise BadVideo(path, f"has {number + 1} frames, but frame {wanted[-1]} was asked for")
    in_order = np.array_equal(place, np.arange(len(wanted)))
    return frames if in_order else frames[place]


def printable(path: str) -> str:
    """The path as text that any terminal and log can take, whatever bytes its name is made of."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


class Converter:
    """Turns decoded frames into RGB arrays of the size that is wanted."""

    def __init__(self, path: str, resize: int | None, crop: boxes.Box | None):
        self._path = path
        self._resize = resize
        self._crop = crop
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """One frame, uint8 [H, W, 3]."""
        try:
            # One shared converter and one thread: PyAV's defaults make a new one with a thread pool
            # for every frame, which is 3 to 15 times slower and gives the same pixels.
            rgb = self._reformatter.reformat(frame, format="rgb24", threads=1)
        except av.error.FFmpegError as error:
            raise BadVideo(self._path, f"a frame cannot be converted: {error.strerror}") from error
        pixels = rgb.to_ndarray()
        if frame.rotation % 360:
            pixels = np.rot90(pixels, k=round(frame.rotation / 90))
        height, width = resized(*pixels.shape[:2], self._resize)
        if (height, width) != pixels.shape[:2]:
            pixels = np.ascontiguousarray(pixels)
            pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
        if self._crop is not None:
            if self._crop.top + self._crop.height > height:
                raise ValueError(f"{self._crop} leaves the frame of {height}x{width} pixels")
            if self._crop.left + self._crop.width > width:
                raise ValueError(f"{self._crop} leaves the frame of {height}x{width} pixels")
            pixels = boxes.crop(pixels, self._crop)
        return pixels


def decode(path: str) -> Iterator[av.VideoFrame]:
    """Yields every frame as FFmpeg hands it out; raises BadVideo at the first thing wrong."""
    with _file(path) as container:
        yield from frames_of(path, container)


@contextlib.contextmanager
def _file(path: str) -> Iterator[av.container.InputContainer]:
    try:
        with open(path, "rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise UnreadableVideo(path, f"cannot be read: {error.strerror}") from error
    if empty:
        raise BadVideo(path, "the file is empty")
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
    with opened(path, options=options) as container:
        yield container


@contextlib.contextmanager
def opened(
    path: str, *, device: str | None = None, options: dict[str, str]
) -> Iterator[av.container.InputContainer]:
    """Opens a file, or `path` of a kind of device such as v4l2, with FFmpeg's options.

    Raises:
      BadVideo: if FFmpeg cannot open it.
    """
    try:
        # Metadata in some other encoding than UTF-8 does no harm to the frames.
        container = av.open(path, format=device, metadata_errors="ignore", options=options)
    except (av.error.FFmpegError, ValueError) as error:  # ValueError: no such kind of device
        reason = getattr(error, "strerror", None) or error
        raise BadVideo(path, f"cannot be decoded: {reason}") from error
    with container:
        yield container


def frames_of(path: str, container: av.container.InputContainer) -> Iterator[av.VideoFrame]:
    """Yields every frame as FFmpeg hands it out.

    Raises:
      BadVideo: at the first thing wrong.
    """
    stream = video_stream(path, container)
    # Worker processes are the parallelism; a decoder's own threads would only compete.
    stream.thread_type = "NONE"
    # Without it FFmpeg patches damaged frames up and says nothing.
    stream.codec_context.options = {"err_detect": "explode"}
    declared = _declared_frames(container, stream)
    declared_end = _declared_end(container, stream)
    frame_time = float(1 / stream.average_rate) if stream.average_rate else 0.1
    count, first, end = 0, None, 0.0
    try:
        for packet in container.demux(stream):
            # An edit list may cut frames away that others need in order to be decoded.
            declared -= declared > 0 and packet.is_discard
            for frame in packet.decode():
                if frame.is_corrupt:
                    raise BadVideo(path, f"frame {count} is damaged")
                first = first or frame
                if (frame.width, frame.height) != (first.width, first.height):
                    raise BadVideo(
                        path,
                        f"frame {count} has {frame.width}x{frame.height} pixels, the first "
                        f"one {first.width}x{first.height}",
                    )
                if frame.time is not None:
                    lasts = float(frame.duration * frame.time_base) or frame_time
                    end = max(end, frame.time + lasts)
                count += 1
                yield frame
    except av.error.FFmpegError as error:
        where = f" after {_of(count, declared)} frames" if count else ""
        raise BadVideo(path, f"cannot be decoded{where}: {error.strerror}") from error
    if not count:
        raise BadVideo(path, "has no frames")
    if count < declared:
        raise BadVideo(path, f"ends after {_of(count, declared)} declared frames")
    if declared_end is not None and end + _SLACK_FRAMES * frame_time < declared_end:
        raise BadVideo(path, f"ends after {end:.2f} s of {declared_end:.2f} s declared")


def _of(count: int, declared: int) -> str:
    return f"{count} of {declared}" if declared else f"{count}"


def video_stream(path: str, container: av.container.InputContainer) -> av.VideoStream:
    """The first stream of pictures; raises BadVideo if there is none that can be decoded."""
    for stream in container.streams.video:
        # A cover picture in a sound file is a video stream, too.
        if stream.disposition & av.stream.Disposition.attached_pic:
            continue
        if stream.codec_context is None:
            raise BadVideo(path, "its codec is unknown to this FFmpeg")
        return stream
    raise BadVideo(path, "has no video stream")


def _declared_frames(container: av.container.InputContainer, stream: av.VideoStream) -> int:
    """How many frames the file says it has, 0 if it does not say."""
    if "mov" in container.format.name:
        # The index leaves out what an edit list cuts off, and fragmented files have one, too.
        return len(stream.index_entries) or stream.frames
    return stream.frames


def _declared_end(container: av.container.InputContainer, stream: av.VideoStream) -> float | None:
    """When the video ends, in seconds, as far as a container without a frame count says so."""
    if stream.frames or "matroska" not in container.format.name:
        return None
    if tag := stream.metadata.get("DURATION"):
        with contextlib.suppress(ValueError):
            hours, minutes, seconds = tag.split(":")
            return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    if len(container.streams) == 1 and container.duration:
        return container.duration / av.time_base
    return None
