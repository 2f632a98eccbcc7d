"""Which swarmd this is. Reads the installed package's metadata; imports nothing heavy."""

from importlib import metadata


def version() -> str:
    """The version of the installed package; "0+tree" in a source tree that nobody installed."""
    try:
        return metadata.version("swarmd")
    except metadata.PackageNotFoundError:
        return "0+tree"
