"""On a machine of the tests, `make_venv.py FOLDER` makes a virtual environment that sees the packages of its image."""

import sys
import venv
from importlib.metadata import entry_points
from pathlib import Path

image, folder = Path(__file__).parent, Path(sys.argv[1]).absolute()
python = folder / "bin" / "python"
if not python.exists():
    venv.create(folder, symlinks=True)
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    for paths in image.glob("*.pth"):
        (site / paths.name).write_text(paths.read_text())
    sys.path += (image / "packages.pth").read_text().splitlines()
    commands = {one.name: one for one in entry_points(group="console_scripts")}
    for name in (image / "commands").read_text().split():
        module, _, function = commands[name].value.partition(":")
        script = folder / "bin" / name
        script.write_text(f"#!{python}\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n")
        script.chmod(0o755)
    command = folder / "bin" / "hksd"  # where a machine has the project itself, and pip installs nothing
    command.write_text(f"#!{python}\nfrom hksd_search.cli import main\nmain()\n")
    command.chmod(0o755)
    # Nothing is fetched: what pip does not find installed is a fault; it builds with the setuptools that is there.
    (folder / "pip.conf").write_text("[global]\nno-index = true\n[install]\nno-build-isolation = false\n")
