"""A lesson that has been run by a kernel of its own, as the tests look at it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from testbook.client import TestbookNotebookClient

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


class Lesson:
    """A lesson that has been run."""

    def __init__(self, name: str, client: TestbookNotebookClient) -> None:
        self.name = name
        self._client = client

    def shows(self, tag: str) -> str:
        """What the cell with this tag printed and showed, as text; for a figure that is its text alternative."""
        texts = []
        for output in self._cell(tag).outputs:
            texts += [output["text"]] if output.output_type == "stream" else [output.data.get("text/plain", "")]
        return "\n".join(texts)

    def has_figure(self, tag: str) -> bool:
        """Does the cell show a figure, with a text alternative?"""
        return any(
            "image/png" in output.get("data", {}) and output.metadata["image/png"]["alt"]
            for output in self._cell(tag).outputs
        )

    def value(self, expression: str) -> Any:
        """What the expression is worth in the lesson's kernel, by way of JSON."""
        return self._client.value(expression)

    def answer(self, code: str) -> str:
        """What the checker of the exercise says of this answer."""
        self._client.inject(code, pop=True)
        self._client.execute_cell("check")
        return self.shows("check")

    def solution(self) -> str:
        """The model solution."""
        return (NOTEBOOKS / "solutions" / f"{self.name[:2]}.py").read_text()

    def _cell(self, tag: str) -> Any:
        found = [cell for cell in self._client.cells if tag in cell.metadata.get("tags", [])]
        assert len(found) == 1, f"there are {len(found)} cells with the tag {tag!r}"
        return found[0]
