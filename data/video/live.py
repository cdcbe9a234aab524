"""Sources of frames that come when they come: cameras, named pipes, and addresses on a network.

They cannot be wound back, and have no length. A network may lose parts of what it sends, and a
receiver that comes late begins in the middle: damaged frames of an address are left out and counted
in a warning, where a file or a pipe with one is bad.
"""

import errno
import os
import re
import stat
import sys
from collections.abc import Iterator

import av
from absl import logging

from data.video import decoding

_CAMERAS = {"linux": "v4l2", "darwin": "avfoundation"}
_PIPE_OPTIONS = {"format_whitelist": decoding.FORMATS, "protocol_whitelist": "file,pipe"}

# What each kind of address may open on the way. Never a file: a playlist from the network could
# name those of this machine.
_HTTP = "http,https,httpproxy,tcp,tls,crypto"
_RTSP = "rtsp,rtp,srtp,udp,tcp,tls,http,https"
_PROTOCOLS = {"http": _HTTP, "https": _HTTP, "rtsp": _RTSP, "rtsps": _RTSP}
_NETWORK_OPTIONS = {
    "format_whitelist": f"{decoding.FORMATS},mpjpeg,hls,rtsp,sdp,rtp",
}
# Over TCP where the server can: nothing is lost then, and firewalls let it through. It should say
# 461 if it cannot; some say 400.
_TRANSPORTS = ({"rtsp_flags": "prefer_tcp"}, {"rtsp_transport": "udp"})
_LATER = 5.0  # seconds: who waits for frames gives up first, and says so in better words
# MP4 as most programs write it; FFmpeg says no more than EIO when it cannot go back to the frames.
_INDEX_AT_THE_END = (
    ". An MP4 or MOV file with its index at the end needs a server that sends parts of files, "
    "which python -m http.server does not; ffmpeg -i FILE -c copy -movflags +faststart NEW.mp4 "
    "puts the index first"
)
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def is_live(path: str) -> bool:
    """Whether this is a camera, an address or a named pipe, and not a file."""
    if _is_camera(path) or _ADDRESS.match(path):
        return True
    try:
        return stat.S_ISFIFO(os.stat(os.path.expanduser(path)).st_mode)
    except OSError:
        return False  # decoding will say what is wrong


def printable(path: str) -> str:
    """The source without the password of an address.

    >>> printable("rtsp://me:secret@camera/1")
    'rtsp://...@camera/1'
    """
    return re.sub(r"(?<=://)[^/@]*@", "...@", path) if _ADDRESS.match(path) else path


def frames(path: str, patience: float | None) -> Iterator[av.VideoFrame]:
    """Yields frames as they come.

    Args:
      path: a camera, as a number or `/dev/videoN`; an address, http, https, rtsp or rtsps; or a
        named pipe.
      patience: for how many seconds the caller waits for a frame. Soon after that an address is
        given up, which ends a thread that waits for it. None waits for ever.

    Raises:
      BadVideo: if there is no such source, or it fails.
    """
    if match := _ADDRESS.match(path):
        yield from _network_frames(path, match[1].lower(), patience)
        return
    if _is_camera(path):
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


def _is_camera(path: str) -> bool:
    return path.isdecimal() or path.startswith("/dev/video")


def _network_frames(address: str, scheme: str, patience: float | None) -> Iterator[av.VideoFrame]:
    shown = printable(address)
    if scheme not in _PROTOCOLS:
        raise decoding.UnreadableVideo(
            shown, f"{scheme}:// cannot be opened; it can be {', '.join(_PROTOCOLS)}"
        )
    options = _NETWORK_OPTIONS | {"protocol_whitelist": _PROTOCOLS[scheme]}
    timeout = None if patience is None else patience + _LATER
    count, lost = 0, 0
    try:
        with _opened(address, scheme, options, timeout) as container:
            stream = decoding.video_stream(shown, container)
            stream.thread_type = "NONE"
            for packet in container.demux(stream):
                try:
                    decoded = packet.decode()
                except av.error.InvalidDataError:
                    lost += 1
                    continue
                for frame in decoded:
                    if frame.is_corrupt:
                        lost += 1
                    else:
                        count += 1
                        yield frame
    except (av.error.FFmpegError, OSError) as error:
        after = f" after {count} frames" if count else ""
        reason = getattr(error, "strerror", None) or error
        if not count and scheme.startswith("http") and error.errno == errno.EIO:
            reason = f"{reason}{_INDEX_AT_THE_END}"
        raise decoding.BadVideo(shown, f"cannot be read{after}: {reason}") from error
    finally:
        if lost:
            logging.warning("%s: %d damaged frames were left out", shown, lost)
    if not count:
        raise decoding.BadVideo(shown, "has no frames")


def _opened(
    address: str, scheme: str, options: dict[str, str], timeout: float | None
) -> av.container.InputContainer:
    def with_transport(transport: dict[str, str]) -> av.container.InputContainer:
        return av.open(
            address, metadata_errors="ignore", options=options | transport, timeout=timeout
        )

    if not scheme.startswith("rtsp"):
        return with_transport({})
    try:
        return with_transport(_TRANSPORTS[0])
    except (av.error.HTTPBadRequestError, av.error.HTTPOtherClientError):
        return with_transport(_TRANSPORTS[1])
