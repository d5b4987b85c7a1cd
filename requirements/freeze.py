"""Print exact versions of everything that `ROOT` needs in this environment, for requirements/lock.txt."""

from __future__ import annotations

import sys
from importlib.metadata import distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = "hqsam[app,dev,lvis,onnx,parity,text]"


def closure(root: str) -> dict[str, str]:
    """Versions of the installed distributions that `root` needs, directly or not, by canonical name."""
    versions: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    pending = [Requirement(root)]
    while pending:
        requirement = pending.pop()
        name = canonicalize_name(requirement.name)
        found = distribution(name)
        versions[name] = found.version.split("+")[0]
        for extra in {"", *requirement.extras}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for text in found.requires or []:
                needed = Requirement(text)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    pending.append(needed)
    del versions["hqsam"]
    return versions


if __name__ == "__main__":
    lines = [
        "# Exact versions for Python {}.{}: a constraints file for {}, written by `make lock`.".format(
            *sys.version_info[:2], ROOT
        ),
        "# opencv-python and opencv-python-headless (for albumentations) hold the same modules: versions must agree",
        *(f"{name}=={version}" for name, version in sorted(closure(ROOT).items())),
    ]
    sys.stdout.write("\n".join(lines) + "\n")
