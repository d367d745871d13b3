"""Open the scorer of MODEL, whatever its kind. Each kind imports its own libraries only."""

from pathlib import Path

from kwise.bulk.scorers.protocol import BulkScorer
from kwise.bulk.scorers.thread import OpenScorer
from kwise.client.several.targets import check_targets
from kwise.engine.model.devices import parse_devices
from kwise.errors import ConfigError, InvalidRequest
from kwise.evaluation.config import EvalConfig
from kwise.evaluation.kind import ModelKind, kind_of
from kwise.train.options.model_path import check_model_path, check_template_path


def opener_of(model: str, config: EvalConfig) -> OpenScorer:
    """Return the function that opens the scorer of `model`, after the checks that take no time.

    Raises:
        ConfigError: the model does not exist, or an option does not suit its kind.
    """
    kind = kind_of(model)
    config.check_suits(kind)
    if kind is ModelKind.CHECKPOINT:
        check_model_path("MODEL", model)
        check_template_path(config.chat_template)
        if len(parse_devices(config.device)) > 1:
            raise ConfigError(f"--device is {config.device}; a checkpoint runs on one device")
    elif kind is ModelKind.SERVER:
        try:
            check_targets("MODEL", model)
        except InvalidRequest as error:
            raise ConfigError(str(error)) from None

    async def checkpoint() -> BulkScorer:
        from kwise.evaluation.models.checkpoint import CheckpointOptions, CheckpointScorer

        (device,) = parse_devices(config.device)
        options = CheckpointOptions(
            chat_template=config.chat_template,
            template_date=config.template_date,
            max_tokens=config.max_tokens or None,
            device=device.name,
            threads=config.threads,
        )
        return CheckpointScorer.load(model, options)

    async def artifact() -> BulkScorer:
        from kwise.bulk.scorers.engine import EngineScorer

        return EngineScorer.load(Path(model), config.engine())

    async def server() -> BulkScorer:
        from kwise.bulk.scorers.server import ServerScorer

        return await ServerScorer.connect(
            model, timeout_s=config.timeout_s, model=config.served_model
        )

    openers = {
        ModelKind.CHECKPOINT: checkpoint,
        ModelKind.ARTIFACT: artifact,
        ModelKind.SERVER: server,
    }
    return openers[kind]
