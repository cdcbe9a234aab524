"""Names that users gave to files and folders, in tables and pictures: any bytes, any script."""

from __future__ import annotations

import functools

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text


def printable(name: str) -> str:
    r"""The name, with escapes in place of bytes that are not UTF-8 and of control characters.

    Printing them as they are would fail, or move the cursor.

    >>> printable("run\udcff, 走る, [b]")
    'run\\xff, 走る, [b]'
    """
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def draw_plainly(text: Text) -> None:
    """Makes Matplotlib draw the characters of a text as they are.

    Dollar signs would be formulas. Characters that the font lacks come from another font of this
    machine; where none has them, their numbers are shown.
    """
    text.set_parse_math(False)
    families, shown = ["DejaVu Sans"], ""
    for character in "\n".join(map(printable, text.get_text().split("\n"))):
        family = families[0] if character == "\n" else _family_with(character)
        shown += character if family else f"U+{ord(character):04X} "
        if family and family not in families:
            families.append(family)
    text.set_text(shown)
    text.set_fontfamily(families)


@functools.cache
def _family_with(character: str) -> str | None:
    """A font of this machine that has the character: Matplotlib's own if it does."""
    fonts = font_manager.fontManager.ttflist
    for font in sorted(fonts, key=lambda font: (font.name != "DejaVu Sans", font.name)):
        if _has(font.fname, ord(character)):
            return font.name
    return None


@functools.cache
def _characters(file: str) -> frozenset[int]:
    try:
        return frozenset(FT2Font(file).get_charmap())
    except (RuntimeError, OSError):  # A font that has been removed, or is damaged.
        return frozenset()


def _has(file: str, character: int) -> bool:
    return character in _characters(file)
