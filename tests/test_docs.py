"""Pages of the documentation: their links, their code, and the names that the reference has.

`.ci/run` builds the site itself, with warnings as errors. Here links have to lead somewhere on
GitHub.
"""

import importlib
import re
import subprocess
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import sideways_jax
from sideways_jax import Network, from_linen, step

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")


def prose(page):
    """The text of a page without its code."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", lambda code: code[0].replace("](", "]"), text)


def anchors(page):
    """The names that GitHub, and the site, give to the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in LINK.findall(prose(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.is_file(), link
        assert there.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(there), link


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    of_docs = {page.relative_to(ROOT / "docs").as_posix() for page in ROOT.glob("docs/**/*.md")}
    listed = set(re.findall(r"[\w/]+\.md", text.partition("\nnav:")[2].partition("\n\n")[0]))
    assert listed == of_docs | {"index.md", "changelog.md", "contributing.md"}


def test_commands_name_programs_that_are_there():
    for page in PAGES:
        if page.name == "CHANGELOG.md":
            continue
        paths = re.findall(
            r"\b(?:experiments|tests|data)/[\w/]+\.(?:py|sh|yaml)\b", page.read_text()
        )
        assert [path for path in paths if not (ROOT / path).is_file()] == [], page


# Pages whose examples have tests of their own, and one that would download.
ELSEWHERE = ("own.md", "after_training.md", "data.md")


@pytest.mark.usefixtures("quick_compile", "usual_promotion")
@pytest.mark.parametrize(
    "page",
    [p for p in PAGES if p.parent.name == "docs" and p.name not in ELSEWHERE
     and "```python" in p.read_text()],
    ids=lambda page: page.name,
)  # fmt: skip
def test_code_runs(page):
    """In one place for each page, where a small network and a clip for it are at hand."""
    network = Network([from_linen(nn.Dense(n)) for n in (4, 4, 3)])
    frames, targets = jnp.ones((6, 2, 5)), jnp.zeros((6, 2, 3))
    params, state = network.init(jax.random.key(0), frames[0])
    names = {
        "jax": jax, "jnp": jnp, "np": np, "optax": optax, "step": step, "network": network,
        "loss_fn": lambda output, target: jnp.mean((output - target) ** 2), "tx": optax.sgd(0.1),
        "params": params, "state": state, "frames": frames, "targets": targets,
    }  # fmt: skip
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(code, names)


def test_the_reference_has_all_public_names():
    said = "".join(page.read_text() for page in ROOT.glob("docs/api/*.md"))
    described = set(re.findall(r"^::: ([\w.]+)$", said, re.MULTILINE))
    for name in sideways_jax.__all__:
        if name not in ("step", "__version__"):
            assert f"sideways_jax.{name}" in described
    for door in ("step", "stream"):
        public = set(importlib.import_module(f"sideways_jax.{door}").__all__)
        elsewhere = {"EXECUTIONS", *sideways_jax.__all__}
        if door == "stream":
            elsewhere.add("Outputs")  # of step, too
        missing = {f"sideways_jax.{door}.{name}" for name in public - elsewhere} - described
        assert not missing


def test_badges_say_what_is_so():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    badges = {path.stem: path.read_text() for path in ROOT.glob("docs/badges/*.svg")}
    readme = (ROOT / "README.md").read_text()
    assert badges.keys() == {"docs", "licence", "notebook", "python"}
    for name in badges:
        assert f"](docs/badges/{name}.svg)]" in readme
    assert project["license"] in badges["licence"]
    assert project["requires-python"] == ">=3.11"
    assert "3.11 | 3.12" in badges["python"]


def test_the_launch_files_are_shell():
    for path in ROOT.glob("experiments/hosts/*.sh"):
        subprocess.run(["bash", "-n", path], check=True)
