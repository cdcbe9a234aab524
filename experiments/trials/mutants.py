"""Videos with bytes flipped, cut off or swapped: each is decoded, or refused by name.

Another process decodes them. One that crashes, or is silent for `SECONDS`, names the video.
"""

from __future__ import annotations

import queue
import random
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments.examples import videos

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60.0
CODECS = "mpeg4", "mjpeg"
KINDS = "flipped", "truncated", "swapped"
_DECODE = """
import sys
from data import BadVideo, decode
for path in sys.argv[1:]:
    try:
        said = "decoded %d" % sum(1 for _ in decode(path))
    except BadVideo as error:
        said = "refused" if path in str(error) else "unnamed"
    except Exception as error:
        said = "raised " + type(error).__name__
    print(said, flush=True)
"""


def run(numbers: range, folder: Path) -> Iterator[dict]:
    """Yields the outcome of every video."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [_mutant(number, folder) for number in numbers]
    for number, said in zip(numbers, _outcomes(files), strict=True):
        yield {
            "number": number, "kind": KINDS[number % 3], "codec": CODECS[number // 3 % 2],
            "outcome": said, "failed": said.split()[0] not in ("decoded", "refused"),
        }  # fmt: skip


def mutate(content: bytes, kind: str, moment: random.Random) -> bytes:
    """The bytes of a video, changed.

    >>> mutate(b"abcdef", "truncated", random.Random(0))
    b'abc'
    """
    changed = bytearray(content)
    if kind == "truncated":
        return content[: moment.randrange(len(content))]
    for _ in range(moment.choice((1, 10, 100))):
        if kind == "flipped":
            changed[moment.randrange(len(changed))] ^= 1 << moment.randrange(8)
        else:
            size = moment.randrange(1, 65)
            first, second = (moment.randrange(len(changed) - size) for _ in range(2))
            changed[first : first + size], changed[second : second + size] = (
                changed[second : second + size], changed[first : first + size],
            )  # fmt: skip
    return bytes(changed)


def _mutant(number: int, folder: Path) -> Path:
    file = folder / f"mutant-{number}.avi"
    videos.write_video(file, number % 20, (1, 1), CODECS[number // 3 % 2])
    file.write_bytes(mutate(file.read_bytes(), KINDS[number % 3], random.Random(number)))
    return file


def _outcomes(files: Sequence[Path]) -> Iterator[str]:
    left = [str(file) for file in files]
    while left:
        process = subprocess.Popen([sys.executable, "-c", _DECODE, *left], cwd=ROOT, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)  # fmt: skip
        lines: queue.Queue = queue.Queue()
        threading.Thread(target=_read, args=(process, lines), daemon=True).start()
        while left:
            try:
                line = lines.get(timeout=SECONDS)
            except queue.Empty:
                line = "hung"
            left.pop(0)
            yield line or "crashed"
            if line in ("", "hung"):
                break
        process.kill()
        process.communicate()


def _read(process: subprocess.Popen, lines: queue.Queue) -> None:
    for line in process.stdout:
        lines.put(line.strip())
    lines.put("")
