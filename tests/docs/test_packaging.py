"""Distributions and installations: names, entry points, sizes and reproducible builds."""

import hashlib
import importlib.metadata
import importlib.resources
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mlflow_otlp_exporter
from mlflow_otlp_exporter._internal.setup.auto_instrumentation import AutoInstrumentationSpanExporter
from support.distributions import Distributions, build, copy_project
from support.environments import CONSTRAINTS, ROOT, fresh_environment, read_lock
from support.mlflow_server import MLflowServer

DISTRIBUTION = "mlflow-otlp-exporter"
VERSION = mlflow_otlp_exporter.__version__
RUNTIME = {
    "opentelemetry-sdk",
    "opentelemetry-exporter-otlp-proto-http",
    "openinference-semantic-conventions",
    "requests",
}
# As CONTRIBUTING.md states them.
WHEEL_LIMIT, SDIST_LIMIT = 550_000, 2_000_000
PACKAGES = ("mlflow_otlp_exporter", "pytest_mlflow_otlp")
# 2020-02-02, the time that hatchling gives to all files in a reproducible build; zip has no time zone.
BUILT_AT = 1_580_601_600


# Installed distribution


def test_version_matches_installed_distribution() -> None:
    assert importlib.metadata.version(DISTRIBUTION) == VERSION


def test_public_names_are_sorted_and_belong_to_package() -> None:
    names = mlflow_otlp_exporter.__all__
    assert names == sorted(names)
    for name in names:
        public = getattr(mlflow_otlp_exporter, name)
        assert not isinstance(public, type) or public.__module__ == "mlflow_otlp_exporter"


def test_runtime_dependencies_have_lower_bounds_only() -> None:
    needed = [
        requirement for requirement in importlib.metadata.requires(DISTRIBUTION) or [] if "extra ==" not in requirement
    ]
    assert {requirement.partition(">=")[0] for requirement in needed} == RUNTIME
    assert not any(sign in requirement for requirement in needed for sign in ("<", "=="))


def test_entry_points_of_installed_distribution_load() -> None:
    (exporter,) = importlib.metadata.entry_points(group="opentelemetry_traces_exporter", name="mlflow")
    assert exporter.load() is AutoInstrumentationSpanExporter
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="mlflow-otlp")
    assert script.value == "mlflow_otlp_exporter._internal.cli.main:main"


def test_package_has_type_marker() -> None:
    assert importlib.resources.files("mlflow_otlp_exporter").joinpath("py.typed").is_file()


