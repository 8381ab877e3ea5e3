"""What the tests of the batch share."""

from __future__ import annotations

from typing import Any

import pytest

from devtools.server import ComfyServer


@pytest.fixture(scope="session")
def object_info(server: ComfyServer) -> dict[str, Any]:
    """The node classes of a real server."""
    return server.get("/object_info")
