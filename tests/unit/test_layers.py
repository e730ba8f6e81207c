"""The design rules that imports must keep: downwards only, MPI in two files, nothing heavy before it is needed."""

import ast
import subprocess
import sys
from pathlib import Path

import fedh2l_mpi

PACKAGE = Path(fedh2l_mpi.__file__).parent
# From the top: a room may import only from rooms below it.
ROOMS = (
    "__main__ > cli > api > simulation, launch > lifecycle > build > planning, analysis > evaluation"
    " > metrics, methods > exchange, participant > models, data, topology, run_directory > runtime > config"
    " > losses, rng, errors, __init__"
)
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
