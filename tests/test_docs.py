"""The documentation, held to its word: examples run as they stand, links lead somewhere, every error is explained."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.run import get_args_parser

from bestofn.judge.judge import EMBEDDED as EMBEDDED_JUDGE
from bestofn.judge.loader import revision
from bestofn.models.checkpoint import EMBEDDED, folder_revision
from tests.waiting import PATIENCE

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RUN = {
    "bash": ["bash", "-euo", "pipefail", "-c"],
    "python": [sys.executable, "-P", "-c"],
    "javascript": ["node", "--input-type=module", "--eval"],
}
NEEDS = {"bash": "curl", "python": sys.executable, "javascript": "node"}
SERVER = "http://127.0.0.1:8000"


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, code) of a page's fenced blocks in the languages that are run."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    return [(language, code) for language, code in found if language in RUN]


EXAMPLES = [
    (page, i, *block) for page in ("guide/quickstart.md", "reference/api.md") for i, block in enumerate(blocks(page))
]


@pytest.mark.parametrize(
    ("language", "code"), [e[2:] for e in EXAMPLES], ids=[f"{page}-{i}-{kind}" for page, i, kind, _ in EXAMPLES]
)
def test_examples(language: str, code: str, served: Any, tmp_path: Path) -> None:
    if shutil.which(NEEDS[language]) is None:
        pytest.skip(f"no {NEEDS[language]} here")
    done = subprocess.run(
        [*RUN[language], code.replace(SERVER, served.url)],
        cwd=tmp_path,
        env={
            **os.environ,
            "BESTOFN_SERVER": served.url,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr


def test_revisions_in_examples_are_those_of_the_shipped_weights() -> None:
    """An example answer that names another one was made by weights that are not shipped any more."""
    shown = {name for page in DOCS.rglob("*.md") for name in re.findall(r'"revision": "(\w+)"', page.read_text())}
    assert shown == {folder_revision(EMBEDDED["shapes"]), revision(EMBEDDED_JUDGE)}


def test_recorded_promises_are_kept_in_full_runs() -> None:
    """A look with `--short` must not replace what docs/operate/reliability.md refers to."""
    sections = json.loads((ROOT / "evaluation" / "results" / "reliability" / "chaos.json").read_text())["sections"]
    figures = [(name, figure) for name, section in sections.items() for figure in section["figures"]]
    assert [(name, figure["promise"]) for name, figure in figures if figure["kept"] is False] == []
    assert ("bad-input", "at least 10000") in [(name, figure["wanted"]) for name, figure in figures]


def test_torchrun_leaves_bestofn_its_options() -> None:
    """torchrun has options that begin with `--run`, and on Python 3.11 it refuses ours as ambiguous."""
    line = re.search(r"^torchrun (.*)$", (DOCS / "guide/finetuning.md").read_text(), re.MULTILINE)
    assert line is not None
    script = line[1].partition("bestofn ")[2]
    parsed = get_args_parser().parse_args(shlex.split(line[1]))
    assert [parsed.training_script, *parsed.training_script_args] == ["bestofn", *shlex.split(script)]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere() -> None:
    for page in (*ROOT.glob("*.md"), *DOCS.rglob("*.md")):
        for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", page.read_text()):
            if "://" not in target:
                there = page.parent / target if target else page
                assert there.exists(), f"{page.relative_to(ROOT)} links to {target}"
                if anchor and there.suffix == ".md":
                    assert anchor in anchors(there), f"{page.relative_to(ROOT)} links to {target}#{anchor}"


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "README.md").read_text()
    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")} - {"README.md"}
    assert {page for page in pages if f"]({page})" not in index} == set(), "add them to docs/README.md"


def test_errors_are_all_documented() -> None:
    from bestofn.service.core.errors import BestOfNError, SetupError

    def codes(kind: type[BestOfNError]) -> set[str]:
        return {kind.code}.union(*map(codes, kind.__subclasses__()))

    named = (DOCS / "reference" / "api.md").read_text()
    assert [
        code for code in sorted(codes(BestOfNError) - codes(SetupError) - {"internal"}) if f"`{code}`" not in named
    ] == []
