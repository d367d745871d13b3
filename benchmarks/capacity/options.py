"""The options of the capacity benchmarks. Imports the standard library only."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from kwise.benchmarks.capacity.hardware import (
    DEFAULT_PASS,
    DEVICES,
    MODELS,
    SHARE_OF_PEAK,
    Device,
    ModelSize,
    measured_range,
)
from kwise.benchmarks.options import Cell, parse_cell
from kwise.errors import ConfigError
from kwise.options import MAX_BYTES, MAX_COUNT, MAX_SECONDS, check_bounds, option


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueBenchConfig:
    """Options of `kwise bench queue`."""

    artifact: str = option(help="an artifact with the trie layout")
    cell: str = option(
        "256/128/9",
        "groups P/R/K: tokens of the prompt, tokens of each response, number of responses",
    )
    loads: tuple[float, ...] = option(
        (0.5, 0.8, 0.9), "loads, relative to capacity", minimum=0.01, maximum=0.99
    )
    seeds: tuple[int, ...] = option(
        (1, 2, 3), "seeds of the arrivals; each load runs once with each", minimum=0, maximum=999
    )
    groups: int = option(60, "groups in a run", minimum=2, maximum=MAX_COUNT)
    repeats: int = option(
        1, "times that each pass is timed around a run", minimum=1, maximum=MAX_COUNT
    )
    paced: bool = option(
        False,
        "let each pass take a modelled time instead of running the model: this compares the queue "
        "alone, on a machine that is busy with other work",
    )
    pace: float = option(
        0.25,
        "modelled time with --paced, relative to SmolLM2 on two cores",
        minimum=0.001,
        maximum=1e3,
    )
    measured: str = option(
        "", "JSON file of an earlier run, to simulate it again without measuring"
    )
    json: str = option("", "file for all figures and the machine")

    def __post_init__(self) -> None:
        check_bounds(self)
        self.parsed_cell()

    def parsed_cell(self) -> Cell:
        """Return `cell`, parsed."""
        return positive_cell(self.cell)


STUDIES = ("groups", "singles", "scaling", "loss")
ROUTER_NAMES = ("random", "two-choices", "least-loaded", "prompt-hash", "bounded-hash")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterBenchConfig:
    """Options of `kwise bench cluster`."""

    studies: tuple[str, ...] = option(
        (),
        "all by default. groups: routers with whole groups; singles: routers with one call per "
        "response; scaling: twice the load and autoscaling; loss: one replica dies",
    )
    routers: tuple[str, ...] = option(
        (), f"routers of groups and singles: {', '.join(ROUTER_NAMES)}; all by default"
    )
    replicas: tuple[int, ...] = option(
        (10, 100, 1000), "sizes of the cluster", minimum=1, maximum=10_000
    )
    cell: str = option(
        "256/128/9",
        "groups P/R/K: tokens of the prompt, tokens of each response, number of responses",
    )
    load: float = option(
        0.7, "load, relative to the capacity for whole groups", minimum=0.01, maximum=10
    )
    spread_s: float = option(
        20.0,
        "seconds within which the single responses to a prompt come",
        minimum=0,
        maximum=MAX_SECONDS,
    )
    repeated: float = option(
        0.1, "share of groups that were asked for before", minimum=0, maximum=0.99
    )
    groups: int = option(
        12,
        "groups per replica; the first third is warm-up",
        minimum=1,
        maximum=MAX_COUNT,
    )
    min_groups: int = option(
        2500, "groups in all, even if fewer per replica", minimum=1, maximum=MAX_COUNT
    )
    lags_s: tuple[float, ...] = option(
        (15.0, 60.0, 300.0),
        "seconds until a new replica serves",
        minimum=0,
        maximum=MAX_SECONDS,
    )
    fixed_ms: float = option(
        DEFAULT_PASS.fixed_ms, "milliseconds of a pass whatever its size", minimum=0, maximum=1e6
    )
    row_ms: float = option(
        DEFAULT_PASS.row_ms, "milliseconds of a pass per row", exclusive_minimum=0, maximum=1e6
    )
    pair_ns: float = option(
        DEFAULT_PASS.pair_ns,
        "nanoseconds of a pass per pair of a row and one that it attends to",
        minimum=0,
        maximum=1e9,
    )
    state_bytes: int = option(
        46_080, "bytes of a token in the prompt cache", minimum=1, maximum=MAX_BYTES
    )
    seed: int = option(1, "seed of everything random", minimum=0, maximum=MAX_COUNT)
    json: str = option("", "file for all figures")

    def __post_init__(self) -> None:
        check_bounds(self)
        self.parsed_cell()
        for study in self.studies:
            check_choice("--studies", study, STUDIES)
        for router in self.routers:
            check_choice("--routers", router, ROUTER_NAMES)

    def parsed_cell(self) -> Cell:
        """Return `cell`, parsed."""
        return positive_cell(self.cell)


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityConfig:
    """Options of `kwise bench capacity`."""

    model: str = option("8b", f"size of the reward model: {', '.join(MODELS)}")
    billions: float = option(
        0.0, "billions of parameters without embeddings, if not as --model", minimum=0, maximum=1e5
    )
    layers: int = option(0, "layers, if not as --model", minimum=0, maximum=10_000)
    width: int = option(
        0, "query heads times head size, if not as --model", minimum=0, maximum=1_000_000
    )
    cell: str = option(
        "256/512/9",
        "groups P/R/K: tokens of the prompt, tokens of each response, number of responses",
    )
    prompts_per_minute: float = option(
        0.0, "prompts with K responses each; 0 for 1,000", minimum=0, maximum=1e9
    )
    responses: float = option(
        0.0,
        "responses to score in --hours, instead of --prompts-per-minute",
        minimum=0,
        maximum=1e15,
    )
    hours: float = option(0.0, "hours for --responses; 0 for 10", minimum=0, maximum=1e5)
    shared: bool = option(
        True, "the responses to a prompt come together, or reach the same replica"
    )
    cached: float = option(
        0.0, "share of rewards that the reward cache has", minimum=0, maximum=0.999
    )
    utilisation: float = option(
        0.7,
        "share of the time in which a replica may be busy; for work without a deadline, give 0.95",
        exclusive_minimum=0,
        maximum=1,
    )
    device: tuple[str, ...] = option((), f"devices: {', '.join(DEVICES)}; all by default")
    peak_tflops: float = option(
        0.0, "peak of your own device in half precision, in TFLOP/s", minimum=0, maximum=1e6
    )
    share_of_peak: float = option(
        0.0, "share of the peak that was measured, instead of the estimate", minimum=0, maximum=1
    )
    rows_per_s: float = option(
        0.0,
        "rows per second of one replica that was measured, instead of --device (kwise bench graph: "
        "tokens_per_s)",
        minimum=0,
        maximum=1e12,
    )
    memory_gb: float = option(
        0.0,
        "memory of the device with --peak-tflops or --rows-per-s; 0 for 80",
        minimum=0,
        maximum=1e6,
    )
    json: str = option("", "file for all figures")

    def __post_init__(self) -> None:
        check_bounds(self)
        self.parsed_cell()
        check_choice("--model", self.model, MODELS)
        for name in self.device:
            check_choice("--device", name, DEVICES)
        if self.responses and self.prompts_per_minute:
            raise ConfigError("give --responses or --prompts-per-minute, not both")
        if self.hours and not self.responses:
            raise ConfigError("--hours needs --responses")
        if self.memory_gb and not (self.peak_tflops or self.rows_per_s):
            raise ConfigError("--memory-gb needs --peak-tflops or --rows-per-s")
        if self.rows_per_s and (self.peak_tflops or self.share_of_peak or self.device):
            raise ConfigError(
                "--rows-per-s is a measured rate; it cannot be combined with --device, "
                "--peak-tflops or --share-of-peak"
            )

    def parsed_cell(self) -> Cell:
        """Return `cell`, parsed."""
        return positive_cell(self.cell)

    def groups_per_s(self) -> float:
        """Return the groups per second that the options ask for."""
        if self.responses:
            return self.responses / self.parsed_cell().K / (3600 * (self.hours or 10.0))
        return (self.prompts_per_minute or 1000.0) / 60

    def model_size(self) -> ModelSize:
        """Return the size of the model, with what the options override."""
        model = MODELS[self.model]
        if self.billions:
            embeddings = model.parameters - model.matmul_parameters
            matmuls = 1e9 * self.billions
            model = replace(model, matmul_parameters=matmuls, parameters=matmuls + embeddings)
        return replace(
            model,
            layers=self.layers or model.layers,
            attention_width=self.width or model.attention_width,
        )

    def devices(self) -> dict[str, Device]:
        """Return the devices by name, with what the options override."""
        memory_bytes = 1e9 * (self.memory_gb or 80.0)
        if self.rows_per_s:
            measured = Device(
                peak_flops=None, rates=measured_range(self.rows_per_s), memory_bytes=memory_bytes
            )
            return {"measured": measured}
        devices = {name: DEVICES[name] for name in self.device or DEVICES}
        if self.peak_tflops:
            own = Device(
                peak_flops=1e12 * self.peak_tflops, rates=SHARE_OF_PEAK, memory_bytes=memory_bytes
            )
            devices = {name: DEVICES[name] for name in self.device} | {"own": own}
        if self.share_of_peak:
            rates = measured_range(self.share_of_peak)
            devices = {name: replace(device, rates=rates) for name, device in devices.items()}
        return devices


def positive_cell(text: str) -> Cell:
    """Parse the option `--cell`.

    Raises:
        ConfigError: it has another form, or a number below 1.
    """
    cell = parse_cell(text)
    if min(cell.P, cell.R, cell.K) < 1:
        raise ConfigError(f"--cell is {text!r}; each number must be at least 1")
    return cell


def check_choice(flag: str, value: str, choices: Iterable[str]) -> None:
    """Raise ConfigError if the value is not one of the choices."""
    if value not in choices:
        raise ConfigError(f"{flag} is {value!r}; it must be one of {', '.join(choices)}")
