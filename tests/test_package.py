"""The package as a whole: what imports what, what importing costs, what the wheel holds."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import snn_fr_plugin

ROOT = Path(__file__).parent.parent
CORE = ROOT / "snn_fr_plugin"
ADAPTERS = ROOT / "integrations"

# a layer may import from the layers to its right, and from itself
LAYERS = {
    "__main__": {"_info"},
    "_info": {"ops", "_version"},
    "systems": {"memory", "spiking", "ops", "surrogate", "discretize", "_module", "_checks"},
    "memory": {"ops", "surrogate", "discretize", "_module", "_checks"},
    "spiking": {"ops", "surrogate", "discretize", "_module", "_checks"},
    "_module": {"ops", "surrogate", "_checks"},
    "ops": {"surrogate", "_checks"},
    "encoding": {"ops", "_checks"},
    "discretize": {"_checks"},
    "surrogate": {"_checks"},
    "_alloc": set(),
    "_checks": set(),
    "_version": set(),
}


def _layer(path: Path) -> str:
    return path.relative_to(CORE).parts[0].removesuffix(".py")


def _imports(path: Path, module: str) -> set[str]:
    """Absolute names of the modules that a file imports; ``module`` is its own dotted name."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names.update(f"{base}.{a.name}" for a in node.names)
    return names


def _core_files() -> list[Path]:
    return sorted(CORE.rglob("*.py"))


@pytest.mark.parametrize("path", _core_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_import_direction(path: Path) -> None:
    """integrations -> systems -> {memory, spiking} -> ops -> {_checks, surrogate}, never back."""
    if path == CORE / "__init__.py":
        return
    layer = _layer(path)
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    own = {n.split(".")[1] for n in _imports(path, module) if n.startswith("snn_fr_plugin.")}
    assert own - {layer} <= LAYERS[layer], f"{layer} must not import {own - {layer} - LAYERS[layer]}"
    if path.name == "reference.py":
        assert own <= {"surrogate"}


def test_nothing_in_the_core_imports_an_adapter_or_a_framework() -> None:
    for path in _core_files():
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for name in _imports(path, module):
            assert not name.startswith(("snn_fr_plugin.integrations", "integrations")), path
            assert name.partition(".")[0] not in {"snntorch", "spikingjelly"}, path


def test_cupy_is_imported_in_one_file_and_only_when_asked_for() -> None:
    for path in [*_core_files(), *sorted(ADAPTERS.rglob("*.py"))]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inside = {n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            if any(name.partition(".")[0] in {"cupy", "cupy_backends", "cupyx"} for name in names):
                assert path == CORE / "ops" / "_cupy.py" and node in inside, (path, node.lineno)


def test_adapters_import_absolutely() -> None:
    files = sorted(ADAPTERS.rglob("*.py"))
    assert files
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and node.level), path


def test_import_is_light() -> None:
    """``import snn_fr_plugin`` loads no framework and no CuPy, and starts no compiler."""
    script = (
        "import subprocess, sys, os\n"
        "def refuse(*a, **k): raise AssertionError(f'import starts a process: {a}')\n"
        "import torch, numpy\n"
        "subprocess.Popen.__init__ = refuse\n"
        "os.system = refuse\n"
        "import snn_fr_plugin\n"
        "loaded = {'cupy', 'snntorch', 'spikingjelly'} & {m.partition('.')[0] for m in sys.modules}\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT.parent)


def test_a_second_copy_of_the_adapters_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import integrations"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "import this package as 'snn_fr_plugin.integrations', not as 'integrations'" in done.stderr


def test_version_is_the_installed_one() -> None:
    assert importlib.metadata.version("snn-fr-plugin") == snn_fr_plugin.__version__


def test_public_names_exist() -> None:
    assert len(set(snn_fr_plugin.__all__)) == len(snn_fr_plugin.__all__)
    assert all(hasattr(snn_fr_plugin, name) for name in snn_fr_plugin.__all__)


def test_listed_packages_are_those_of_the_tree() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    found = {".".join(p.parent.relative_to(ROOT).parts) for p in CORE.rglob("__init__.py")}
    found |= {
        ".".join(("snn_fr_plugin", *p.parent.relative_to(ROOT).parts)) for p in ADAPTERS.rglob("__init__.py")
    }
    assert set(settings["packages"]) == found


@pytest.mark.slow
def test_wheel_content(tmp_path: Path) -> None:
    """Every source, kernel and ``py.typed`` is in the wheel, at the place it is imported from."""
    source = tmp_path / "source"  # built in a copy: a build folder left in the tree would colour the result
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in (CORE, ADAPTERS):
        shutil.copytree(folder, source / folder.name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        tmp_path,
    ]
    subprocess.run([*command, source], check=True, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    kinds = {".py", ".cpp", ".cu", ".h", ".json", ".typed"}
    expected = {p.relative_to(ROOT).as_posix() for p in CORE.rglob("*") if p.suffix in kinds}
    expected |= {
        f"snn_fr_plugin/{p.relative_to(ROOT).as_posix()}" for p in ADAPTERS.rglob("*") if p.suffix in kinds
    }
    assert held == expected
    assert "snn_fr_plugin/py.typed" in held and "snn_fr_plugin/integrations/snntorch/__init__.py" in held
