"""Locations of spool directories, and their permissions."""

import os
import tempfile
from pathlib import Path

import pytest

from mlflow_otlp_exporter._internal.common.files import create_private_directory
from mlflow_otlp_exporter._internal.spool.directory import (
    candidate_roots,
    create_spool_directory,
    find_spool_directory,
    folder_name,
)

NAME = "host-1"


def get_mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize(
    ("spool_dir", "environment", "first"),
    [
        ("/data/spool", {"XDG_STATE_HOME": "/state", "HOME": "/home/a"}, "/data/spool"),
        (None, {"XDG_STATE_HOME": "/state", "HOME": "/home/a"}, "/state/mlflow-otlp-exporter"),
        (None, {"XDG_STATE_HOME": "relative", "HOME": "/home/a"}, "/home/a/.local/state/mlflow-otlp-exporter"),
        (None, {"HOME": "/home/a"}, "/home/a/.local/state/mlflow-otlp-exporter"),
        (None, {"LOCALAPPDATA": "/local"}, "/local/mlflow-otlp-exporter"),
    ],
)
def test_candidate_roots_follow_setting_and_environment(
    spool_dir: str | None, environment: dict[str, str], first: str
) -> None:
    roots = list(candidate_roots(spool_dir, environment))
    assert roots[0] == Path(first)
    temporary = Path(tempfile.gettempdir(), f"mlflow-otlp-exporter-{os.getuid()}")
    assert roots[1:] == ([] if spool_dir else [temporary])


def test_folder_name_differs_by_target_identity_and_namespace() -> None:
    names = {
        folder_name(url, identity)
        for url in ("http://a:5000/v1/traces", "http://a:5001/v1/traces", "https://a:5000/v1/traces")
        for identity in ("none", "user ada", "user bob", "token file /var/token")
    }
    assert len(names) == 12
    pods = {folder_name("http://a:5000/v1/traces", "none", namespace) for namespace in (None, "team-a", "team-b")}
    assert len(pods) == 3
    assert folder_name("http://a:5000/v1/traces", "none") == folder_name("http://a:5000/v1/traces", "none")
    name_with_secrets = folder_name("http://u:secret@[::1]:5000/v1/traces?key=secret", "none")
    assert "secret" not in name_with_secrets
    assert not set(name_with_secrets) & set("/:[]@?")


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_spool_directory_with_any_umask_is_private(tmp_path: Path, umask: int) -> None:
    (tmp_path / "state").mkdir()  # belongs to the user; with the last umask only root could enter it
    before = os.umask(umask)
    try:
        folder = create_spool_directory(None, NAME, {"XDG_STATE_HOME": str(tmp_path / "state")})
    finally:
        os.umask(before)
    assert folder == tmp_path / "state" / "mlflow-otlp-exporter" / NAME
    assert get_mode(folder) == get_mode(folder.parent) == 0o700


def test_spool_directory_open_to_others_becomes_private(tmp_path: Path) -> None:
    folder = tmp_path / "root" / NAME
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    (tmp_path / "root").chmod(0o755)
    assert create_spool_directory(str(tmp_path / "root"), NAME, {}) == folder
    assert get_mode(folder) == 0o700
    assert get_mode(tmp_path / "root") == 0o755  # belongs to the user, unchanged


def test_link_or_file_is_not_used_as_directory(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "file").write_text("")
    for name in ("link", "file"):
        with pytest.raises(NotADirectoryError):
            create_private_directory(tmp_path / name)
        assert find_spool_directory(str(tmp_path), name, {}) is None


def test_directory_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / NAME).mkdir()
    other = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other)
    with pytest.raises(PermissionError):
        create_private_directory(tmp_path / NAME)
    assert find_spool_directory(str(tmp_path), NAME, {}) is None


def test_unusable_first_root_falls_back_to_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    environment = {"XDG_STATE_HOME": str(tmp_path / "file")}
    folder = create_spool_directory(None, NAME, environment)
    assert folder == tmp_path / f"mlflow-otlp-exporter-{os.getuid()}" / NAME
    assert find_spool_directory(None, NAME, environment) == folder
    with pytest.raises(OSError, match="Not a directory"):
        create_spool_directory(str(tmp_path / "file"), NAME, {})


def test_find_spool_directory_creates_nothing(tmp_path: Path) -> None:
    assert find_spool_directory(str(tmp_path / "root"), NAME, {}) is None
    assert list(tmp_path.iterdir()) == []
