"""Clients of Python that people use, in an environment of their own, whose versions contradict ours."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from bestofn.service.api.app import create_app
from bestofn.service.core.settings import Settings

Serving = Callable[[Settings], AbstractContextManager[Any]]
HERE = Path(__file__).parent
PROGRAMS = HERE / ".venv" / "bin"
pytestmark = pytest.mark.skipif(not PROGRAMS.is_dir(), reason="needs the environment of tests/clients/requirements.txt")


def python(script: str, *arguments: str, **environment: str) -> Any:
    # `make test` sets PYTHONSAFEPATH, with which a script does not find a client in its own folder.
    variables = {**os.environ, "PYTHONSAFEPATH": "", "LITELLM_LOCAL_MODEL_COST_MAP": "True", **environment}
    command = [PROGRAMS / "python", HERE / script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_litellm(served: Any) -> None:
    assert python("with_litellm.py", served.url) == ["iVBOR", "iVBOR"]  # PNG


def test_langchain_which_expects_addresses(served: Any, serving: Serving) -> None:
    with serving(served.settings.model_copy(update={"response_format": "url"})) as api:
        assert python("with_langchain.py", api.url) == "image/png"


def test_client_of_openapi_python_client_makes_a_round_trip(served: Any, tmp_path: Path) -> None:
    described, client = tmp_path / "openapi.json", tmp_path / "client"
    described.write_text(json.dumps(create_app(Settings()).openapi()))
    command = [PROGRAMS / "openapi-python-client", "generate", "--path", described, "--output-path", client]
    variables = os.environ | {"PATH": f"{PROGRAMS}:{os.environ['PATH']}"}  # it formats what it writes with ruff
    subprocess.run(command, check=True, capture_output=True, env=variables)
    shutil.copy(HERE / "with_generated.py", client)
    assert python(str(client / "with_generated.py"), served.url) == ["succeeded", 16, 2, "fake"]
