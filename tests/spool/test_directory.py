"""Where a spool lies, and that nobody else can read it."""

import os
import tempfile
from pathlib import Path

import pytest

from mlflow_otlp_exporter._internal.spool.directory import (
    candidate_roots,
    create_private_directory,
    create_spool_directory,
    find_spool_directory,
    folder_name,
)

NAME = "host-1"


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize(
    ("given", "environment", "first"),
    [
        ("/data/spool", {"XDG_STATE_HOME": "/state", "HOME": "/home/a"}, "/data/spool"),
        (None, {"XDG_STATE_HOME": "/state", "HOME": "/home/a"}, "/state/mlflow-otlp-exporter"),
        (None, {"XDG_STATE_HOME": "relative", "HOME": "/home/a"}, "/home/a/.local/state/mlflow-otlp-exporter"),
        (None, {"HOME": "/home/a"}, "/home/a/.local/state/mlflow-otlp-exporter"),
        (None, {"LOCALAPPDATA": "/local"}, "/local/mlflow-otlp-exporter"),
    ],
)
def test_places(given: str | None, environment: dict[str, str], first: str) -> None:
    found = list(candidate_roots(given, environment))
    assert found[0] == Path(first)
    temporary = Path(tempfile.gettempdir(), f"mlflow-otlp-exporter-{os.getuid()}")
    assert found[1:] == ([] if given else [temporary])


def test_each_target_and_identity_has_a_folder_of_its_own() -> None:
    names = {
        folder_name(url, identity)
        for url in ("http://a:5000/v1/traces", "http://a:5001/v1/traces", "https://a:5000/v1/traces")
        for identity in ("none", "user ada", "user bob", "token file /var/token")
    }
    assert len(names) == 12
    pods = {folder_name("http://a:5000/v1/traces", "none", namespace) for namespace in (None, "team-a", "team-b")}
    assert len(pods) == 3
    assert folder_name("http://a:5000/v1/traces", "none") == folder_name("http://a:5000/v1/traces", "none")
    odd = folder_name("http://u:secret@[::1]:5000/v1/traces?key=secret", "none")
    assert "secret" not in odd
    assert not set(odd) & set("/:[]@?")


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_folders_are_private_whatever_the_umask_is(tmp_path: Path, umask: int) -> None:
    (tmp_path / "state").mkdir()  # the user's own, which with the last umask only root could go into
    before = os.umask(umask)
    try:
        folder = create_spool_directory(None, NAME, {"XDG_STATE_HOME": str(tmp_path / "state")})
    finally:
        os.umask(before)
    assert folder == tmp_path / "state" / "mlflow-otlp-exporter" / NAME
    assert mode(folder) == mode(folder.parent) == 0o700


def test_a_folder_that_was_open_to_others_is_closed(tmp_path: Path) -> None:
    folder = tmp_path / "root" / NAME
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    (tmp_path / "root").chmod(0o755)
    assert create_spool_directory(str(tmp_path / "root"), NAME, {}) == folder
    assert mode(folder) == 0o700
    assert mode(tmp_path / "root") == 0o755  # the user's own, as it is


def test_a_link_or_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "file").write_text("")
    for name in ("link", "file"):
        with pytest.raises(NotADirectoryError):
            create_private_directory(tmp_path / name)
        assert find_spool_directory(str(tmp_path), name, {}) is None


def test_somebody_elses_folder_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / NAME).mkdir()
    other = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other)
    with pytest.raises(PermissionError):
        create_private_directory(tmp_path / NAME)
    assert find_spool_directory(str(tmp_path), NAME, {}) is None


def test_the_next_place_where_the_first_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    environment = {"XDG_STATE_HOME": str(tmp_path / "file")}
    folder = create_spool_directory(None, NAME, environment)
    assert folder == tmp_path / f"mlflow-otlp-exporter-{os.getuid()}" / NAME
    assert find_spool_directory(None, NAME, environment) == folder
    with pytest.raises(OSError, match="Not a directory"):
        create_spool_directory(str(tmp_path / "file"), NAME, {})


def test_nothing_is_made_by_looking(tmp_path: Path) -> None:
    assert find_spool_directory(str(tmp_path / "root"), NAME, {}) is None
    assert list(tmp_path.iterdir()) == []
