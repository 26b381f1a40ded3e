"""The FiftyOne App on a dataset: in the browser, inside a notebook, or through whatever lies between.

Knows: where the App can be reached from (a tab, JupyterLab, JupyterHub, an SSH tunnel), and that the review panel is
found.
Does not know: how the view is made (`refresh.py`), or what the panel does (`workbench/plugin`).

The App listens on this machine's loopback address alone, whatever FiftyOne's settings say: it asks nobody who they are.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from workbench.conversation import Media
from workbench.curation.database import open_fiftyone
from workbench.curation.documents import LABELS
from workbench.curation.plugin_link import link_plugin
from workbench.curation.refresh import view_of
from workbench.curation.review import person
from workbench.curation.server import free_port, is_free
from workbench.data.dataset import Dataset
from workbench.errors import DataError
from workbench.resources import import_path, make_folder, state_folder

if TYPE_CHECKING:
    import fiftyone as fo
    from fiftyone.core.collections import SampleCollection

LOOPBACK = "127.0.0.1"
PANEL = "workbench_review"
"""The name of the panel Conversations, as `fiftyone.yml` has it."""
LOG = "app_server.log"
"""What the App's server says, below the state folder."""
STARTS = 5
"""So often another port is tried where other programs take those that were free."""
_sessions: list[Any] = []
"""That of the App as it was opened last in this process; there is one App at most."""


def open(
    dataset: Dataset | str | Path | SampleCollection,
    *,
    port: int | None = None,
    proxy_url: str | None = None,
    browser: bool = True,
) -> fo.Session:
    """Show a dataset in the FiftyOne App, with the panel Conversations to review it; returns the App's session.

    `dataset`: one of ours, its folder, or a FiftyOne dataset or view. In a notebook the App appears below the cell,
    else in the browser, unless `browser` is False. `port`: FiftyOne's own by default, or a free one if it is taken.

    `proxy_url`: where this machine's port is reached from the outside, such as `https://host/user/ada/proxy/{port}/`.
    In JupyterHub, and in JupyterLab with jupyter-server-proxy, it is found; where it may be needed and is not found,
    the way is printed. Raises `DataError` for a port that is taken, `DatabaseError` where no database can be used.
    """
    if port is not None and not 0 < port < 65536:
        raise DataError(f"port {port}", found="no port number", expected="1 to 65535")
    opened = None if _is_view(dataset) else Dataset.open(dataset)  # type: ignore[arg-type]
    fiftyone = open_fiftyone()
    view = dataset if _is_view(dataset) else view_of(opened)  # type: ignore[arg-type]
    if path := import_path():  # for the App's server, a process in a folder of its own
        os.environ["PYTHONPATH"] = path
    linked = _link(fiftyone.config.plugins_dir)
    notebook = _in_notebook()
    with _own_words():
        fiftyone.close_app()
        port = _started(port, fiftyone.config.default_app_port)
        config = fiftyone.app_config.copy()
        config.proxy_url = (proxy_url or config.proxy_url or _proxy(notebook) or "").replace(
            "{port}", str(port)
        ) or None
        window = browser and (notebook or _has_display())
        spaces = _side_by_side(fiftyone, view) if linked else None
        # In a notebook FiftyOne refuses a remote session; without `auto` it shows nothing by itself there.
        where: dict[str, Any] = {"port": port, "address": LOOPBACK, "auto": window, "remote": not (window or notebook)}
        session = fiftyone.launch_app(view, spaces=spaces, config=config, **where)
    print(_told(session, port, notebook, window, config.proxy_url))
    _sessions[:] = [session]
    return session


def open_images(dataset: Dataset, images: Sequence[Media]) -> fo.Session:
    """Show these files of a dataset alone: in the App that `open` opened last here, else in a new one, no window.

    Raises as `open` does, and `DataError` for images that the dataset does not have.
    """
    wanted = {(image.root, image.path) for image in images}
    rows = dataset.images.select("id", "root", "path").iter_rows()
    names = [name for name, root, path in rows if (root, path) in wanted]
    if not names:
        raise DataError(
            images[0].path if images else "images", found="no such image", expected=f"one of {dataset.path}"
        )
    open_fiftyone()
    from fiftyone import ViewField

    view = view_of(dataset).match(ViewField("workbench_id").is_in(names))
    if not _sessions:
        return open(view, browser=False)
    _sessions[0].view = view
    return _sessions[0]


def _link(plugins: str) -> bool:
    """Whether the panel is found; the App is of use without it."""
    try:
        link_plugin(plugins)
    except DataError as problem:
        print(f"the panel Conversations is not there: {problem}", file=sys.stderr)
        return False
    return True


def _side_by_side(fiftyone: ModuleType, view: SampleCollection) -> fo.Space | None:
    """The images and, where there are any, their conversations beside them."""
    if not view.count(LABELS):
        return None
    panels = [fiftyone.Panel(type="Samples", pinned=True), fiftyone.Panel(type=PANEL)]
    spaces = [fiftyone.Space(children=[panel], active_child=panel.component_id) for panel in panels]
    return fiftyone.Space(children=spaces, orientation="horizontal", active_child=spaces[0].component_id)


def _is_view(what: object) -> bool:
    """Whether it is FiftyOne's own, a dataset or a view, without importing FiftyOne to ask."""
    return hasattr(what, "_root_dataset")


