"""`kwise rl-path`."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from kwise.cli import main
from kwise.rl.command import FILES, WITHOUT_FILE


@pytest.mark.parametrize("library", FILES)
def test_the_path_is_that_of_a_python_file(
    library: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rl-path", library]) == 0
    path = Path(capsys.readouterr().out.rstrip("\n"))
    assert path.is_absolute()
    assert path.suffix == ".py"
    compile(path.read_text(), path, "exec")


def test_an_unknown_library_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["rl-path", "nemo"])
    message = capsys.readouterr().err
    assert ended.value.code == 2
    assert all(library in message for library in FILES)


@pytest.mark.parametrize("library", WITHOUT_FILE)
def test_a_library_without_a_file_is_told_what_to_write(
    library: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rl-path", library]) == 2
    assert f"it needs no file; write {WITHOUT_FILE[library]}" in capsys.readouterr().err
    page = (Path(__file__).parents[2] / "docs" / "rl.md").read_text(encoding="utf-8")
    name = re.search(r"kwise\.rl\.\w+|name=kwise|/v1\S+", WITHOUT_FILE[library])
    assert name and name[0] in page


def test_the_folder_of_the_files_hides_no_library(tmp_path: Path) -> None:
    """ms-swift puts the folder of a plugin on sys.path, so `import verl` must not find ours."""
    files = Path(__file__).parents[2] / "rl" / "files"
    program = f"import sys; sys.path.insert(0, {str(files)!r}); import verl"
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], capture_output=True, text=True, cwd=tmp_path, env={}
    )
    assert "No module named 'verl'" in done.stderr
