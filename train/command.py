"""`kwise train`: the command line of `training.train`."""

import argparse
import sys

from kwise.engine.options import add_options, from_options
from kwise.train.config import TrainConfig
from kwise.train.rankings import RankingsError

_EPILOG = """\
Each line of DATA is a prompt (a text, or messages before the assistant's turn) and K >= 2 responses, each with a rank
(1 is the best, equal ranks are ties) or each with a score (higher is better):

  {"prompt": "Why is the sky blue?", "responses": [{"text": "Air scatters ...", "rank": 1}, {"text": "Paint.", "rank": 2}]}

DIR gets a plain Hugging Face checkpoint (AutoModelForSequenceClassification with one label) with tokenizer and chat
template, and training_report.json. A run that was killed goes on with the same command and --resume.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `TrainConfig`."""
    parser.usage = "%(prog)s DATA --model MODEL --output DIR [options]"
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_options(parser, TrainConfig)


def run(arguments: argparse.Namespace) -> int:
    """Train, and print the validation before and after. 0, or 1 where the data is not usable."""
    config = from_options(TrainConfig, arguments)
    # Here, because torch and transformers take seconds to import: --help and a wrong option answer before.
    from kwise.train.training import train

    try:
        report = train(config)
    except RankingsError as error:
        print(error, file=sys.stderr)  # each problem begins with FILE:LINE
        print(f"kwise train: {config.data} cannot be trained on", file=sys.stderr)
        return 1
    print(report.text())
    print(f"checkpoint: {config.output}")
    return 0
