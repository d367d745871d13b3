"""The command `kwise export CHECKPOINT ARTIFACT`."""

import argparse
import sys

from kwise.engine.precision import Precision
from kwise.export.config import ExportConfig
from kwise.options import add_options, from_options
from kwise.train.options.model_path import check_model_path, check_template_path
from kwise.train.rankings.errors import RankingsError
from kwise.train.rankings.open_file import check_input


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ExportConfig`."""
    add_options(parser, ExportConfig)


def run(arguments: argparse.Namespace) -> int:
    """Export and print what was measured; return 1 if parity fails or the rankings are unusable."""
    config = from_options(ExportConfig, arguments)
    check_model_path("CHECKPOINT", config.checkpoint)
    check_template_path(config.chat_template)
    check_input(*filter(None, [config.rankings]))
    # Imported late, because torch, transformers and Optimum take seconds: --help and a wrong option
    # must not.
    from kwise.export.exporter import export
    from kwise.export.parity import ParityError

    try:
        artifact = export(config, progress=_print_progress)
    except (ParityError, RankingsError) as error:
        print(f"kwise export: nothing was written: {error}", file=sys.stderr)
        return 1
    manifest = artifact.manifest
    print(
        f"{artifact.path}: layout {manifest.layout}, up to {manifest.max_tokens} tokens, "
        f"fingerprint {manifest.fingerprint}"
    )
    for precision in manifest.available_precisions:
        report = manifest.error_bounds[precision].report
        template = _PARITY if precision is Precision.FP32 else _AGREEMENT
        line = template.format(
            **report,
            precision=precision.value,
            layers=", ".join(report.get("fp32_layers", [])) or "no layer group",
        )
        few_pairs = report.get("clear_pairs", _MANY_PAIRS) < _MANY_PAIRS
        print(f"  {precision.value}: {line}{_FEW_PAIRS if few_pairs else ''}")
    return 0


def _print_progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# fp16 and bf16 may order 0.5 % of the clear pairs differently, which is one of 200.
_MANY_PAIRS = 200
_FEW_PAIRS = (
    ". These are few clear pairs: measure with --rankings of up to 32 prompts that have more "
    "responses each"
)
_PARITY = (
    "parity with the checkpoint over {num_sequences} conversations of {shortest_tokens} to "
    "{longest_tokens} tokens: rewards differ by at most {max_error:.1e}, and by at most "
    "{max_batch_change:.1e} with the batch composition; {tolerance:.1e} is allowed"
)
_AGREEMENT = (
    "compared with fp32 over {num_groups} prompts and {num_responses} responses: orders "
    "{agreement:.1%} of pairs as fp32 does, {clear_agreement:.1%} of the {clear_pairs} with clear "
    "margins, Kendall's tau {kendall_tau:.3f}; in standard deviations of the rewards, errors are "
    "{mean_error:.3f} on average and {max_error:.3f} at most, changes with the batch composition "
    "{max_batch_change:.4f} at most; {matmul_share:.0%} of the matmul weights are in {precision}, "
    "{layers} stays in fp32"
)
