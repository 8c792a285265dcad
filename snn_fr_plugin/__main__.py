"""``python -m snn_fr_plugin info``: what to paste into a bug report."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from ._info import info


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit status is 1 where the self-check found something wrong."""
    parser = argparse.ArgumentParser(prog="python -m snn_fr_plugin", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    described = "versions, providers, cache of compiled kernels, self-check"
    command = commands.add_parser("info", help=described, description=described)
    command.add_argument("--json", action="store_true", help="print as JSON")
    options = parser.parse_args(arguments)
    facts = info()
    print(json.dumps(facts, indent=2) if options.json else _page(facts))
    return 0 if all(check["result"] == "ok" for check in facts["checks"]) else 1


def _page(facts: dict[str, Any]) -> str:
    lines = [f"{name:16} {version or 'absent'}" for name, version in facts["versions"].items()]
    lines.append("")
    for device, provider in facts["providers"].items():
        lines.append(f"{device + ' tensors':16} {provider['serves'] or 'not served'}: {provider['why']}")
    cache = facts["cache"]
    lines += ["", f"{'cache':16} {cache['directory']}, {len(cache['entries'])} files"]
    lines += [f"{size:16,} {name}" for name, size in cache["entries"].items()]
    lines.append("")
    for check in facts["checks"]:
        what = " ".join((check["device"], check["provider"], check["operator"]))
        lines.append(f"{what:28} {check['seconds']:6.3f} s  {check['result']}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
