"""The rules of the source tree: who imports whom, what is packaged, what is never used.

Each rule is a function from a source text to its violations, and each is also fed a source that breaks it.
"""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Which layers a layer may import, besides itself. `api` is `tapeout` itself.
MAY_IMPORT = {
    "ir": set(),
    "backends": {"ir"},
    "passes": {"ir"},
    "compiler": {"ir", "passes", "backends"},
    "models": {"ir", "passes", "backends"},
    "tasks": {"ir", "passes", "backends", "models", "compiler"},
    "api": {"ir", "passes", "backends", "compiler", "models", "tasks"},
    "testing": {"ir", "passes", "backends", "compiler", "models", "tasks"},
}
OUTSIDE = {"testing/plugin": "pytest_tapeout"}
"""Folders that are imported beside `tapeout`: pytest loads the plugin at every start, and must not load torch."""

LIBRARY = sorted(file for layer in MAY_IMPORT for file in (ROOT / layer).rglob("*.py"))
SCRIPTS = sorted(file for folder in ("benchmarks", "examples") for file in (ROOT / folder).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
TEXT_SUFFIXES = {".py", ".md", ".cfg", ".toml", ".txt", ".yml", ".yaml", ".json", ""}
UNTRACKED_FOLDERS = {"build", "dist", "__pycache__"}

HEAVY = {"onnx", "onnx_ir", "onnxruntime", "rust_circuit", "transformers"}
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {"torch.load", "torch.package", "np.load", "numpy.load"}
UNSAFE_OPTIONS = {
    "allow_pickle": True,
    "trust_remote_code": True,
    "weights_only": False,
    "use_safetensors": False,
}


class Violation(NamedTuple):
    line: int
    what: str


Rule = Callable[[ast.Module, str], Iterator[Violation]]


# ---- the rules ----------------------------------------------------------------------------------------


def imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every module that a source imports anywhere, `from package import name` as `package.name`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and dotted(node.func).endswith(("import_module", "__import__")):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield node.lineno, argument.value


def dotted(node: ast.expr) -> str:
    """`a.b.c` for an expression of that form, else an empty string."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def layer_of(module: str) -> str | None:
    """The layer that an imported module belongs to; None if it is not ours."""
    first, _, rest = module.partition(".")
    if first != "tapeout":
        return None
    second = rest.partition(".")[0]
    return second if second in MAY_IMPORT and second != "api" else "api"


def layering(tree: ast.Module, layer: str) -> Iterator[Violation]:
    """A layer imports itself and the layers below it."""
    for line, module in imports(tree):
        target = layer_of(module)
        if target is not None and target != layer and target not in MAY_IMPORT[layer]:
            yield Violation(line, f"{layer} must not import {target} ({module})")


def absolute_imports(tree: ast.Module, _layer: str) -> Iterator[Violation]:
    """Our modules are imported as `tapeout.x`: never relatively, never under the folder's bare name."""
    for line, module in imports(tree):
        if module.startswith(".") or module.partition(".")[0] in MAY_IMPORT:
            yield Violation(line, f"import {module} as tapeout...")


def no_assert(tree: ast.Module, _layer: str) -> Iterator[Violation]:
    """Assertions vanish under -O and say nothing to a user: errors are raised."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            yield Violation(node.lineno, "assert statement")


def nothing_unpickled(tree: ast.Module, _layer: str) -> Iterator[Violation]:
    """No pickles are read, and no code from a checkpoint is run."""
    for line, module in imports(tree):
        if module.partition(".")[0] in UNSAFE_MODULES or module in UNSAFE_CALLS:
            yield Violation(line, f"import of {module}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and dotted(node) in UNSAFE_CALLS:
            yield Violation(node.lineno, dotted(node))
        if isinstance(node, ast.keyword) and is_unsafe_option(node):
            yield Violation(node.value.lineno, f"{node.arg}={ast.unparse(node.value)}")


def is_unsafe_option(keyword: ast.keyword) -> bool:
    name, value = keyword.arg, keyword.value
    return name in UNSAFE_OPTIONS and isinstance(value, ast.Constant) and value.value is UNSAFE_OPTIONS[name]


def module_docstring(tree: ast.Module, _layer: str) -> Iterator[Violation]:
    """A module says what it is for."""
    if tree.body and not ast.get_docstring(tree):
        yield Violation(1, "no docstring")


def heavy_imports_are_local(tree: ast.Module, _layer: str) -> Iterator[Violation]:
    """Heavy libraries are imported inside functions, or for types only."""
    for node in executed_on_import(tree.body):
        for line, module in imports(ast.Module([node], [])):
            if module.partition(".")[0] in HEAVY:
                yield Violation(line, f"{module} is imported when the module is")


def executed_on_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The import statements that run as a module is imported."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and dotted(node.test).endswith("TYPE_CHECKING"):
            yield from executed_on_import(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for field in ("body", "orelse", "finalbody"):
                yield from executed_on_import(getattr(node, field, []))
            for handler in getattr(node, "handlers", []):
                yield from executed_on_import(handler.body)


# Folders of a developer's machine. (Written so that the pattern does not find itself.)
PRIVATE_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|work|opt|Users)/\w+")


def no_private_path(text: str) -> Iterator[Violation]:
    """No file says where something lies on one person's machine."""
    for number, line in enumerate(text.splitlines(), start=1):
        if PRIVATE_PATH.search(line):
            yield Violation(number, line.strip())


# ---- the rules hold -----------------------------------------------------------------------------------

RULES: dict[str, tuple[Rule, list[Path]]] = {
    "layering": (layering, LIBRARY),
    "absolute_imports": (absolute_imports, LIBRARY + SCRIPTS + TESTS),
    "no_assert": (no_assert, LIBRARY + SCRIPTS),
    "nothing_unpickled": (nothing_unpickled, LIBRARY + SCRIPTS),
    "module_docstring": (module_docstring, LIBRARY + SCRIPTS + TESTS),
    "heavy_imports_are_local": (
        heavy_imports_are_local,
        [file for file in LIBRARY if not file.is_relative_to(ROOT / "backends" / "onnx")],
    ),
}


def check(rule: Rule, file: Path) -> list[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
    place = file.relative_to(ROOT)
    return [f"{place}:{line}: {what}" for line, what in rule(tree, place.parts[0])]


@pytest.mark.parametrize("name", RULES)
def test_rule_holds(name: str) -> None:
    rule, files = RULES[name]
    assert files
    assert [problem for file in files for problem in check(rule, file)] == []


BROKEN = [
    ("layering", "ir", "from tapeout.passes import To"),
    ("layering", "ir", "from tapeout import passes"),
    ("layering", "ir", "def f():\n    import tapeout.backends.reference"),
    ("layering", "ir", "import importlib\nimportlib.import_module('tapeout.backends')"),
    ("layering", "ir", "import tapeout"),
    ("layering", "backends", "from tapeout.passes.simplify import simplify"),
    ("layering", "backends", "from tapeout.compiler import compile"),
    ("layering", "passes", "import tapeout.backends"),
    ("layering", "compiler", "from tapeout.models import load_circuit"),
    ("layering", "models", "from tapeout.tasks import ioi"),
    ("layering", "models", "from tapeout import load_circuit"),
    ("layering", "models", "if TYPE_CHECKING:\n    from tapeout.tasks import IOIDataset"),
    ("absolute_imports", "ir", "from . import add"),
    ("absolute_imports", "ir", "from .add import Add"),
    ("absolute_imports", "ir", "import ir"),
    ("absolute_imports", "tests", "from passes.simplify import simplify"),
    ("no_assert", "ir", "def f(x):\n    assert x > 0"),
    ("nothing_unpickled", "models", "import pickle"),
    ("nothing_unpickled", "models", "from pickle import loads"),
    ("nothing_unpickled", "models", "import torch\ntorch.load('x.pt', weights_only=True)"),
    ("nothing_unpickled", "models", "from torch import load"),
    ("nothing_unpickled", "models", "AutoModel.from_pretrained(x, trust_remote_code=True)"),
    ("nothing_unpickled", "models", "AutoModel.from_pretrained(x, use_safetensors=False)"),
    ("layering", "tasks", "from tapeout.testing import cases"),
    ("module_docstring", "ir", "x = 1"),
    ("heavy_imports_are_local", "models", "import transformers"),
    ("heavy_imports_are_local", "models", "try:\n    from onnx import helper\nexcept ImportError:\n    pass"),
    ("heavy_imports_are_local", "models", "class A:\n    import onnxruntime"),
]


@pytest.mark.parametrize(("name", "layer", "source"), BROKEN)
def test_rule_finds_a_violation(name: str, layer: str, source: str) -> None:
    assert list(RULES[name][0](ast.parse(source), layer))


ALLOWED = [
    (
        "layering",
        "passes",
        "from tapeout.ir import Add\nfrom tapeout.passes.registry import register\nimport torch",
    ),
    ("layering", "api", "from tapeout import models\nfrom tapeout.tasks.ioi import IOIDataset"),
    ("absolute_imports", "ir", "import tapeout.ir\nfrom tapeout import ir\nimport irregular"),
    (
        "nothing_unpickled",
        "models",
        "import torch\ntorch.loads\nmodel.load(x)\nfrom safetensors.torch import load",
    ),
    ("module_docstring", "ir", ""),
    ("heavy_imports_are_local", "models", "def f():\n    import transformers"),
    ("heavy_imports_are_local", "models", "if TYPE_CHECKING:\n    from transformers import GPT2Config"),
]


@pytest.mark.parametrize(("name", "layer", "source"), ALLOWED)
def test_rule_allows(name: str, layer: str, source: str) -> None:
    assert list(RULES[name][0](ast.parse(source), layer)) == []


def texts() -> list[Path]:
    return sorted(
        file
        for file in ROOT.rglob("*")
        if file.is_file()
        and file.suffix in TEXT_SUFFIXES
        and not any(is_generated(part) for part in file.relative_to(ROOT).parts[:-1])
        and file.name != ".git"
    )


def is_generated(folder: str) -> bool:
    hidden = folder.startswith(".") and folder != ".ci"
    return hidden or folder in UNTRACKED_FOLDERS or folder.endswith(".egg-info")


def test_no_file_names_a_private_path() -> None:
    files = texts()
    assert ROOT / "Makefile" in files and ROOT / ".ci" / "run" in files
    found = [
        f"{file.relative_to(ROOT)}:{line}: {what}"
        for file in files
        for line, what in no_private_path(file.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize("folder", ["home", "root", "Users"])
def test_private_path_is_found(folder: str) -> None:
    assert list(no_private_path(f"x = 1\ndata = '/{folder}/someone/data'"))
    assert not list(no_private_path("#!/usr/bin/env bash\nsee https://example.org" + f"/{folder}/x"))


# ---- packaging ----------------------------------------------------------------------------------------


def packaging_problems(setup: str, folders: set[str]) -> list[str]:
    """How the packages that setup.cfg lists differ from the folders that hold Python files."""
    parser = configparser.ConfigParser()
    parser.read_string(setup)
    packages = parser["options"]["packages"].split()
    mapping = dict(
        (part.strip() for part in line.split("="))
        for line in parser["options"]["package_dir"].splitlines()
        if line.strip()
    )
    expected = {package_of(folder): folder for folder in folders}
    return [
        *(f"not listed in packages: {name}" for name in sorted(set(expected) - set(packages))),
        *(f"listed, but no such folder: {name}" for name in sorted(set(packages) - set(expected))),
        *(f"package_dir lacks or misplaces {n}" for n, f in sorted(expected.items()) if mapping.get(n) != f),
        *(f"package_dir has a stray {name}" for name in sorted(set(mapping) - set(expected))),
    ]


def package_of(folder: str) -> str:
    """`ir` is `tapeout.ir`, `api` is `tapeout`."""
    if folder in OUTSIDE:
        return OUTSIDE[folder]
    first, *rest = folder.split("/")
    return ".".join(["tapeout", *([] if first == "api" else [first]), *rest])


def test_setup_lists_every_package() -> None:
    folders = {file.parent.relative_to(ROOT).as_posix() for file in LIBRARY}
    assert {"api", *MAY_IMPORT} <= folders
    assert packaging_problems((ROOT / "setup.cfg").read_text(encoding="utf-8"), folders) == []


def test_a_forgotten_package_is_found() -> None:
    setup = (
        "[options]\npackages =\n    tapeout\n    tapeout.ir\npackage_dir =\n    tapeout = api\n    tapeout.ir = ir\n"
    )
    assert packaging_problems(setup, {"api", "ir"}) == []
    assert packaging_problems(setup, {"api", "ir", "ir/kinds"}) == [
        "not listed in packages: tapeout.ir.kinds",
        "package_dir lacks or misplaces tapeout.ir.kinds",
    ]
    assert packaging_problems(setup, {"api"}) == [
        "listed, but no such folder: tapeout.ir",
        "package_dir has a stray tapeout.ir",
    ]


def test_every_package_is_regular_and_typed() -> None:
    folders = {file.parent for file in LIBRARY}
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []
    assert (ROOT / "api" / "py.typed").is_file()


def test_tests_are_no_packages() -> None:
    assert [file for file in TESTS if file.name == "__init__.py"] == []


def test_constraints_pin_every_direct_dependency() -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    wanted = parser["options"]["install_requires"] + parser["options.extras_require"]["test"]
    names = {name_of(line) for line in wanted.splitlines() if line.strip()}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {name_of(line): line for line in lines if line and not line.startswith("#")}
    assert names - set(pinned) == {"onnxruntime"}  # the build for machines without the GPU package
    assert [line for line in pinned.values() if "==" not in line] == []
    assert pinned["torch"] == "torch==2.13.0"


def name_of(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement.strip(), maxsplit=1)[0].lower().replace("_", "-")


# ---- importing is light -------------------------------------------------------------------------------


def loaded_by(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after a statement."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_import_is_light() -> None:
    loaded = loaded_by("import tapeout")
    assert "tapeout" in loaded
    assert loaded & HEAVY == set()


def test_loading_names_is_light() -> None:
    assert loaded_by("import tapeout.models.checkpoint") & HEAVY == set()


def test_a_heavy_import_is_seen() -> None:
    assert loaded_by("import onnx") & HEAVY == {"onnx"}
