"""The benchmarks print rows, and write a table and a chart."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LARGE_VALUES = """
from benchmarks import memory, processes
with processes.start_sink() as address:
    result = processes.run_child(memory.__file__, "--variant", "ours", "--address", address, "--parts")
print([name for name, bound in memory.PEAK_BOUNDS.items() if not result[name] < bound], result)
"""


def test_run_writes_table_and_chart_of_a_benchmark(tmp_path: Path) -> None:
    page, begin, end = tmp_path / "performance.md", "<!-- figures: begin -->\n", "<!-- figures: end -->\n"
    page.write_text(f"before\n{begin}old figures\n{end}after\n")
    (tmp_path / "images").mkdir()
    command = [sys.executable, "benchmarks/run.py", "encoder", "--docs", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "encoder: LLM span" in result.stdout, result.stderr
    text = page.read_text(encoding="utf-8")
    assert (text.startswith(f"before\n{begin}"), text.endswith(f"{end}after\n")) == (True, True)
    assert (text.count("| encoder | "), "old figures" in text) == (3, False)
    (chart_name,) = re.findall(r"!\[Chart .+\]\((images/.+\.svg)\)", text)
    chart = ET.parse(tmp_path / chart_name).getroot()
    assert len(chart.findall(".//{http://www.w3.org/2000/svg}rect")) == 3


def test_large_values_take_less_memory_than_the_bounds() -> None:
    command = [sys.executable, "-c", LARGE_VALUES]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.stdout.startswith("[] "), (result.stdout, result.stderr)
