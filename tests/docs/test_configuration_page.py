"""docs/configuration.md: its tables match the code, and the described precedence applies."""

import inspect
from pathlib import Path
from typing import Any

import pytest

from mlflow_otlp_exporter import MLflowSpanExporter, MLflowSpanProcessor, configure
from mlflow_otlp_exporter._internal.config.mlflow_client_env import read_credentials_file
from mlflow_otlp_exporter._internal.config.resolver import resolve
from mlflow_otlp_exporter._internal.config.schema import SETTINGS
from mlflow_otlp_exporter._internal.setup.configure import DEFAULTS
from support import settings_page
from support.documents import blocks, text_between
from support.settings_page import PAGE

TEXT = PAGE.read_text()


@pytest.mark.parametrize(
    ("page", "name", "table"),
    settings_page.tables(),
    ids=[f"{page.name} {name}" for page, name, _ in settings_page.tables()],
)
def test_configuration_tables_match_code(page: Path, name: str, table: str) -> None:
    assert text_between(page, *settings_page.marks(name)) == table, "make configuration"


def test_settings_table_has_every_setting_and_variable() -> None:
    rows = {row.split("`")[1]: row for row in settings_page.settings_table().splitlines()[2:]}
    assert rows.keys() == {setting.name for setting in SETTINGS}
    for setting in SETTINGS:
        assert [name for name in setting.variables if f"`{name}`" not in rows[setting.name]] == []
        assert setting.description.split("docs/")[0] in rows[setting.name]


def test_settings_table_names_owner_of_every_argument() -> None:
    owners = (configure, MLflowSpanExporter.__init__, MLflowSpanProcessor.__init__)
    taken = {name for owner in owners for name in inspect.signature(owner).parameters}
    table = settings_page.settings_table()
    for setting in SETTINGS:
        of = next(row.split("|")[2] for row in table.splitlines() if row.startswith(f"| `{setting.name}` "))
        assert (setting.name in taken or "credentials=" in of) == (of.strip() != "-"), setting.name


def test_arguments_table_describes_every_argument_of_configure() -> None:
    rows = settings_page.arguments_table().splitlines()[2:]
    assert {row.split("`")[1] for row in rows} == set(inspect.signature(configure).parameters)
    assert all(row.count("|") == 3 and row.split("|")[2].strip().endswith(".") for row in rows)


def test_settings_table_names_type_of_every_parser() -> None:
    assert all(row.split(" | ")[3] for row in settings_page.settings_table().splitlines()[2:])


# From the strongest to the weakest, as the page has them.
TARGETS: list[tuple[str, dict[str, Any], dict[str, str], str]] = [
    ("`endpoint=`", {"endpoint": "http://a/v1/traces"}, {}, "http://a/v1/traces"),
    ("`tracking_uri=`", {"tracking_uri": "http://b"}, {}, "http://b/v1/traces"),
    (
        "`OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`",
        {},
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c/v1/traces"},
        "http://c/v1/traces",
    ),
    ("`MLFLOW_TRACKING_URI`", {}, {"MLFLOW_TRACKING_URI": "http://d"}, "http://d/v1/traces"),
    ("`OTEL_EXPORTER_OTLP_ENDPOINT`", {}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://e"}, "http://e/v1/traces"),
    ("`http://localhost:5000`", {}, {}, "http://localhost:5000/v1/traces"),
]


def test_listed_targets_follow_precedence() -> None:
    listed = [line.partition(". ")[2] for line in TEXT.splitlines() if line[:1].isdigit()]
    assert len(listed) == len(TARGETS)
    for number, (shown, _, _, expected) in enumerate(TARGETS):
        assert listed[number].startswith(shown)
        weaker = TARGETS[number:]
        arguments = {name: value for _, arguments_of_row, _, _ in weaker for name, value in arguments_of_row.items()}
        variables = {name: value for _, _, arguments_of_row, _ in weaker for name, value in arguments_of_row.items()}
        assert resolve(arguments, environment=variables).traces.url == expected


MLFLOWS = {"MLFLOW_TRACKING_TOKEN": "of-mlflow", "MLFLOW_TRACKING_INSECURE_TLS": "true"}
OTLPS = {"OTEL_EXPORTER_OTLP_HEADERS": "x-key=of-otlp"}


def test_described_groups_keep_variables_apart() -> None:
    common = {**MLFLOWS, **OTLPS}
    mlflow = resolve({}, environment={**common, "MLFLOW_TRACKING_URI": "https://mlflow"}).traces
    assert (mlflow.token, mlflow.insecure_tls, mlflow.headers) == ("of-mlflow", True, {})
    assert mlflow.ignored_variables == ("OTEL_EXPORTER_OTLP_HEADERS",)
    otlp = resolve({}, environment={**common, "OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector"}).traces
    assert (otlp.token, otlp.insecure_tls, otlp.headers) == (None, False, {"x-key": "of-otlp"})
    assert set(otlp.ignored_variables) == set(MLFLOWS)


def test_described_defaults_of_configure_apply() -> None:
    direct, behind = (
        resolve({name: address}, environment={}, defaults=DEFAULTS)
        for name, address in (("tracking_uri", "http://mlflow"), ("endpoint", "http://collector/v1/traces"))
    )
    assert set(DEFAULTS) == {"create_experiment", "spool", "handle_sigterm", "compact"}
    assert all(f"`{name}`" in TEXT.partition("has other defaults")[2].partition("\n\n")[0] for name in DEFAULTS)
    assert direct.create_experiment
    assert behind.create_experiment
    assert (direct.disk.spool, direct.disk.handle_sigterm, direct.enrichment.compact) == (True, True, True)
    assert (behind.disk.spool, behind.disk.handle_sigterm, behind.enrichment.compact) == (False, False, False)


def test_experiment_id_variable_beats_name_variable() -> None:
    both = {"MLFLOW_EXPERIMENT_ID": "7", "MLFLOW_EXPERIMENT_NAME": "a"}
    settings = resolve({}, environment=both)
    assert (settings.experiment, settings.experiment_id) == (None, "7")
    settings = resolve({"experiment": "b"}, environment=both)
    assert (settings.experiment, settings.experiment_id) == ("b", None)


def test_shown_credentials_file_is_read(tmp_path: Path) -> None:
    (block,) = blocks(PAGE, "ini")
    (tmp_path / ".mlflow").mkdir()
    (tmp_path / ".mlflow" / "credentials").write_text(block.code)
    assert read_credentials_file(str(tmp_path)) == {"username": "ada", "password": "..."}
