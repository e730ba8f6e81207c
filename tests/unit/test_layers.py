"""The design rules of the package's shape: imports point down, MPI in few files, nothing heavy early, small modules."""

import ast
import subprocess
import sys
from pathlib import Path

import networkx

import fedh2l_mpi

PACKAGE = Path(fedh2l_mpi.__file__).parent
# From the top: a room may import only from rooms below it.
ROOMS = (
    "__main__, __init__ > cli > api > simulation, launch, privacy > lifecycle > build > planning, analysis > evaluation"
    " > metrics, methods > exchange, participant > models, data, topology, network, run_directory > runtime > config"
    " > losses, rng, sample_form, errors"
)
ENTRIES, MODULE_LINES = 28, 420
DEPTH = {room.strip(): depth for depth, rooms in enumerate(ROOMS.split(">")) for room in rooms.split(",")}


def imports() -> dict[str, set[str]]:
    """From each file of the package to the modules it imports, at whatever level."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        found[path.relative_to(PACKAGE).as_posix().removesuffix(".py")] = names
    return found


def imports_when_loaded() -> dict[str, set[str]]:
    """From each module to the modules of the package that its import runs first; names as in `fedh2l_mpi.NAME`."""
    trees = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix().removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        trees[name] = ast.parse(path.read_text())
    found = {}
    for module, tree in trees.items():
        names: set[str] = set()
        waiting: list[ast.AST] = list(tree.body)
        while waiting:
            node = waiting.pop()
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                of = {f"{node.module}.{alias.name}" for alias in node.names}
                names |= {name if name.removeprefix("fedh2l_mpi.") in trees else node.module for name in of}
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                waiting += node.orelse
            elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                waiting += ast.iter_child_nodes(node)
        found[module] = {name.removeprefix("fedh2l_mpi.") for name in names} & set(trees) - {module}
    return found


def test_no_modules_import_each_other_in_a_circle():
    graph = networkx.DiGraph(imports_when_loaded())
    assert graph.number_of_edges() > 200
    assert not [sorted(circle) for circle in networkx.strongly_connected_components(graph) if len(circle) > 1]


def test_the_package_has_few_entries_and_no_module_is_long():
    shown = {path.name for path in PACKAGE.iterdir() if not path.name.startswith((".", "__pycache__"))}
    assert len(shown) <= ENTRIES, sorted(shown)
    lines = {path: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert not {str(path.relative_to(PACKAGE)): n for path, n in lines.items() if n > MODULE_LINES}


def test_every_room_says_what_may_import_it():
    silent = []
    for path in sorted(PACKAGE.glob("*/__init__.py")):
        if "may import" not in (ast.get_docstring(ast.parse(path.read_text())) or ""):
            silent.append(path.parent.name)
    assert not silent


def test_imports_point_down_the_rooms():
    upward = []
    for file, names in imports().items():
        own = file.split("/")[0]
        for name in names:
            parts = name.split(".")
            ours = parts[0] == "fedh2l_mpi" and len(parts) > 1 and parts[1] in DEPTH and parts[1] != own
            if ours and DEPTH[parts[1]] <= DEPTH[own]:
                upward.append(f"{file} imports {name}")
    assert not upward


def test_every_module_is_in_a_room():
    assert {file.split("/")[0] for file in imports()} <= set(DEPTH)


def test_mpi_is_imported_where_ranks_meet_and_nowhere_else():
    users = {file for file, names in imports().items() if any(name.split(".")[0] == "mpi4py" for name in names)}
    assert users <= {
        "runtime/world",
        "exchange/exchange",
        "metrics/collector",
        "lifecycle/checkpoint_writer",
        "lifecycle/stopping",
    }


def test_a_single_process_never_imports_mpi_nor_what_it_does_not_need(tmp_path):
    code = (
        "import sys; from fedh2l_mpi import errors; from fedh2l_mpi.cli import commands\n"
        "from fedh2l_mpi.runtime import world\n"
        "try: commands.execute(commands.parse(['--set', 'rounds=0']), world.connect({}))\n"
        "except errors.UserError: pass\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules, 'a wrong config must be told at once'\n"
        "command = commands.parse(['--quiet', '--set', 'rounds=1', '--out', sys.argv[1]])\n"
        "commands.execute(command, world.connect({}))\n"
        "heavy = {'mpi4py', 'torch._dynamo', 'rich', 'networkx', 'scipy', 'sklearn', 'matplotlib', 'pandas'}\n"
        "found = heavy & set(sys.modules)\n"
        "assert not found, found\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, tmp_path / "run"], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr


def test_importing_the_package_does_no_work():
    code = "import sys, fedh2l_mpi; assert not {'torch', 'numpy', 'h5py', 'pydantic'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_one_module_forces_files_to_the_disk_and_renames_them():
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                # With one argument, `replace` is a path's: a text's has two, and that of a dataclass has keywords.
                is_replace = node.func.attr == "replace" and len(node.args) == 1 and not node.keywords
                if node.func.attr in ("fsync", "link", "rename") or is_replace:
                    found.append(path.relative_to(PACKAGE).as_posix())
    assert set(found) == {"runtime/atomic_files.py"}
