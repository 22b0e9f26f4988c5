"""Who may import whom, read from the source; what importing the package costs; that what is public exists and is documented."""

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from adapters import importable, packages_of

import contrastive_zoo as zoo

PACKAGE = Path(zoo.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = [zoo.__name__, *(info.name for info in pkgutil.walk_packages(zoo.__path__, "contrastive_zoo."))]
OWN_DEPENDENCIES = {"torch", "numpy", "einops"}
# Imported when the first kernel is launched.
WRITTEN_FOR_TRITON = {
    "contrastive_zoo.batch.features_triton",
    "contrastive_zoo.pairwise.fused.device",
    "contrastive_zoo.pairwise.fused.backward",
    "contrastive_zoo.pairwise.fused.forward",
    "contrastive_zoo.pairwise.fused.functions",
    "contrastive_zoo.pairwise.fused.kernels",
    "contrastive_zoo.pairwise.fused.wide",
    "contrastive_zoo.samplers.philox_triton",
    "contrastive_zoo.samplers.walk_triton",
}

# A part of the package is a file or folder at its top. Each imports itself and what stands here, nothing else.
ARROWS: dict[str, set[str]] = {
    "__main__": {"batch_samplers", "loss", "registry", "samplers"},
    "checks": set(),
    "datasets": {"checks"},
    "devices": set(),
    "logspace": set(),
    "operators": {"devices"},
    "parameters": {"loss"},
    "plots": {"checks", "loss", "metrics"},
    "registry": {"checks"},
    "gradient_caching": {"checks", "processes"},
    "integrations": {"batch_samplers", "checks", "gradient_caching", "loss"},
    "processes": {"checks", "operators"},
    "ring": {"devices", "operators", "pairwise", "processes"},
    "schedules": {"checks", "operators"},
    "state": {"checks", "devices", "operators", "processes"},
    "metrics": {"checks", "loss", "operators", "pairwise"},
    "pairwise": {"checks", "devices", "logspace", "operators"},
    "functional": {"batch", "loss", "objectives", "state"},
    "batch": {"checks", "devices", "logspace", "operators", "pairwise", "processes", "registry", "ring"},
    "batch_samplers": {"batch", "checks", "logspace", "loss", "pairwise", "processes", "registry"},
    "samplers": {"batch", "checks", "devices", "logspace", "operators", "pairwise", "processes", "registry", "state"},
    "loss": {"batch", "checks", "devices", "objectives", "operators", "processes", "registry", "state"},
    "objectives": {"batch", "checks", "logspace", "pairwise", "registry", "samplers", "schedules", "state"},
}


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, *, at_import_time: bool = False) -> set[str]:
    """Full names of the modules that a file imports, and of what it takes from packages."""
    tree = ast.parse(path.read_text())
    nodes = list(ast.walk(tree))
    if at_import_time:
        functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
        inside = {node for function in functions for node in ast.walk(function)}
        nodes = [node for node in nodes if node not in inside]
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            modules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in modules}
    return found


def part(module: str) -> str | None:
    """Part of the package that a module belongs to; None for other packages."""
    names = module.split(".")
    return names[1] if names[0] == "contrastive_zoo" and len(names) > 1 else None


def test_imports_are_read() -> None:
    assert "contrastive_zoo.pairwise.sums" in imports(PACKAGE / "pairwise" / "__init__.py")
    assert "contrastive_zoo.pairwise.sweep" in imports(PACKAGE / "batch" / "pairs.py")
    assert "torch" in imports(PACKAGE / "loss" / "module.py", at_import_time=True)


def uses(own: str) -> set[str]:
    """Other parts of the package that the files of a part import."""
    files = [path for path in FILES if part(name_of(path)) == own]
    used = {part(module) for path in files for module in imports(path) if module.split(".")[0] == "contrastive_zoo"}
    assert None not in used, "the package itself knows everything, so nothing inside may import it"
    return {str(name) for name in used} - {own}


def test_every_part_has_its_arrows() -> None:
    parts = {part(name_of(path)) for path in FILES} - {None}
    assert parts == set(ARROWS)


@pytest.mark.parametrize("name", ARROWS)
def test_arrows_are_those_of_the_source(name: str) -> None:
    assert uses(name) == ARROWS[name]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300


# Functions that take any keyword, by what they call these: those that look up a name check every one, and so does what takes
# tables by name. Trainers call the hooks of the adapters, and the rest is for one caller each.
ANY_KEYWORD = {
    "params": {"get_loss", "get_sampler", "get_batch_sampler", "loss", "__call__", "__new__"},
    "tables": {"load_table"},
    "sides": {"load_natural"},
    "kwargs": {"on_epoch_begin", "on_step_end", "on_train_begin", "on_save"},
    "_": {"_check", "check_out_of_batch"},
}


def test_few_functions_take_any_keyword() -> None:
    found: dict[str, set[str]] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.args.kwarg:
                found.setdefault(node.args.kwarg.arg, set()).add(node.name)
    assert found == ANY_KEYWORD


def test_every_marker_marks_a_test() -> None:
    settings = (PACKAGE.parent / "pyproject.toml").read_text()
    declared = set(re.findall(r'"(\w+): ', re.findall(r"^markers = \[(.*?)\]", settings, re.MULTILINE | re.DOTALL)[0]))
    tests = "".join(path.read_text() for path in Path(__file__).parent.rglob("test_*.py"))
    assert declared
    assert declared <= set(re.findall(r"^@pytest\.mark\.(\w+)$", tests, re.MULTILINE))


