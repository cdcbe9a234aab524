"""Videos whose pixels say which frame they are: real files, and the same kept in memory."""

import contextlib
import pathlib
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np

HEIGHT, WIDTH = 48, 64
_BITS = 8  # frame numbers below 256, one block of 16x12 pixels for each bit

CODECS = {
    "mpeg4.avi": {"codec": "mpeg4", "b_frames": 2},  # UCF101 is MPEG-4 in AVI
    "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},  # CATER is MJPEG in AVI
    "h264.mp4": {"codec": "libx264", "b_frames": 2},
    "h264.mkv": {"codec": "libx264", "b_frames": 2},
    "h264.mov": {"codec": "libx264", "b_frames": 2},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
}

# Containers without a number of frames that could be held against what decodes, or seldom met.
# `theora.ogv` lies beside this file: the FFmpeg of PyAV decodes Theora and cannot encode it.
OTHERS = {
    "h264.m4v": {"codec": "libx264", "b_frames": 2},
    "mpeg1.mpg": {"codec": "mpeg1video", "b_frames": 2},
    "mpeg2.mpeg": {"codec": "mpeg2video", "b_frames": 2},
    "mpeg2.vob": {"codec": "mpeg2video", "b_frames": 2},
    "mpeg2.ts": {"codec": "mpeg2video", "b_frames": 2},
    "h264.ts": {"codec": "libx264", "b_frames": 2},
    "h264.m2ts": {"codec": "libx264", "b_frames": 2},
    "wmv1.wmv": {"codec": "wmv1"},
    "wmv2.wmv": {"codec": "wmv2"},
    "msmpeg4.asf": {"codec": "msmpeg4"},
    "sorenson.flv": {"codec": "flv"},
    "h264.flv": {"codec": "libx264", "b_frames": 2},
    "h264.3gp": {"codec": "libx264"},
    "mpeg4.3g2": {"codec": "mpeg4"},
    "colours.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "vp8.ogv": {"codec": "libvpx"},
}


def numbered_frame(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A frame [height, width, 3] that shows `number` in black and white blocks, 2 x 4 of them."""
    bits = (number >> np.arange(_BITS)) & 1
    grid = np.repeat(np.repeat(255 * bits.reshape(2, 4), height // 2, 0), width // 4, 1)
    return np.repeat(grid[..., None], 3, axis=-1).astype(np.uint8)


def numbers_of(frames: np.ndarray) -> list[int]:
    """The numbers that `frames` [..., H, W, 3] show, whatever the codec did to them."""
    height, width = frames.shape[-3] // 2, frames.shape[-2] // 4
    frames = frames.reshape(-1, *frames.shape[-3:])[..., : 2 * height, : 4 * width, 1]
    blocks = frames.reshape(-1, 2, height, 4, width).mean(axis=(2, 4))
    return ((blocks > 128).reshape(-1, _BITS) @ (1 << np.arange(_BITS))).tolist()


def write_video(
    path: pathlib.Path,
    num_frames: int = 40,
    *,
    codec: str = "mpeg4",
    b_frames: int = 0,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    height: int = HEIGHT,
    width: int = WIDTH,
    times: Sequence[float] = (),
) -> pathlib.Path:
    """Writes a video of numbered frames and returns its path.

    Frames come 25 times a second, or at `times`, in seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width, stream.pix_fmt = height, width, pix_fmt
        stream.bit_rate = 1_000_000
        stream.codec_context.gop_size = 12
        if b_frames:
            stream.codec_context.max_b_frames = b_frames
        for number in range(num_frames):
            pixels = numbered_frame(number % 2**_BITS, height, width)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pix_fmt)
            if len(times):
                frame.pts, frame.time_base = round(1000 * times[number]), Fraction(1, 1000)
                stream.codec_context.time_base = Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_noise(path: pathlib.Path, num_frames: int = 40, **settings) -> pathlib.Path:
    """Writes a video of noise, so that every part of the file carries pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(settings.get("codec", "mpeg4"), rate=25)
        stream.height, stream.width = HEIGHT, WIDTH
        stream.pix_fmt = settings.get("pix_fmt", "yuv420p")
        stream.bit_rate = 2_000_000
        for _ in range(num_frames):
            noise = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
            frame = av.VideoFrame.from_ndarray(noise, format="rgb24")
            container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
        container.mux(stream.encode())
    return path


def edited(path: pathlib.Path, name: str, edit) -> pathlib.Path:
    """A copy of the file next to it whose bytes went through `edit(bytearray)`."""
    data = bytearray(path.read_bytes())
    data = edit(data) or data
    copy = path.with_name(name)
    copy.write_bytes(data)
    return copy


@contextlib.contextmanager
def closing_all(*iterators):
    """Closes the iterators at the end, which ends their workers."""
    try:
        yield iterators
    finally:
        for iterator in iterators:
            iterator.close()


class CodedVideos:
    """Videos in memory; the channels of a pixel are its frame's number, its row and its column."""

    fingerprint = "coded"

    def __init__(self, num_frames: list[int], height: int = 10, width: int = 12):
        self.labels = list(range(len(num_frames)))
        self.num_frames = num_frames
        self._size = (height, width)

    def frame_size(self, video):
        return self._size

    def _frame(self, number):
        rows, columns = np.indices(self._size)
        return np.stack([np.full(self._size, number), rows, columns], -1).astype(np.uint8)

    def read(self, video, frames, box, rng):
        top, left, height, width = box
        clip = np.stack([self._frame(number) for number in frames])
        return clip[:, top : top + height, left : left + width]

    def stream(self, video, box):
        top, left, height, width = box
        for number in range(self.num_frames[video]):
            yield self._frame(number)[top : top + height, left : left + width]
