"""Upstream's tests of its span exporter, with `MLflowSpanExporter` in the place of upstream's class."""

import pytest

from support.upstream_tests import run_upstream_tests

TEST_COUNT = 36
# Where upstream's tests read or replace private parts of the exporter (session, credential provider, the wait before a
# retry), tests/support/upstream_tests.py leads their names to what replaces them. Two tests of oversized payloads pass
# only because their mock has no endpoint: the requests are split and refused.
# Why the other tests fail. docs/migration.md describes the differences that users see.
DIFFERENCES = {
    # The test replaces or reads private parts of upstream's module that have no counterpart.
    "test_certificate_args": "expects the arguments of a private function; a missing file is an error at construction",
    "test_custom_transport": "passes a private argument",
    "test_export_encoding_failure": "replaces upstream's encoder, which is not used",
    # The behaviour is better by design.
    "test_export_non_retryable_status_codes": "408 and 500 are retried, and a 400 is confirmed once",
    "test_oversized_payload_records_failure_metric": "a request that is too large is split, and a single span sent",
    "test_retry_timeout_records_metrics": "spans that are retried in the background still count as in flight",
}


@pytest.mark.matrix
def test_upstream_tests_pass_with_upstream_class() -> None:
    outcomes = run_upstream_tests(with_own_class=True)
    assert list(outcomes.values()) == ["PASSED"] * TEST_COUNT


@pytest.mark.matrix
def test_upstream_tests_pass_except_for_known_differences() -> None:
    outcomes = run_upstream_tests(with_own_class=False)
    assert len(outcomes) == TEST_COUNT
    assert {name for name, outcome in outcomes.items() if outcome != "PASSED"} == DIFFERENCES.keys()
