"""A web server on this machine that plays videos."""

import contextlib
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2

from tests.data import videos

BOUNDARY = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"


@contextlib.contextmanager
def serving(pages: dict[str, Callable[[http.server.BaseHTTPRequestHandler], None]]) -> Iterator:
    """Serves `pages` by their paths, and gives the address; any other path is not found."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            page = pages.get(self.path)
            if page is None:
                self.send_error(404)
                return
            with contextlib.suppress(ConnectionError):  # The reader has seen enough.
                page(self)

        def log_message(self, *arguments):
            del arguments

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def file(path: Path, share: float = 1.0) -> Callable:
    """A page: the file, or the first part of it and then the end of the connection."""

    def page(handler):
        content = path.read_bytes()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[: int(share * len(content))])

    return page


def camera(num_frames: int, then: threading.Event | None = None, damaged: int = -1) -> Callable:
    """A page: what network cameras send, one JPEG after the other, of numbered frames.

    Args:
      num_frames: how many; then the page ends.
      then: is waited for before it ends.
      damaged: the number of a frame that is no JPEG.
    """

    def page(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        handler.end_headers()
        for number in range(num_frames):
            picture = cv2.imencode(".jpg", videos.numbered_frame(number))[1].tobytes()
            if number == damaged:
                picture = picture[:20] + bytes(len(picture) - 20)
            handler.wfile.write(BOUNDARY % len(picture) + picture + b"\r\n")
        if then is not None:
            then.wait(20)

    return page
