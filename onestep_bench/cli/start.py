"""`start`: a folder to work in, with the notebooks and the grids that came with the package."""

import argparse
import shutil
from pathlib import Path

import onestep_bench
from onestep_bench.errors import OnestepError
from onestep_bench.store.files import new_folder

_PACKAGE = Path(onestep_bench.__file__).parent
_FOLDERS = ("notebooks", "params")
_README = """# A working folder of onestep_bench {version}

`notebooks/` is there to be read and changed, and each file of `params/` is a grid of runs of these notebooks.

```
pip install 'onestep-bench[grid,lab]'        # what runs grids, and JupyterLab; the library alone has neither
onestep-bench run params/quickstart.yaml     # minutes on two CPU cores, no GPU; ends in reports/quickstart/report.html
jupyter lab                                  # begin with notebooks/tour.ipynb
onestep-bench --help                         # plan, status and report of a grid; other people's models; the store
```

`report.html` opens in any browser; in JupyterLab right-click it, *Open in New Browser Tab*, and open the executed
notebooks, whose links are refused there, from the folder `executed`. `notebooks/report.ipynb` draws the run with
`notebooks = "../reports/quickstart/notebooks"`, and `notebooks/explore.ipynb` puts its models under sliders with
`report = "../reports/quickstart"`. Models, pairs and scores are kept under `~/.cache/onestep_bench`, or where
ONESTEP_STORE says.
"""


def add_commands(commands) -> None:
    """Add start."""
    text = "write a folder to work in: the notebooks, the grids and a README"
    sub = commands.add_parser("start", help=text, description=text)
    sub.set_defaults(command=_start)
    sub.add_argument("folder", type=Path, metavar="DIR", help="a new folder, or an empty one")


def _start(options: argparse.Namespace) -> int:
    files = _files()
    with new_folder(options.folder) as folder:
        for name, source in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / name)
        (folder / "README.md").write_text(_README.format(version=onestep_bench.__version__), encoding="utf-8")
    print(f"{options.folder}: {' and '.join(_FOLDERS)}; {options.folder / 'README.md'} says how to go on")
    return 0


def _files() -> dict[Path, Path]:
    """Path in a working folder to the file it is a copy of: in the package, or in a checkout beside it."""
    shipped = _PACKAGE / "start_files"
    origin = shipped if shipped.is_dir() else _PACKAGE.parent
    found = [path.relative_to(origin) for name in _FOLDERS for path in sorted((origin / name).rglob("*"))]
    # Hidden folders are JupyterLab's: checkpoints of notebooks.
    whole = [path for path in found if (origin / path).is_file() and not any(part[0] == "." for part in path.parts)]
    if {path.parts[0] for path in whole} != set(_FOLDERS):
        raise OnestepError(f"there are no notebooks and params in {origin}; reinstall onestep-bench")
    return {path: origin / path for path in whole}
