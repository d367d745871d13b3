"""`kwise rl-path`."""

import subprocess
import sys
from pathlib import Path

import pytest

from kwise.cli import main
from kwise.rl.command import FILES


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
        main(["rl-path", "verl"])
    message = capsys.readouterr().err
    assert ended.value.code == 2
    assert all(library in message for library in FILES)


def test_the_folder_of_the_files_hides_no_library(tmp_path: Path) -> None:
    """ms-swift puts the folder of a plugin on sys.path, so `import verl` must not find ours."""
    files = Path(__file__).parents[2] / "rl" / "files"
    program = f"import sys; sys.path.insert(0, {str(files)!r}); import verl"
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], capture_output=True, text=True, cwd=tmp_path, env={}
    )
    assert "No module named 'verl'" in done.stderr
