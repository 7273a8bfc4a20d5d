"""What a missing network makes of the hub's client."""

import sys

from huggingface_hub.errors import HfHubHTTPError


def network_error(name: str) -> Exception:
    """The error of that name of the very package that the installed client speaks HTTP with."""
    package = next(
        base.__module__ for base in HfHubHTTPError.__mro__ if base.__name__ in ("HTTPError", "RequestException")
    )
    kind: type[Exception] = getattr(sys.modules[package.split(".")[0]], name)
    return kind("no route to host")
