"""docs/reference/settings.md has every setting, and docs/operate/operations.md a section for every alarm."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import yaml

from bestofn.service.core.settings import Settings

ROOT = Path(__file__).resolve().parent.parent


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
    rules = yaml.safe_load((ROOT / "docker" / "prometheus" / "alerts.yml").read_text())["groups"][0]["rules"]
    text = (ROOT / "docs" / "operate" / "operations.md").read_text(encoding="utf-8")
    assert re.findall(r"^### (Bestofn\w+)$", text, re.MULTILINE) == [rule["alert"] for rule in rules]
    for rule in rules:
        assert rule["annotations"]["runbook"] == f"docs/operate/operations.md#{rule['alert'].lower()}"
