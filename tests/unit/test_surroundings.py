"""What a user's surroundings may decide."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import pq
from psycopg.conninfo import make_conninfo

from pghc.cluster import default_directory, open_backend, surroundings
from pghc.cluster.local.directory import ClusterDirectory
from pghc.cluster.settings import service_file
from pghc.errors import BadInput, ClusterError
from pghc.store import complete
from pghc.topology import Address, Credentials, View, load

#: All that libpq reads: those of its options, and what its manual lists besides.
LIBPQ = sorted(
    {each.envvar.decode() for each in pq.Conninfo.get_defaults() if each.envvar}
    | {"PGSERVICE", "PGSERVICEFILE", "PGREQUIRESSL", "PGREALM", "PGDATESTYLE", "PGTZ", "PGGEQO", "PGSYSCONFDIR"}
    | {"PGLOCALEDIR"}
)
#: And what else changes how our programs run.
OTHERS = [
    *("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS", "CLASSPATH", "JAVA_HOME", "JVMFLAGS", "ZOOCFGDIR"),
    *("PYTHONINSPECT", "PYTHONOPTIMIZE", "PYTHONWARNINGS", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONDEVMODE"),
    *("PYTHONHASHSEED", "PYTHONIOENCODING", "LD_PRELOAD", "PGDATA", "PGHC_DIR", "TZ", "PSYCOPG_IMPL", "APT_CONFIG"),
]

values = st.one_of(
    st.sampled_from(["require", "nowhere", "10.255.255.1", "1", "0", "-c nope=1", "read-write", "none", "/x", ""]),
    st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=20),
)


def in_effect(arguments: dict[str, object]) -> dict[str, object]:
    """The options that libpq goes by, after it has looked everywhere; nothing listens where it dials."""
    connection = pq.PGconn.connect_start(make_conninfo(**arguments).encode())
    try:
        return {each.keyword.decode(): each.val for each in connection.info} | {"refused": connection.error_message}
    finally:
        connection.finish()


def arguments() -> dict[str, object]:
    topology = load()
    view = View(
        "us-east", topology, {"us-east-primary": Address("127.0.0.1", 1)}, Credentials(password="p", admin_password="q")
    )
    return complete(view.conninfo("us-east-primary"))


@given(st.dictionaries(st.sampled_from(LIBPQ), values))
def test_a_client_connects_as_it_would_without_the_variables_of_libpq(variables: dict[str, str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name in [each for each in os.environ if each.startswith("PG")]:
            patch.delenv(name)
        plain = in_effect(arguments())
        for name, value in variables.items():
            patch.setenv(name, value)
        surroundings.prepare()
        assert in_effect(arguments()) == plain


def test_every_option_that_libpq_has_a_variable_for_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    given_ = arguments()
    missing = {each.keyword.decode() for each in pq.Conninfo.get_defaults() if each.envvar} - set(given_)
    assert missing == {"service"}, "which `prepare` removes"
    monkeypatch.setenv("PGSERVICE", "nowhere")
    with pytest.raises(psycopg.OperationalError, match='definition of service "nowhere" not found'):
        psycopg.connect(**given_)  # type: ignore[arg-type]
    surroundings.prepare()
    with pytest.raises(psycopg.OperationalError, match="onnection refused"):
        psycopg.connect(**given_)  # type: ignore[arg-type]


@given(st.dictionaries(st.sampled_from(LIBPQ + OTHERS), values))
def test_a_child_sees_nothing_of_them(variables: dict[str, str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        seen = [surroundings.environment(*surroundings.NETWORK), surroundings.python_environment()]
    for environment in seen:
        assert not {name for name in environment if name.startswith("PG") and not name.startswith("PGHC_API_")}
        assert not set(environment) & set(OTHERS)


def test_another_python_finds_what_this_one_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages/found.py").write_text("")
    (tmp_path / "pghc.py").write_text("raise SystemExit('a file in the working directory')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "packages"), "", "relative"]))
    monkeypatch.setenv("PYTHONOPTIMIZE", "2")
    command = [sys.executable, "-c", "import pghc, found; assert False, 'asserts are at work'"]
    done = subprocess.run(
        command, env=surroundings.python_environment(), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "asserts are at work" in done.stderr


def test_servers_connect_as_clients_do_and_take_nothing_from_a_home() -> None:
    service = service_file({"a-primary": Address("127.0.0.1", 5432)})
    for setting in ("sslmode=disable", "gssencmode=disable", "require_auth=scram-sha-256"):
        assert setting in service.splitlines()


# Masks and limits


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o777])
def test_files_with_secrets_are_their_owners_whatever_the_mask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        surroundings.prepare()
        place = ClusterDirectory(tmp_path / "a/b")
        place.make(tmp_path / "c/d/data")  # where root's servers cannot reach the directory itself
        place.save(place.found(load()))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a/b/cluster.json").stat().st_mode) == 0o600
    passable = 0o711 if os.geteuid() == 0 else 0o700
    assert {stat.S_IMODE(each.stat().st_mode) for each in map(tmp_path.joinpath, ("a", "a/b", "c", "c/d"))} == {
        passable
    }
    assert place.cluster()


def under(limits: str, program: str) -> str:
    """What ``program`` says in a process that began with ``limits``, without the right to raise its hard ones."""
    start = f"""if True:
        import os, resource
        from pghc.cluster import surroundings
        {limits}
        if os.geteuid() == 0:
            os.setresuid(65534, 65534, 65534)
        {program}
    """
    done = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_a_soft_limit_is_raised() -> None:
    said = under(
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 4096))",
        "surroundings.prepare(); surroundings.check_limits(); print(resource.getrlimit(resource.RLIMIT_NOFILE))",
    )
    assert said == "(4096, 4096)\n"


@pytest.mark.parametrize(
    ("name", "most", "option"), [("NOFILE", 128, "-n"), ("FSIZE", 1 << 20, "-f"), ("CPU", 900, "-t")]
)
def test_a_hard_limit_is_named_with_what_to_do(name: str, most: int, option: str) -> None:
    said = under(
        f"resource.setrlimit(resource.RLIMIT_{name}, ({most}, {most}))",
        "surroundings.prepare(); surroundings.check_limits()",
    )
    assert f"ulimit {option}" in said
    assert str(most) in said
    assert "limits.conf" in said


# Directories


def test_a_tilde_is_the_home_wherever_a_directory_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert surroundings.place("~/lab") == tmp_path / "lab"
    monkeypatch.setenv("PGHC_DIR", "~/mine")
    assert default_directory() == tmp_path / "mine"
    assert open_backend("embedded", "~/lab").status().directory == str(tmp_path / "lab")


@pytest.mark.parametrize(
    "name", ["lab\n", "a\nb", "tab\t", "", "\udcff", "x" * 256, "/".join(["x" * 200] * 5), "~nobody-of-that-name/x"]
)
def test_a_name_that_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match="directory"):
        open_backend("embedded", name)


def test_a_working_directory_that_was_deleted_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(BadInput, match="deleted"):
        surroundings.place("lab")
    assert surroundings.place("/lab") == Path("/lab")


def test_limits_are_only_of_concern_to_who_starts_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_low() -> None:
        raise ClusterError("too low")

    monkeypatch.setattr(surroundings, "check_limits", too_low)
    backend = open_backend("embedded", tmp_path / "lab")
    backend.down(purge=True)
    with pytest.raises(ClusterError, match="too low"):
        backend.up()
    assert not (tmp_path / "lab").exists()