def test_import_loads_no_mlflow_and_no_instrumentation() -> None:
    code = (
        "import sys; from mlflow_otlp_exporter import MLflowSpanExporter\n"
        "heavy = ('mlflow', 'openinference', 'opentelemetry.instrumentation', 'langchain_core')\n"
        "print([name for name in sys.modules if name in heavy or name.startswith('openinference.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_import_loads_nothing_that_only_configure_and_constructors_need() -> None:
    code = (
        "import sys, mlflow_otlp_exporter\n"
        "names = [name.split('.') for name in sys.modules if name.startswith('mlflow_otlp_exporter._internal.')]\n"
        "print(sorted({name[2] for name in names}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    packages = ["common", "delivery", "model", "processing", "setup", "tracing", "version"]
    assert done.stdout.strip() == str(packages)


# Release


def test_changelog_lists_dated_version_below_unreleased() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert re.fullmatch(rf"\[{re.escape(VERSION)}\] - \d{{4}}-\d\d-\d\d", headings[1])


def test_version_is_defined_in_one_module() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    assert 'dynamic = ["version", ' in project
    numbers = [path for path in sorted((ROOT / "src").rglob("*.py")) if f'"{VERSION}"' in path.read_text()]
    assert [path.name for path in numbers] == ["version.py"]


def parse_requirements(lines: Iterable[str]) -> list[Requirement]:
    return [Requirement(line) for line in lines if not line.lstrip().startswith("#")]


def list_development_requirements() -> list[Requirement]:
    """List the run-time requirements and those of the extras that `make` installs."""
    extras = {"dev"}
    requirements = parse_requirements(importlib.metadata.requires(DISTRIBUTION) or [])
    for requirement in requirements:
        if requirement.name == DISTRIBUTION:
            extras |= requirement.extras
    return [
        requirement
        for requirement in requirements
        if requirement.name != DISTRIBUTION
        and (requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras))
    ]


LOCKS = sorted(path.stem for path in CONSTRAINTS.glob("*.txt"))


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
@pytest.mark.parametrize("name", LOCKS)
def test_lock_has_a_version_for_each_requirement(name: str, python: str) -> None:
    variables = {"python_version": python, "python_full_version": f"{python}.9", "extra": "dev"}
    versions = {
        canonicalize_name(pin.name): str(pin.specifier).removeprefix("==")
        for pin in parse_requirements(read_lock(name))
        if pin.marker is None or pin.marker.evaluate(variables)
    }
    source = CONSTRAINTS / f"{name}.in"
    requirements = (
        parse_requirements(source.read_text().splitlines()) if name != "dev" else list_development_requirements()
    )
    assert len(requirements) > 0
    for requirement in requirements:
        if requirement.marker is None or name == "dev" or requirement.marker.evaluate(variables):
            version = versions[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version, prereleases=True), f"{requirement}: make lock"


def test_lock_names_no_index_and_no_path() -> None:
    assert {path.stem for path in CONSTRAINTS.glob("*.in")} == set(LOCKS) - {"dev"}
    for name in LOCKS:
        for line in read_lock(name):
            assert re.fullmatch(r"[a-z0-9.-]+==[a-z0-9.]+( ; .+)?", line), line
            assert "/" not in line


# Built distributions


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """The wheel and the sdist, built in a folder with files that must not be packaged."""
    project = copy_project(tmp_path_factory.mktemp("distributions") / "project")
    for junk in (
        "src/mlflow_otlp_exporter/__pycache__/cli.cpython-311.pyc",
        "tests/corpus/__pycache__/planted.pyc",
        ".venv/bin/python",
        ".cache/environments/planted",
        ".demo/mlflow.db",
        ".pytest_cache/planted",
        ".hypothesis/planted",
    ):
        (project / junk).parent.mkdir(parents=True, exist_ok=True)
        (project / junk).write_text("planted")
    return build(project)


@pytest.fixture(scope="module")
def installed_python(distributions: Distributions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel and its dependencies."""
    return fresh_environment(tmp_path_factory.mktemp("installed_python") / "environment", str(distributions.wheel))


def test_wheel_contains_package_files_only(distributions: Distributions) -> None:
    sources = {
        str(path.relative_to(ROOT / "src"))
        for package in PACKAGES
        for path in (ROOT / "src" / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    folder = f"mlflow_otlp_exporter-{VERSION}.dist-info"
    described = {f"{folder}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    assert "mlflow_otlp_exporter/py.typed" in sources
    assert set(distributions.wheel_names()) == sources | described
    assert distributions.wheel.name == f"mlflow_otlp_exporter-{VERSION}-py3-none-any.whl"


def test_sdist_contains_sources_only(distributions: Distributions) -> None:
    names = distributions.sdist_names()
    folders = (".ci", "src", "tests", "docs", "examples", "benchmarks")
    expected = {
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    files = {path.name for path in ROOT.glob("*.md")} | {
        "LICENSE",
        "Makefile",
        "mkdocs.yml",
        "pyproject.toml",
        ".gitignore",
    }
    assert set(names) == expected | {*files, "PKG-INFO"}
    assert distributions.sdist.name == f"mlflow_otlp_exporter-{VERSION}.tar.gz"


def test_distribution_sizes_are_below_limits(distributions: Distributions) -> None:
    assert distributions.wheel.stat().st_size < WHEEL_LIMIT
    assert distributions.sdist.stat().st_size < SDIST_LIMIT
    stated = (ROOT / "CONTRIBUTING.md").read_text()
    assert f"{WHEEL_LIMIT // 1000} kB" in stated
    assert f"{SDIST_LIMIT // 1_000_000} MB" in stated


def test_wheel_metadata_is_valid_and_complete(distributions: Distributions) -> None:
    text = distributions.wheel_text("*.dist-info/METADATA")
    # The package index does the same validation; hatchling has validated the classifiers.
    metadata = Metadata.from_email(text, validate=True)
    assert metadata.name == DISTRIBUTION
    assert str(metadata.version) == VERSION
    assert str(metadata.requires_python) == ">=3.10"
    assert metadata.license_expression == "Apache-2.0"
    assert metadata.license_files == ["LICENSE"]
    assert metadata.description_content_type == "text/markdown"
    assert re.findall(r"\]\((?!https://|#)[^)]*\)", metadata.description or "") == []
    repository = (metadata.project_urls or {})["Repository"]
    assert f"![a model call shown as YAML]({repository}/raw/HEAD/docs/images/span2-stock.png)" in str(
        metadata.description
    )
    links = re.compile(rf"{re.escape(repository)}/(?:raw|blob)/HEAD/")
    assert links.sub("", metadata.description or "") == (ROOT / "README.md").read_text()
    assert metadata.summary
    assert metadata.keywords
    needed = {
        requirement.name for requirement in metadata.requires_dist or [] if "extra" not in str(requirement.marker)
    }
    assert needed == RUNTIME
    instrumentations = {"anthropic", "langchain", "llama-index", "openai", "openai-agents"}
    assert set(metadata.provides_extra or []) == instrumentations | {
        "auto",
        "completion",
        "demo",
        "dev",
        "docs",
        "gateway",
    }


def test_extras_pin_versions_for_the_demo_only(distributions: Distributions) -> None:
    extras: dict[str, list[str]] = {}
    for requirement in distributions.metadata().get_all("Requires-Dist", []):
        needed, _, extra = requirement.partition("; extra == ")
        extras.setdefault(extra.strip("'\""), []).append(needed)
    assert {needed.partition("==")[0] for needed in extras["demo"]} == {
        "langchain",
        "langgraph",
        "mlflow",
        "openinference-instrumentation-langchain",
    }
    assert all(re.fullmatch(r"[a-z-]+==[\d.]+", needed) for needed in extras["demo"])
    for extra in extras.keys() - {"demo", "dev", "docs"}:
        assert all(re.fullmatch(r"[a-z-]+>=[\w.]+", needed) for needed in extras[extra]), extra


def test_wheel_contains_entry_points(distributions: Distributions) -> None:
    lines = distributions.wheel_text("*.dist-info/entry_points.txt").splitlines()
    assert "mlflow-otlp = mlflow_otlp_exporter._internal.cli.main:main" in lines
    assert "mlflow = mlflow_otlp_exporter._internal.setup.auto_instrumentation:AutoInstrumentationSpanExporter" in lines
    assert "mlflow = mlflow_otlp_exporter._internal.setup.auto_instrumentation:after_instrumentation" in lines
    assert "mlflow_otlp = pytest_mlflow_otlp" in lines


def test_second_build_has_identical_bytes(distributions: Distributions, tmp_path: Path) -> None:
    project = copy_project(tmp_path / "elsewhere" / "another name")
    for path in project.rglob("*"):  # another build time and another umask
        os.utime(path, (1_900_000_000, 1_900_000_000))
        path.chmod(0o700 if path.is_dir() else path.stat().st_mode & 0o700)
    again = build(project, umask=0o077, TZ="Pacific/Auckland", PYTHONHASHSEED="7", LC_ALL="C")
    for first, second in ((distributions.wheel, again.wheel), (distributions.sdist, again.sdist)):
        assert second.name == first.name
        assert hashlib.sha256(second.read_bytes()).digest() == hashlib.sha256(first.read_bytes()).digest()


def test_archives_contain_no_times_or_owners_of_the_builder(distributions: Distributions) -> None:
    with zipfile.ZipFile(distributions.wheel) as wheel:
        assert {member.date_time for member in wheel.infolist()} == {(2020, 2, 2, 0, 0, 0)}
        assert {member.external_attr >> 16 & 0o777 for member in wheel.infolist()} == {0o644}
    with tarfile.open(distributions.sdist) as sdist:
        members = sdist.getmembers()
    assert {member.mtime for member in members} == {BUILT_AT}
    assert {(member.uid, member.gid, member.uname, member.gname) for member in members} == {(0, 0, "", "")}
    assert {member.mode for member in members} <= {0o644, 0o755}


# Installed wheel


def test_wheel_installation_adds_no_heavy_dependency(installed_python: Path) -> None:
    listed = subprocess.run(
        [installed_python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    )
    names = {line.partition("==")[0].lower().replace("_", "-") for line in listed.stdout.splitlines()}
    assert names >= {DISTRIBUTION, *RUNTIME}
    heavy = {"mlflow", "mlflow-skinny", "mlflow-tracing", "numpy", "pandas", "pydantic", "langchain-core", "grpcio"}
    assert not names & heavy
    assert not any(name.startswith("opentelemetry-instrumentation") for name in names)
    subprocess.run([installed_python, "-m", "pip", "check"], capture_output=True, check=True)


def build_user_environment(installed_python: Path, **variables: str) -> dict[str, str]:
    """Build the environment variables of a user of the wheel: PATH and PYTHONPATH contain nothing of this checkout."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return environment | {"PATH": f"{installed_python.parent}{os.pathsep}{os.environ['PATH']}", **variables}


def test_installed_wheel_runs_readme_example(
    installed_python: Path, mlflow_server: MLflowServer, tmp_path: Path
) -> None:
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    last = next(position for position, code in enumerate(blocks) if "trace_url()" in code)
    lines = [*blocks[: last + 1], "import mlflow_otlp_exporter; print(result, mlflow_otlp_exporter.__file__)"]
    (tmp_path / "app.py").write_text("\n".join(lines))
    variables = build_user_environment(installed_python, MLFLOW_TRACKING_URI=mlflow_server.uri)
    done = subprocess.run(
        [installed_python, "app.py"],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "FlushResult(delivered=1, spooled=0, dropped=0, pending=0)" in done.stdout
    assert str(installed_python.parents[1]) in done.stdout
    url = re.search(r"traceId=(tr-[0-9a-f]{32})", done.stdout)
    assert url, done.stdout
    trace = mlflow_server.wait_for_trace(url[1])
    assert [span["name"] for span in trace["spans"]] == ["answer"]


@pytest.mark.parametrize("arguments", [["--version"], ["settings"], ["doctor"], ["send", "--test"]], ids=" ".join)
def test_installed_wheel_runs_command_line(
    installed_python: Path, mlflow_server: MLflowServer, tmp_path: Path, arguments: list[str]
) -> None:
    variables = build_user_environment(installed_python, MLFLOW_TRACKING_URI=mlflow_server.uri)
    command = [str(installed_python.with_name("mlflow-otlp")), *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    if arguments == ["--version"]:
        assert done.stdout.strip() == f"mlflow-otlp-exporter {VERSION}"


def test_sdist_installed_by_pip_has_same_files_as_wheel(distributions: Distributions, tmp_path: Path) -> None:
    """Pip builds in an isolated environment, as for users who install no wheels."""
    python = fresh_environment(tmp_path / "environment", "--no-deps", str(distributions.sdist))
    code = "import importlib.metadata as metadata; print(*metadata.files('mlflow-otlp-exporter'), sep='\\n')"
    listed = subprocess.run(
        [python, "-c", code], env=build_user_environment(python), capture_output=True, text=True, check=True
    )
    names = [name for name in listed.stdout.splitlines() if "__pycache__" not in name]
    packages = {name for name in names if name.partition("/")[0] in PACKAGES}
    assert packages == {name for name in distributions.wheel_names() if name.partition("/")[0] in PACKAGES}


def test_sdist_runs_document_tests(distributions: Distributions, tmp_path: Path) -> None:
    # Not tarfile, because it warns without a filter, and Debian 12's Python has no filters.
    subprocess.run(["tar", "-xzf", str(distributions.sdist), "-C", str(tmp_path)], check=True)
    (project,) = tmp_path.iterdir()
    variables = build_user_environment(Path(sys.executable)) | {"PYTHONPATH": str(project / "src")}
    # The document tests need only files, and they collect every test that CI runs, so a missing import is an error.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/docs/test_documents.py"]
    done = subprocess.run(command, cwd=project, env=variables, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