def _port(wanted: int | None, usual: int) -> int:
    if wanted is None:
        return usual if is_free(usual) else free_port()
    if not is_free(wanted):
        raise DataError(f"port {wanted}", found="a program that uses it", fix="leave out the port, or choose another")
    return wanted


def _started(wanted: int | None, usual: int) -> int:
    """The port that the App's server listens on now: the wanted one, or a free one.

    One that another program takes between the look at it and the start is passed over, and that is said. Raises
    `DataError` for a wanted port that is taken, and as `_start_server` does.
    """
    for left in reversed(range(STARTS)):
        port = _port(wanted, usual)
        try:
            _start_server(port)
            return port
        except PortTaken:
            if wanted is not None or not left:
                raise
            print(f"port {port} was taken by another program meanwhile: trying another one", file=sys.stderr)
    raise AssertionError


class PortTaken(DataError):
    """Another program came first."""


def _start_server(port: int) -> None:
    """Start the App's server and wait until it listens, before a session asks for it.

    A session waits ten seconds for a server that it starts itself, and then fails in a notebook: too short for a busy
    machine. Raises `PortTaken` where another program listens there, `DataError` where nothing does within a minute.
    """
    from fiftyone.core import service
    from fiftyone.core.session.session import _server_services  # where a session looks for one that runs

    class Server(service.ServerService):  # type: ignore[misc]
        """FiftyOne's, started by way of our module, so that the App's page asks no other host."""

        @property
        def command(self) -> list[str]:
            python, _, *words = super().command  # the second word is the file of FiftyOne's own
            return [python, "-m", "workbench.curation.app_server", *words]

        def _wait_for_child_port(self, port: int | None = None, timeout: int = 60) -> int:
            """As FiftyOne's, but not any longer once the server has ended for want of the port."""
            until = time.monotonic() + timeout
            while True:
                try:
                    return super()._wait_for_child_port(port, timeout=0)
                except service.ServiceListenTimeout:
                    if self.child.poll() is not None or time.monotonic() > until:
                        raise
                    time.sleep(0.25)

    if port in _server_services:
        return
    log = make_folder(state_folder() / "fiftyone") / LOG
    try:
        with log.open("wb") as words:
            # It outlives this process by a minute: whoever reads our output must not have to wait for it.
            started = partial(service.psutil.Popen, stdout=words, stderr=words)
            with patch.object(service.psutil, "Popen", started):
                _server_services[port] = Server(port, address=LOOPBACK, do_not_track=True)
    except service.ServiceListenTimeout:
        if not is_free(port):
            raise PortTaken(f"port {port}", found="a program that uses it", fix="choose another") from None
        fix = f"see {log}, or try again, when the machine has less to do"
        raise DataError("the App", found=f"no server on port {port} after a minute", fix=fix) from None


@contextmanager
def _own_words() -> Iterator[None]:
    """Without FiftyOne's welcome and its hints, which speak of a session that listens to the network."""
    logger = logging.getLogger("fiftyone.core.session.session")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


# --- where the App is reached from ------------------------------------------------------------------------------


def _in_notebook() -> bool:
    import fiftyone.core.context as context

    return bool(context.is_notebook_context())


def _has_display() -> bool:
    """Whether a browser that is started here would be seen."""
    if sys.platform != "linux":
        return "SSH_CONNECTION" not in os.environ
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _proxy(notebook: bool) -> str | None:
    """The path below which Jupyter passes our port on: it is reached however the notebook itself was."""
    if not notebook or find_spec("jupyter_server_proxy") is None:
        return None
    base = os.environ.get("JUPYTERHUB_SERVICE_PREFIX") or _jupyter_base()
    return f"{base.rstrip('/')}/proxy/{{port}}/" if base else None


def _jupyter_base() -> str | None:
    """The path of the Jupyter server that started this kernel: its process wrote it down in its runtime folder."""
    from jupyter_core.paths import jupyter_runtime_dir

    for file in Path(jupyter_runtime_dir()).glob("jpserver-*.json"):
        try:
            server = json.loads(file.read_text(encoding="utf-8"))
            if str(server["pid"]) == os.environ.get("JPY_PARENT_PID"):
                return str(server["base_url"])
        except (OSError, ValueError, KeyError):
            continue
    return None


def _told(session: Any, port: int, notebook: bool, window: bool, proxy_url: str | None) -> str:
    tunnel = f"ssh -N -L {port}:{LOOPBACK}:{port} {_me()}"
    if proxy_url:
        return f"the App is reached below {proxy_url}"
    url = f"http://{LOOPBACK}:{port}/"
    if notebook and ("JUPYTERHUB_SERVICE_PREFIX" in os.environ or "SSH_CONNECTION" in os.environ):
        return (
            f"the App is at {url} of the machine that runs this notebook. If it stays empty: pip install "
            f"jupyter-server-proxy there and restart Jupyter, or run {tunnel} on your own machine, or name the address "
            f'yourself: wb.open(dataset, proxy_url="https://HOST/proxy/{{port}}/")'
        )
    if notebook:
        return f"the App is at {url}; if Jupyter runs on another machine: {tunnel}, or proxy_url= of wb.open"
    return f"the App is at {url}" + ("" if window else f"; from another machine: {tunnel}, then open that address")


def _me() -> str:
    return f"{person()}@{socket.gethostname()}"
