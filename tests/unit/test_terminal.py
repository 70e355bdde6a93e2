"""What is printed says what people must know, and nothing that a pipe cannot carry."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import nbformat
import nbformat.sign
import pytest
from rich.console import Console

from pghc.chain import Row
from pghc.cli.commands import trust
from pghc.cli.demo import WORDS, findings
from pghc.cli.terminal import COLOURS, colour, put_error, put_json, put_table, put_verdict, rows_table, table
from pghc.errors import Indefinite, Unavailable
from pghc.verify.checker import Verdict, verify_chain
from pghc.verify.verdict import KINDS

REGIONS = ("us-east", "us-east-2", "ap-south")


def test_an_error_names_what_went_wrong_and_the_remedy_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    put_error(Unavailable("us-east-primary: no answer [1]", "See `pghc status`"))
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "error: us-east-primary: no answer [1]\n  See `pghc status`\n"


@pytest.mark.parametrize(
    ("error", "says"),
    [(Unavailable("x"), "definite: this write did not"), (Indefinite("x"), "indefinite: this write may")],
)
def test_a_failed_write_says_whether_it_may_have_happened(
    error: Unavailable | Indefinite, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    put_error(error, write=True)
    assert f"  {says}" in capsys.readouterr().err


def test_json_is_one_line_however_long_and_keeps_its_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"text": "[bold]→ " + "x" * 1000, "rows": [1, 2]}
    put_json(value)
    [line] = capsys.readouterr().out.splitlines()
    assert json.loads(line) == value


def test_an_invalid_verdict_shows_the_offending_rows(capsys: pytest.CaptureFixture[str]) -> None:
    bad = Row(1, "us-east-primary", "0" * 32)
    put_verdict(verify_chain([bad]), REGIONS)
    said = capsys.readouterr().out
    assert said.startswith("Invalid: ")
    assert bad.hash in said.splitlines()[-1]


def test_a_node_has_the_colour_of_its_own_region_when_one_name_begins_another() -> None:
    assert colour("us-east-primary", REGIONS) == COLOURS[0]
    assert colour("us-east-2-primary", REGIONS) == COLOURS[1]
    assert colour("ap-south", REGIONS) == COLOURS[2]
    assert colour("mars-primary", REGIONS) == "default"
    assert rows_table([Row(1, "mars-primary", "")], REGIONS).row_count == 1


def test_the_demo_has_words_for_what_naive_writers_do_wrong() -> None:
    assert set(WORDS) <= set(KINDS)
    assert findings(Verdict(False, "", counts={"fork": 3, "stale": 1})).row_count == 2


@pytest.mark.parametrize("width", [20, 39, 60, 80, 160])
def test_no_value_of_a_table_is_cut_however_narrow_the_terminal(width: int) -> None:
    full = table("writer", "appends/s", "note")
    rows = [("single primary, synchronous", "1,234.5", "all regions equal 0.31 s after the end"), ("naive", "9", "")]
    for row in rows:
        full.add_row(*row)
    console = Console(width=width, soft_wrap=True, file=StringIO(), color_system=None)
    put_table(full, console)
    assert isinstance(console.file, StringIO)
    said = console.file.getvalue()
    assert all(cell in said for row in rows for cell in row)
    assert "…" not in said
    assert ("  appends/s  1,234.5" in said) == (width < 80)
    assert all(len(line) <= max(width, 48) for line in said.splitlines())


def test_lessons_are_trusted_when_the_lab_opens_them_and_a_stranger_s_notebook_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    output = nbformat.v4.new_output("display_data", {"text/html": "<table></table>"})
    cell = nbformat.v4.new_code_cell("lab.status", outputs=[output])
    paths = [tmp_path / "lessons" / name for name in ("00-tour.ipynb", "04-chain.ipynb", "found.ipynb")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata={"of": path.name}), path)
    trust(tmp_path / "lessons")
    notary = nbformat.sign.NotebookNotary()
    trusted = [notary.check_signature(nbformat.read(path, as_version=4)) for path in paths]
    notary.store.close()
    assert trusted == [True, True, False]
