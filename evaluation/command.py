"""The command `kwise eval`: how well a model's rewards agree with rankings."""

import argparse
import sys
from pathlib import Path

from kwise.errors import ConfigError
from kwise.evaluation.config import EvalConfig
from kwise.options import add_options, flag_of, from_options
from kwise.train.options.config import Overlong
from kwise.train.rankings.errors import RankingsError
from kwise.train.rankings.open_file import check_input, display_name

_EPILOG = """\
MODEL is a checkpoint (a Hugging Face directory, or a name on the hub), an artifact, or the address
of a server. DATA has rankings in any format that kwise data converts, or is one of the public
benchmarks RewardBench, RewardBench 2, RM-Bench and JudgeBench.

The table goes to standard output. docs/evaluation.md explains each figure.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.usage = (
        "%(prog)s MODEL DATA [--json FILE] [--html FILE] [options]\n"
        "       %(prog)s --compare A B [--json FILE] [--html FILE]"
    )
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help="a checkpoint, an artifact, or HOST:PORT of a server",
    )
    parser.add_argument(
        "data",
        metavar="DATA",
        nargs="?",
        help="file with rankings, '-' for standard input, or file or directory of a benchmark",
    )
    parser.add_argument(
        "--compare",
        metavar=("A", "B"),
        nargs=2,
        help="compare two results that --json wrote for the same data, instead of evaluating",
    )
    add_options(parser, EvalConfig)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code.

    It is 1 if a ranking could not be scored, except for its length with --overlong skip.
    """
    config = from_options(EvalConfig, arguments)
    if arguments.compare:
        if arguments.model is not None:
            raise ConfigError("--compare takes the place of MODEL and DATA; leave them out")
        first, second = arguments.compare
        return _compare(Path(first), Path(second), config)
    if arguments.data is None:
        raise ConfigError(f"{'MODEL' if arguments.model is None else 'DATA'} is required")
    return _evaluate(arguments.model, arguments.data, config)


def _evaluate(model: str, data: str, config: EvalConfig) -> int:
    if not Path(data).is_dir():  # a directory may have a benchmark
        check_input(data)
    outputs = _outputs(config)
    from kwise.evaluation.report.html import write_html
    from kwise.evaluation.report.json import write_json
    from kwise.evaluation.report.table import table_lines
    from kwise.evaluation.run import evaluate

    try:
        evaluation = evaluate(model, data, config, _say)
    except RankingsError as error:
        _say(str(error))  # each problem begins with FILE:LINE
        _say(f"kwise eval: {display_name(data)} cannot be used")
        return 1
    writers = {"json": write_json, "html": write_html}
    # The files first: printing fails if the reader of a pipe has ended. A file that cannot be
    # written does not cost the table.
    try:
        for name, path in outputs.items():
            writers[name](evaluation, path)
    finally:
        print("\n".join(table_lines(evaluation)))
    failed = [
        left_out
        for left_out in evaluation.data.left_out
        if config.overlong is Overlong.ERROR or not left_out.is_overlong
    ]
    return int(bool(failed))


def _compare(a: Path, b: Path, config: EvalConfig) -> int:
    if unused := sorted(config.given().keys() - _COMPARE_OPTIONS):
        raise ConfigError(f"{flag_of(unused[0])} has no effect with --compare; leave it out")
    outputs = _outputs(config)
    from kwise.evaluation.compare import compare
    from kwise.evaluation.report.html import write_comparison_html
    from kwise.evaluation.report.json import read_json, write_comparison
    from kwise.evaluation.report.table import comparison_lines

    comparison = compare(read_json(a), read_json(b), config.settings())
    writers = {"json": write_comparison, "html": write_comparison_html}
    for name, path in outputs.items():
        writers[name](comparison, path)
    print("\n".join(comparison_lines(comparison)))
    return 0


_COMPARE_OPTIONS = {"json", "html", "overwrite", "resamples", "seed"}


def _outputs(config: EvalConfig) -> dict[str, Path]:
    """Return the files to write, by option.

    Raises:
        ConfigError: one exists already, cannot be written, or is named twice.
        ModuleNotFoundError: matplotlib, which draws the plots of --html, is not installed.
    """
    from kwise.libraries.plotting import load_matplotlib
    from kwise.publish import check_writable

    outputs = {
        name: Path(path) for name, path in (("json", config.json), ("html", config.html)) if path
    }
    for name, path in outputs.items():
        if path.is_dir() or (path.exists() and not config.overwrite):
            advice = "give another name" if path.is_dir() else "give --overwrite to replace it"
            raise ConfigError(f"--{name} {path}: exists; {advice}")
        if not path.absolute().parent.is_dir():
            raise ConfigError(f"--{name} {path}: the folder {path.parent} does not exist")
        check_writable(f"--{name}", path)
    if len(outputs) == 2 and len({path.absolute() for path in outputs.values()}) == 1:
        raise ConfigError(f"--json and --html are one file, {config.json}")
    if config.html:
        load_matplotlib()  # if it is missing, say so now and not after the evaluation
    return outputs


def _say(line: str) -> None:
    print(line, file=sys.stderr)
