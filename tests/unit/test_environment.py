"""The files that say what to install agree with each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found, f"{requirement!r} is no requirement"
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def locked(group: str) -> dict[str, set[str]]:
    """Package to the versions locked for it: more than one where they differ by Python or by platform."""
    versions: dict[str, set[str]] = {}
    text = (ROOT / f"requirements/{group}.txt").read_text()
    for package, version in re.findall(r"^([a-z0-9._-]+)==([^ ]+) ", text, re.MULTILINE):
        versions.setdefault(name(package), set()).add(version)
    return versions


def test_conda_installs_this_checkout_with_every_optional_group() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    [pip] = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    [editable] = pip
    found = re.fullmatch(r"--editable \.\[(.*)\]", editable)
    assert found
    assert set(found[1].split(",")) == set(PROJECT["optional-dependencies"])


def test_conda_takes_the_pythons_that_the_package_takes() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert f"python{PROJECT['requires-python']}" in environment["dependencies"]


@pytest.mark.parametrize("group", ["run", "all"])
def test_every_declared_dependency_is_locked(group: str) -> None:
    declared = list(PROJECT["dependencies"])
    if group == "all":
        declared += [each for extra in PROJECT["optional-dependencies"].values() for each in extra]
    assert {name(each) for each in declared} <= set(locked(group))


def test_the_small_lock_is_a_part_of_the_large_one() -> None:
    run, everything = locked("run"), locked("all")
    assert run
    assert {package: versions for package, versions in everything.items() if package in run} == run


@pytest.mark.parametrize("group", ["run", "all"])
def test_a_lock_records_no_address_and_no_unhashed_package(group: str) -> None:
    text = (ROOT / f"requirements/{group}.txt").read_text()
    assert "://" not in text
    assert not re.search(r"^\s*-", text.replace("    --hash=sha256:", ""), re.MULTILINE)
    blocks = re.split(r"^(?=[a-z])", text, flags=re.MULTILINE)[1:]
    assert blocks
    assert [block for block in blocks if "--hash=sha256:" not in block] == []
