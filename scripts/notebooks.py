"""Run the lessons and keep their outputs, or check that the outputs kept are those of the cells as they stand.

    scripts/notebooks.py notebooks/03-causality.ipynb    run these (without arguments: all), in the cluster of PGHC_DIR
    scripts/notebooks.py --check                         exit code 1 and a line for each lesson that is not fresh

What is kept: outputs without the times of execution, a hash of the cells that made them, no path of this machine.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
LESSONS = ROOT / "notebooks"
LIMIT = 600_000  # bytes of a lesson with its figures
WIDTH = 100  # characters that JupyterLab shows of a line of code beside its file browser
STRIP = ["nbstripout", "--keep-output", "--keep-id", "--keep-count", "--extra-keys",
         "metadata.language_info.version cell.metadata.execution"]  # fmt: skip


def fingerprint(notebook: nbformat.NotebookNode) -> str:
    code = "\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()


def run(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=180, resources={"metadata": {"path": str(path.parent)}})
    client.execute()
    for cell in notebook.cells:  # what progress lines showed last is enough
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.metadata["pghc"] = {"outputs_of": fingerprint(notebook)}
    nbformat.write(notebook, path)
    subprocess.run([Path(sys.executable).parent / STRIP[0], *STRIP[1:], path], check=True)


def faults(path: Path) -> list[str]:
    """What is wrong with the outputs kept in this file."""
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    found = []
    if notebook.metadata.get("pghc", {}).get("outputs_of") != fingerprint(notebook):
        found.append("its outputs are of other cells")
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("it was not run from top to bottom")
    if any(output.output_type == "error" for cell in code for output in cell.outputs):
        found.append("a cell failed")
    if path.stat().st_size > LIMIT:
        found.append(f"it is larger than {LIMIT:,} bytes")
    wide = [line for cell in code for line in cell.source.splitlines() if len(line) > WIDTH]
    found += [f"more than {WIDTH} characters in {line.strip()[:30]!r}" for line in wide]
    text = path.read_text()
    found += [f"it holds {word!r}" for word in (str(ROOT), str(Path.home()) + "/", "/tmp/") if word in text]  # noqa: S108
    return found


def main() -> int:
    arguments = sys.argv[1:]
    paths = [Path(each).resolve() for each in arguments if each != "--check"] or sorted(LESSONS.glob("*.ipynb"))
    if "--check" in arguments:
        wrong = [f"{path.name}: {fault}" for path in paths for fault in faults(path)]
        sys.stdout.writelines(f"{each}. Mend it and run scripts/notebooks.py on it.\n" for each in wrong)
        return 1 if wrong else 0
    for path in paths:
        run(path)
        sys.stdout.write(f"{path.name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
