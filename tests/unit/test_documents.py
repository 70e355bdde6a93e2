"""What README and CONTRIBUTING say of files is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "pghc"
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
LAYOUT = (ROOT / "README.md").read_text().partition("## Layout")[2].split("```")[1]


def section(title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", CONTRIBUTING, re.MULTILINE | re.DOTALL)
    assert found, f"CONTRIBUTING has no section {title!r}"
    return found[1]


def in_layout() -> list[Path]:
    """What the layout names: directories at the margin, and what is in the package indented under it."""
    found = []
    for line in filter(str.strip, LAYOUT.splitlines()):
        names, *_ = re.split(r"\s{2,}", line.strip(), maxsplit=1)
        if not names.startswith("--"):
            found += [(PACKAGE if line.startswith(" ") else ROOT) / name for name in names.split()]
    return found


def test_every_file_that_the_layout_names_exists() -> None:
    assert len(in_layout()) > 20
    for path in in_layout():
        assert path.exists(), path
    for name in re.findall(r"\b(?:notebooks/)?[a-z]+/", LAYOUT):
        assert list(ROOT.glob(f"{name}")) or list(PACKAGE.glob(f"**/{name}")) or (ROOT / "tests" / name).exists(), name


def test_the_layout_names_every_wing_and_every_module_of_the_ground_floor() -> None:
    there = {path for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    there |= {path for path in PACKAGE.glob("*.py") if not path.name.startswith("__")} | {*PACKAGE.glob("*.sql")}
    tops = {path for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))}
    assert there <= set(in_layout()), "README's layout lacks them"
    assert {path for path in tops if path.suffix != ".egg-info"} <= set(in_layout())


SECTIONS = ["Where to change what", "From a cell to the SQL and back", "How it is judged, and by whom"]


@pytest.mark.parametrize("title", SECTIONS)
def test_every_file_that_contributing_names_exists_and_holds_what_is_said_to_be_there(title: str) -> None:
    text = section(title)
    named = re.findall(r"`([a-z_./-]+/[a-z_./-]*)`", text)
    assert named
    for name in named:
        assert (ROOT / name).exists() or (PACKAGE / name).exists(), name
    for line in text.splitlines():
        files = [ROOT / name for name in re.findall(r"`(pghc/[a-z_./-]+\.(?:py|sql))`", line)]
        for word in re.findall(r"`_?([A-Za-z_]+)`", line.split("|")[-2] if line.count("|") > 2 else ""):
            if files:
                assert any(word in path.read_text() for path in files), f"{word} is in none of {files}"


def test_the_ten_changes_are_ten() -> None:
    assert len(re.findall(r"^\| (?!to |---)", section("Where to change what"), re.MULTILINE)) == 10


def test_the_way_from_the_cell_to_the_sql_is_drawn_with_files_that_exist() -> None:
    [picture] = re.findall(r"```mermaid\n(.*?)```", section("From a cell to the SQL and back"), re.DOTALL)
    names = re.findall(r"[a-z/]+\.(?:py|sql)", picture)
    assert len(names) > 8
    for name in names:
        assert list(PACKAGE.glob(name)) or list(PACKAGE.glob(f"*/{name}")), name