def test_a_card_claims_no_scale_by_itself() -> None:
    """Only what was compared with the authors' code is said to be equal to it."""
    assert zoo.Card("name", lambda batch: batch).scale == ""
    for name in ("shuffle", "fixed", "full"):
        assert "scale" not in str(zoo.describe_batch_sampler(name))
    for name in zoo.list_samplers():
        assert "authors" not in zoo.describe_sampler(name).scale
    for name in zoo.list_losses():
        assert zoo.describe_loss(name).scale, f"{name}: say how the loss relates to the authors' code"


def test_few_modules_lie_loose() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 14


def test_arrows_do_not_run_in_circles() -> None:
    placed: set[str] = set()
    while placed != set(ARROWS):
        free = {name for name, needed in ARROWS.items() if name not in placed and needed <= placed}
        assert free, f"circle among {set(ARROWS) - placed}"
        placed |= free


def test_backends_do_not_know_one_another() -> None:
    folder, prefix = PACKAGE / "pairwise", "contrastive_zoo.pairwise."
    known = [module.removeprefix(prefix) for module in imports(folder / "backends.py") if module.startswith(prefix)]
    names = {module.split(".")[0] for module in known} - {"sweep", "terms"}
    assert names >= {"dense", "fused", "tiled"}
    for name in names:
        for path in [folder / f"{name}.py"] if (folder / f"{name}.py").exists() else (folder / name).glob("*.py"):
            others = {module.removeprefix(prefix).split(".")[0] for module in imports(path)} & (names - {name})
            assert not others, path


@pytest.mark.parametrize("path", sorted((PACKAGE / "objectives").glob("*.py")), ids=lambda path: path.name)
def test_objectives_know_nothing_of_machines(path: Path) -> None:
    assert not {module for module in imports(path) if module.startswith(("torch.distributed", "torch.cuda", "triton"))}
    words = re.findall(r"\b(cuda|triton|ranks?|world_size|process_group|distributed|devices? type)\b", path.read_text().lower())
    assert not words


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_few_packages_are_needed_to_import(path: Path) -> None:
    tops = {module.split(".")[0] for module in imports(path, at_import_time=True)}
    own = packages_of(name_of(path)) | ({"triton"} if name_of(path) in WRITTEN_FOR_TRITON else set())
    assert tops - sys.stdlib_module_names - {"contrastive_zoo"} <= OWN_DEPENDENCIES | own
    if name_of(path) not in WRITTEN_FOR_TRITON:
        assert not imports(path, at_import_time=True) & WRITTEN_FOR_TRITON


def test_adapters_are_not_imported_with_the_package() -> None:
    code = (
        "import sys, contrastive_zoo; print(*[name for name in sys.modules if name.startswith('contrastive_zoo.integrations')])"
    )
    assert not subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_importing_loads_no_other_package() -> None:
    """Beside what PyTorch loads by itself."""
    code = (
        "import sys, torch, numpy.random; before = set(sys.modules); import contrastive_zoo; "
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(loaded) - sys.stdlib_module_names <= {"contrastive_zoo", *OWN_DEPENDENCIES}


@pytest.mark.parametrize("name", [*filter(importable, MODULES)])
def test_public_names_exist_and_are_documented(name: str) -> None:
    if name in WRITTEN_FOR_TRITON:
        pytest.importorskip("triton")
    module = importlib.import_module(name)
    assert inspect.getdoc(module)
    for public in getattr(module, "__all__", []):
        value = getattr(module, public)
        if callable(value):
            assert inspect.getdoc(value), f"{name}.{public}"
        if inspect.isclass(value) and value.__module__.startswith("contrastive_zoo"):
            for method, function in vars(value).items():
                if inspect.isfunction(function) and not method.startswith("_"):
                    assert inspect.getdoc(function), f"{name}.{public}.{method}"


@pytest.mark.parametrize("name", ["", "batch_samplers", "functional", "metrics", "objectives", "pairwise", "samplers"])
def test_packages_say_what_is_public(name: str) -> None:
    public = importlib.import_module(f"contrastive_zoo.{name}".rstrip(".")).__all__
    assert public
    assert len(set(public)) == len(public)


def test_every_registered_build_is_exported() -> None:
    for name in zoo.list_losses():
        card = zoo.describe_loss(name)
        assert getattr(zoo.objectives, card.build.__name__) is card.build


def nested_targets(source: str) -> list[str]:
    """Assignments to tuples within tuples, in functions that Triton compiles."""
    functions = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and any(ast.unparse(each) == "triton.jit" for each in node.decorator_list)
    ]
    targets = [
        target
        for function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Tuple) and any(isinstance(each, ast.Tuple) for each in target.elts)
    ]
    return [ast.unparse(target) for target in targets]


@pytest.mark.parametrize("path", [path for path in FILES if "triton.jit" in path.read_text()], ids=lambda path: path.name)
def test_kernels_are_read_by_all_versions_of_triton(path: Path) -> None:
    """Triton before 3.8 fails at an assignment to a tuple within a tuple, before it compiles anything."""
    assert not nested_targets(path.read_text())


def test_a_nested_target_is_found() -> None:
    assert nested_targets("@triton.jit\ndef f(x):\n    (a, b), c = g(x)\n") == ["((a, b), c)"]
