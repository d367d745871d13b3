"""`kwise bench evidence`: the tables and plots of docs/evidence.md, from the results alone.

The rankings themselves are not needed, so anyone can draw the plots again.
"""

from collections.abc import Callable
from pathlib import Path

from kwise.benchmarks.experiments.options import STUDIES, EvidenceConfig
from kwise.benchmarks.experiments.report.results import Results, read_results
from kwise.errors import ConfigError
from kwise.libraries.extras import how_to_install
from kwise.libraries.plotting import load_matplotlib

TABLES = "tables.md"
_HEADING = """# Results of the experiments

`kwise bench evidence` writes this file. [docs/evidence.md](../../../docs/evidence.md) says what the
experiments are, and what they do not show. Accuracies are percentages of the pairs of test prompts;
in brackets are 95 % intervals of a bootstrap over seeds and prompts.
"""


def run(config: EvidenceConfig) -> None:
    """Write the tables into the folder of the results, and the plots into `config.images`.

    Raises:
        ConfigError: the results do not exist, or matplotlib is missing.
    """
    try:
        load_matplotlib()
    except ModuleNotFoundError:
        raise ConfigError(
            f"kwise bench evidence draws with matplotlib: {how_to_install('bench')}"
        ) from None
    from kwise.benchmarks.experiments.report import label_sections, size_sections

    sections: dict[str, Callable[[Results, Path], str]] = {
        "annotators": label_sections.annotators,
        "group-size": label_sections.group_size,
        "data-size": size_sections.data_size,
        "losses": label_sections.losses,
        "models": size_sections.models,
        "systems": size_sections.systems,
    }
    results = read_results(config.results, STUDIES, config.model, config.draws)
    parts = [_HEADING + f"\n{results.baseline()}\n"]
    for study, section in sections.items():
        if results.has(study):
            parts.append(f"## {study}\n\n{section(results, config.images)}\n")
            print(f"{study}: {len(results.lines[study])} cells")
    path = config.results / TABLES
    path.write_text("\n".join(parts), encoding="utf-8")
    print(f"tables: {path}; plots: {config.images}/evidence-*.svg")
