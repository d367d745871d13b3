"""`kwise export CHECKPOINT ARTIFACT`."""

import argparse
import sys

from kwise.engine.precision import Precision
from kwise.export.exporter import ExportConfig, export
from kwise.export.parity import ParityError
from kwise.options import add_options, from_options
from kwise.train.rankings.errors import RankingsError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, ExportConfig)


def run(arguments: argparse.Namespace) -> int:
    """0, or 1 where parity fails or the rankings are bad, and nothing is written."""
    try:
        artifact = export(from_options(ExportConfig, arguments))
    except (ParityError, RankingsError) as error:
        print(f"kwise export: nothing was written: {error}", file=sys.stderr)
        return 1
    manifest = artifact.manifest
    print(
        f"{artifact.path}: layout {manifest.layout}, up to {manifest.max_tokens} tokens, fingerprint {manifest.fingerprint}"
    )
    for precision in manifest.available_precisions:
        report = manifest.error_bounds[precision].report
        line = _PARITY if precision is Precision.FP32 else _AGREEMENT
        layers = ", ".join(report.get("fp32_layers", [])) or "nothing"
        few = _FEW if report.get("clear_pairs", _MANY_PAIRS) < _MANY_PAIRS else ""
        print(
            f"  {precision.value}: {line.format(**report, precision=precision.value, layers=layers)}{few}"
        )
    return 0


# Of so many pairs, one is the half per cent that fp16 and bf16 may order otherwise.
_MANY_PAIRS = 200
_FEW = ". Those are few clear pairs: --rankings of up to 32 prompts, with more responses each, say more"
_PARITY = (
    "parity with the checkpoint over {num_sequences} conversations of {shortest_tokens} to {longest_tokens} tokens: largest "
    "difference {max_error:.1e}, by batch {max_batch_change:.1e}, allowed {tolerance:.1e}"
)
_AGREEMENT = (
    "beside fp32 over {num_groups} prompts, {num_responses} responses: orders {agreement:.1%} of pairs as fp32 does, "
    "{clear_agreement:.1%} of the {clear_pairs} with clear margins, Kendall's tau {kendall_tau:.3f}; in standard deviations of the "
    "rewards: errors {mean_error:.3f}, {max_error:.3f} at most, by batch {max_batch_change:.4f}; "
    "{matmul_share:.0%} of the matmul weights are in {precision}, in fp32 stays {layers}"
)
