"""The page of benchmarks says of every figure whether what is wanted was met, and keeps sections that did not run."""

import importlib.util
import sys
from pathlib import Path


def test_a_page_of_two_runs(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("bench_figures", Path(__file__).with_name("figures.py"))
    assert spec is not None
    assert spec.loader is not None
    figures = sys.modules["bench_figures"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    fast = figures.Measured(
        [figures.Table(("N", "way", "s"), [(4096, "ours", 0.01234)])], [figures.at_least("N", 1.2, 1.3, "x")]
    )
    small = figures.Measured([], [figures.at_most("Redis", 99.6, 600, "bytes")], ["Two sentences."])
    figures.save(tmp_path, "speed", "How fast.", fast, 3.2, "one machine")
    figures.save(tmp_path, "memory", "How small.", small, 1.0, "another machine")
    figures.write_page(tmp_path, ("memory", "speed", "never run"))
    page = (tmp_path / "README.md").read_text()
    assert "| 4,096 | ours | 0.0123 |" in page
    assert "1.2 x" in page
    assert "at least 1.3 x | **missed** |" in page
    assert "at most 600 bytes | met |" in page
    assert (
        page.index("## memory") < page.index("Two sentences.") < page.index("another machine") < page.index("## speed")
    )
