"""Finding and fetching the servers' programs."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pghc.cluster.local import fetch
from pghc.errors import ClusterError


def program(path: Path, says: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\necho "{says}"\n')
    path.chmod(0o755)


def postgres(place: Path, version: str) -> Path:
    program(place / "initdb", "")
    program(place / "postgres", f"postgres (PostgreSQL) {version}")
    return place


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(fetch, "cache", lambda: tmp_path / "cache")
    monkeypatch.setattr(fetch, "_installed", lambda _: None)
    monkeypatch.setattr(fetch, "_from_debian", lambda _: None)
    return tmp_path / "cache"


class Maven:
    """A Maven repository that holds ``content`` for every jar."""

    content = b"jar"
    asked: list[str]

    def __init__(self, repo_cache: Path, **_: Any) -> None:
        self.cache = repo_cache

    def project(self, group: str, artifact: str) -> Maven:
        self.name = f"{group}:{artifact}"
        return self

    def at_version(self, version: str) -> Maven:
        self.name += f":{version}"
        return self

    def artifact(self) -> Maven:
        return self

    def resolve(self) -> Path:
        Maven.asked.append(self.name)
        path = self.cache / self.name.replace(":", "-")
        path.write_bytes(self.content)
        return path


@pytest.fixture
def maven(monkeypatch: pytest.MonkeyPatch) -> type[Maven]:
    monkeypatch.setattr("jgo.maven.MavenContext", Maven)
    monkeypatch.setattr(fetch, "JARS", dict.fromkeys(fetch.JARS, hashlib.sha256(Maven.content).hexdigest()))
    Maven.asked = []
    return Maven


def test_jars_are_fetched_once(no_cache: Path, maven: type[Maven]) -> None:
    said: list[str] = []
    jars = fetch._zookeeper(said.append)
    assert jars[-1].name == "zookeeper-3.9.4.jar"
    assert all(jar.is_relative_to(no_cache) for jar in jars)
    assert fetch._zookeeper(said.append) == jars
    assert maven.asked == list(fetch.JARS)
    assert len(said) == 1


def test_a_jar_that_was_changed_on_disk_is_fetched_again(no_cache: Path, maven: type[Maven]) -> None:
    jars = fetch._zookeeper(lambda _: None)
    jars[2].write_bytes(b"rotten")
    maven.asked.clear()
    assert fetch._zookeeper(lambda _: None) == jars
    assert maven.asked == [list(fetch.JARS)[2]]
    assert jars[2].read_bytes() == maven.content


def test_a_jar_that_was_changed_on_its_way_is_refused(
    no_cache: Path, maven: type[Maven], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maven, "content", b"something else")
    with pytest.raises(ClusterError, match="is not the file it must be"):
        fetch._zookeeper(lambda _: None)
    assert not list(no_cache.rglob("*.jar"))


def test_without_a_network_the_error_says_what_is_needed(no_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(ClusterError, match=r"could not be fetched from Maven Central.* refused.*first time"):
        fetch._zookeeper(lambda _: None)
    assert not list(no_cache.rglob("*.jar"))


def test_an_installed_zookeeper_serves_without_a_network(
    no_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(fetch, "cache", lambda: no_cache)
    monkeypatch.setattr(fetch, "_from_maven", lambda _: (_ for _ in ()).throw(OSError("no network")))
    (tmp_path / "zookeeper/lib").mkdir(parents=True)
    jar = tmp_path / "zookeeper/lib/zookeeper.jar"
    jar.touch()
    monkeypatch.setenv("ZOOKEEPER_HOME", str(tmp_path / "zookeeper"))
    assert fetch._zookeeper(lambda _: None) == (jar,)


def test_the_first_postgres_that_is_new_enough_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = postgres(tmp_path / "15/bin", "15.4 (Debian 15.4-1)"), postgres(tmp_path / "17/bin", "17.2")
    monkeypatch.setattr(fetch, "_postgres_places", lambda: iter([tmp_path / "none", old, new]))
    assert fetch._postgres() == (new, 17)


def test_an_old_postgres_does_not_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_postgres_places", lambda: iter([postgres(tmp_path, "15.4")]))
    with pytest.raises(ClusterError, match="no Postgres 16 or newer found"):
        fetch._postgres()


def test_an_installed_java_serves_where_there_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin/java", 'openjdk version 21.0.2 2024-01-16')
    monkeypatch.setattr(fetch, "_package", lambda _: None)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert fetch._java() == tmp_path / "bin/java"


def test_an_old_java_does_not_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin/java", 'java version 1.8.0_392')
    monkeypatch.setattr(fetch, "_package", lambda _: None)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(ClusterError, match="no Java 11 or newer found"):
        fetch._java()


def test_programs_in_a_closed_directory_are_copied_to_where_servers_can_run_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "cache", lambda: tmp_path / "cache")
    closed = tmp_path / "home/tool"
    program(closed / "bin/run", "$(cat $(dirname $0)/../../../home.libs/words)")
    (tmp_path / "home.libs").mkdir()
    (tmp_path / "home.libs/words").write_text("hello")
    (tmp_path / "home").chmod(0o700)
    said: list[str] = []
    copy = fetch._reachable(closed, said.append)
    assert copy.is_relative_to(tmp_path / "cache")
    assert subprocess.run([copy / "bin/run"], capture_output=True, text=True, check=True).stdout == "hello\n"
    assert (copy / "bin/run").stat().st_mode & 0o555 == 0o555
    assert fetch._reachable(closed, said.append) == copy
    assert len(said) == 1, "copied once"


def test_programs_that_all_users_can_reach_are_used_in_place() -> None:
    assert fetch._reachable(Path("/usr/bin"), print) == Path("/usr/bin").resolve()
