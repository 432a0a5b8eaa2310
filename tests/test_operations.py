"""docs/reference/settings.md has every setting, docs/operate/operations.md a section for every alarm; alarms fire."""

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from bestofn.service.core.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
ALERTS = ROOT / "docker" / "prometheus" / "alerts.yml"


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("operations", ROOT / ".ci" / "settings_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_has_every_setting() -> None:
    operations = generator()
    bare = [name for name, field in Settings.model_fields.items() if not field.description]
    assert not bare, f"settings without a description: {bare}"
    listed = [name for _, names in operations.groups() for name in names]
    assert listed == list(Settings.model_fields)
    text = operations.PAGE.read_text(encoding="utf-8")
    assert text == operations.page(text), "run `.venv/bin/python -P .ci/settings_page.py`"


def test_every_alarm_has_a_section_and_leads_to_it() -> None:
    rules = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
    text = (ROOT / "docs" / "operate" / "operations.md").read_text(encoding="utf-8")
    assert re.findall(r"^### (Bestofn\w+)$", text, re.MULTILINE) == [rule["alert"] for rule in rules]
    for rule in rules:
        assert rule["annotations"]["runbook"] == f"docs/operate/operations.md#{rule['alert'].lower()}"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Prometheus' promtool evaluates the alerts")
def test_alerts_of_a_namespace_are_not_hidden_by_another(tmp_path: Path) -> None:
    faults = {
        "BestofnApiAway": {"bestofn_ready": ("1x99", "1x9 stale")},
        "BestofnQueueAway": {"bestofn_redis_up": ("1x99", "0x99")},
        "BestofnQueueFull": {"bestofn_takes_jobs": ("1x99", "0x99")},
        "BestofnNoWorker": {"bestofn_ready": ("1x99", "0x99"), "bestofn_takes_jobs": ("0x99", "1x99")},
        "BestofnJobsFail": {
            'bestofn_jobs_ended_total{status="failed"}': ("0x99", "0+1x99"),
            'bestofn_jobs_ended_total{status="succeeded"}': ("0+1000x99", "0+1x99"),
        },
    }
    rules = {rule["alert"]: rule for rule in yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]}
    tests = []
    for name, metrics in faults.items():
        series = [
            {"series": f'{metric.rstrip("}")}{"," if "{" in metric else "{"}namespace="{space}"}}', "values": values}
            for metric, both in metrics.items()
            for space, values in zip(("staging", "production"), both, strict=True)
        ]
        labels = {**rules[name]["labels"], "namespace": "production"}
        alert = {"exp_labels": labels, "exp_annotations": rules[name]["annotations"]}
        expected = {"eval_time": "20m", "alertname": name, "exp_alerts": [alert]}
        tests.append({"interval": "15s", "input_series": series, "alert_rule_test": [expected]})
    (tmp_path / "tests.yml").write_text(json.dumps({"rule_files": [str(ALERTS)], "tests": tests}))
    done = subprocess.run(["promtool", "test", "rules", tmp_path / "tests.yml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
