"""The plugin of the FiftyOne App: a panel to review conversations in, and the steps of the workbench as operators.

Knows: which classes there are, to tell FiftyOne. `fiftyone.yml` beside it names them once more.
Does not know: how it is found (`curation/plugin_link.py`).

FiftyOne runs this file by its path, under a name of its own; everything else is imported from the installed package.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def register(plugin: Any) -> None:
    """Called by FiftyOne in the App's server process. A class that fails to load is named in the server's log."""
    from workbench.plugin.operators import OPERATORS
    from workbench.plugin.panel import Review

    for one in (Review, *OPERATORS):
        plugin.register(one)
    _serve_behind_a_proxy()


def _serve_behind_a_proxy() -> None:
    """FiftyOne 1.22 asks for a plugin's script with a proxy's path twice before it: `/x/proxy/5151//plugins/...`.

    The second one arrives here, so the App's server, where this runs in it, answers to that address too.
    """
    server = sys.modules.get("fiftyone.server.app")
    if server is None or any(getattr(route, "name", "") == _ROUTE for route in server.app.router.routes):
        return
    from starlette.responses import FileResponse
    from starlette.routing import Route

    def script(_: Any) -> FileResponse:
        return FileResponse(Path(__file__).with_name("review.js"), media_type="application/javascript")

    server.app.router.routes.insert(0, Route("/{proxy:path}/plugins/llava-workbench/review.js", script, name=_ROUTE))


_ROUTE = "workbench-review-behind-a-proxy"
