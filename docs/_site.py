"""What mkdocs does with files of the repository that lie outside of docs/ (a hook of mkdocs.yml).

Links in the Markdown files are those that work on GitHub. On the site the README is the first page,
and a file that a page links to, such as a launch file, is there to be downloaded.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[^)\s]*)?\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that lie in the root of the repository."""
    for path, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns the links of a page, which are relative to its file, into those of the site."""
    here = page.file.src_uri
    folder = posixpath.dirname(_in_repository(here))

    def turned(match: re.Match) -> str:
        path = posixpath.normpath(posixpath.join(folder, match[2]))
        if not (ROOT / path).is_file():
            return match[0]  # mkdocs says that it is not there.
        there = _on_site(path)
        if there not in files.src_uris:
            files.append(File.generated(config, there, abs_src_path=str(ROOT / path)))
        return match[1] + posixpath.relpath(there, posixpath.dirname(here) or ".") + match[3]

    return LINK.sub(turned, markdown)


def _in_repository(page: str) -> str:
    return {there: path for path, there in PAGES.items()}.get(page, f"docs/{page}")


def _on_site(path: str) -> str:
    if path in PAGES:
        return PAGES[path]
    return path.removeprefix("docs/") if path.startswith("docs/") else f"files/{path}"
