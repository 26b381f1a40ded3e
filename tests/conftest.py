"""Every test runs offline, with one thread, silent progress bars, and all state in a folder that is removed after."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

STATE = tempfile.mkdtemp(prefix="workbench-tests-")

# Before anything imports torch, transformers or fiftyone, which read these once.
os.environ.update(
    WORKBENCH_HOME=STATE,
    WORKBENCH_PROGRESS="off",
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    HF_HOME=os.path.join(STATE, "huggingface"),
    HF_HUB_DISABLE_TELEMETRY="1",
    FIFTYONE_DO_NOT_TRACK="true",
    GRADIO_ANALYTICS_ENABLED="False",
    NO_COLOR="1",
    COLUMNS="200",
)
for name in ("FIFTYONE_DATABASE_URI", "FIFTYONE_DATABASE_DIR", "FIFTYONE_CONFIG_PATH"):
    os.environ.pop(name, None)

# A shell starts background jobs with Ctrl-C ignored, and every process of the tests would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

settings.register_profile(
    "workbench", deadline=None, max_examples=50, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip
settings.load_profile("workbench")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Two threads on a busy machine take twenty times as long; the same number also gives the same bits."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty state folder of this test's own."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("WORKBENCH_HOME", str(folder))
    return folder


@pytest.fixture(scope="session", autouse=True)
def state() -> Iterator[Path]:
    """The state folder of the whole session; the database that tests start lives there too."""
    yield Path(STATE)
    shutil.rmtree(STATE, ignore_errors=True)
