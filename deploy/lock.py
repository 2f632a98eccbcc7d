"""Prints the versions of everything that swarmd[dev] needs, as they are installed here: the content of requirements.lock.

Versions without hashes, because pip takes a file with hashes for installations of wheels alone and this one also constrains
the editable installation of a source tree.
"""

from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def needed(name: str, extras: frozenset[str], seen: dict[str, frozenset[str]]) -> None:
    """Add to `seen` what `name` with `extras` needs, itself included, with the extras asked of each."""
    key = canonicalize_name(name)
    if key in seen and extras <= seen[key]:
        return
    seen[key] = seen.get(key, frozenset()) | extras
    for text in metadata.requires(name) or []:
        requirement = Requirement(text)
        if any(not requirement.marker or requirement.marker.evaluate({"extra": extra}) for extra in ("", *seen[key])):
            needed(requirement.name, frozenset(requirement.extras), seen)


def main() -> None:
    """Print the lock."""
    seen: dict[str, frozenset[str]] = {}
    needed("swarmd", frozenset({"dev"}), seen)
    print("# Tested versions of all dependencies, those for development included; written by `make lock`.")
    for name in sorted(set(seen) - {"swarmd"}):
        print(f"{name}=={metadata.version(name)}")


if __name__ == "__main__":
    main()
