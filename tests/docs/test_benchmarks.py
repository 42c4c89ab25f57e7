"""The benchmarks print rows, and write a table and a chart."""

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_run_writes_table_and_chart_of_a_benchmark(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/run.py", "encoder", "--docs", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "encoder: LLM span" in result.stdout, result.stderr
    table = (tmp_path / "figures.md").read_text(encoding="utf-8")
    assert table.count("| encoder | ") == 3
    chart = ET.parse(tmp_path / "encoder.svg").getroot()
    assert len(chart.findall(".//{http://www.w3.org/2000/svg}rect")) == 3
