"""Open an artifact: its encoder, a session on each device, and the check of its golden rewards."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from tokenizers import Tokenizer

from kwise.engine.artifact.names import CHAT_TEMPLATE, GOLDEN
from kwise.engine.artifact.read import Artifact, read_artifact
from kwise.engine.config import EngineConfig, check_max_tokens
from kwise.engine.model.devices import Kind, parse_devices
from kwise.engine.model.session import GraphSession, Session
from kwise.engine.select import backend_for
from kwise.engine.sequence import EncodedSequence
from kwise.engine.text.encoder import ConversationEncoder
from kwise.engine.text.limits import EncoderLimits
from kwise.errors import ArtifactError, InvalidRequest
from kwise.libraries.errors import library_errors
from kwise.types import Group


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenModel:
    """A model that is ready to score: an artifact, its encoder, and one session per device."""

    artifact: Artifact
    encoder: ConversationEncoder
    sessions: Sequence[Session]


def open_model(path: Path, config: EngineConfig) -> OpenModel:
    """Load an artifact on each device and check its golden rewards there.

    Raises:
        ArtifactError: the artifact is damaged, or a golden reward comes out wrong on this runtime
            and device.
        ConfigError: a device is not available, or a limit does not suit the artifact.
    """
    devices = parse_devices(config.device)
    artifact = read_artifact(path)
    precision, runtime = backend_for(config, artifact.manifest.available_precisions)
    sessions = [
        GraphSession(
            artifact,
            runtime=runtime,
            precision=precision,
            threads=config.runtime_threads,
            device=device.name,
            device_memory_bytes=config.device_memory_bytes,
            prompt_cache_bytes=config.effective_prompt_cache_bytes,
        )
        for device in devices
    ]
    tokenizer = load_tokenizer(artifact)
    encoder = new_encoder(artifact, config, tokenizer)
    golden_encoder = new_encoder(artifact, EngineConfig(), tokenizer)
    for device, session in zip(devices, sessions, strict=True):
        problem = f"{path}: {session.runtime} fails on the golden conversations"
        with library_errors(problem, raises=ArtifactError):
            check_golden(artifact, golden_encoder, session, order_varies=device.kind is Kind.CUDA)
    return OpenModel(artifact=artifact, encoder=encoder, sessions=sessions)


def effective_max_tokens(artifact: Artifact, config: EngineConfig) -> int:
    """Return the limit of a conversation in tokens: `config.max_tokens`, or the model's limit.

    Raises:
        ConfigError: the option exceeds the model's limit.
    """
    limit = artifact.manifest.max_tokens
    check_max_tokens(config.max_tokens, limit)
    return config.max_tokens or limit


def new_encoder(
    artifact: Artifact, config: EngineConfig, tokenizer: Tokenizer | None = None
) -> ConversationEncoder:
    """Return an encoder with the artifact's tokenizer and template and the config's limits.

    Args:
        tokenizer: the artifact's tokenizer if it is already loaded (SmolLM2's takes 23 MB); None
            loads it.
    """
    manifest = artifact.manifest
    tokenizer = tokenizer or load_tokenizer(artifact)
    with library_errors(f"{artifact.path / CHAT_TEMPLATE}: cannot be used", raises=ArtifactError):
        return ConversationEncoder(
            tokenizer,
            template=artifact.chat_template,
            special_tokens=manifest.special_tokens,
            limits=EncoderLimits(
                max_tokens=effective_max_tokens(artifact, config),
                vocab_size=manifest.vocab_size,
                overlong=config.overlong,
                control_tokens=config.control_tokens,
            ),
            trailing_pad_id=manifest.pad_token_id if manifest.causal else None,
        )


def load_tokenizer(artifact: Artifact) -> Tokenizer:
    """Load the artifact's tokenizer.

    Raises:
        ArtifactError: the installed package tokenizers cannot read it.
    """
    with library_errors(f"{artifact.tokenizer_path}: cannot be read", raises=ArtifactError):
        return Tokenizer.from_file(str(artifact.tokenizer_path))


def golden_sequences(artifact: Artifact, encoder: ConversationEncoder) -> list[EncodedSequence]:
    """Encode the artifact's golden conversations.

    Raises:
        ArtifactError: the encoder refuses one.
    """
    sequences = []
    for number, golden in enumerate(artifact.golden, start=1):
        try:
            (encoded,) = encoder.encode(Group(prompt=golden.prompt, responses=(golden.response,)))
        except InvalidRequest as error:  # it is about the group: the template refuses it
            encoded = error
        if isinstance(encoded, InvalidRequest):
            raise ArtifactError(f"{artifact.path / GOLDEN}:{number}: {encoded}")
        sequences.append(encoded)
    return sequences


def check_golden(
    artifact: Artifact,
    encoder: ConversationEncoder,
    session: Session,
    *,
    order_varies: bool = False,
) -> None:
    """Score the golden conversations on this server's session, each alone and all in one batch.

    A lost head, a wrong execution provider or a wrong pooling shows here instead of ruining an RL
    run.

    Args:
        order_varies: the device chooses the order of summation by the number of rows, so a reward
            may also change by the manifest's `max_order_change`.

    Raises:
        ArtifactError: a reward differs from its golden value, or changes with its batch, by more
            than the manifest's error bounds for this precision.
    """
    sequences = golden_sequences(artifact, encoder)
    bounds = artifact.manifest.error_bounds[session.precision]
    max_change = bounds.max_batch_change + (bounds.max_order_change if order_varies else 0.0)
    batched = session.run(sequences).rewards  # [B], or [B, M] with members; errors are the largest
    for number, (golden, sequence, in_batch) in enumerate(
        zip(artifact.golden, sequences, batched, strict=True), start=1
    ):
        (alone,) = session.run([sequence]).rewards
        problem = ""
        # The comparisons are negated so that NaN fails them.
        if not _largest_difference(alone, golden.reward) <= bounds.max_error:
            problem = (
                f"instead of the checkpoint's {_digits(golden.reward)}; the largest difference "
                f"allowed is {bounds.max_error:.2g}"
            )
        elif not _largest_difference(alone, in_batch) <= max_change:
            problem = (
                f"alone and {_digits(in_batch)} in a batch; the largest change allowed is "
                f"{max_change:.2g}"
            )
        if problem:
            raise ArtifactError(
                f"{artifact.path / GOLDEN}:{number}: {session.runtime} in "
                f"{session.precision.value} gives {_digits(alone)} {problem}"
            )


def _largest_difference(first: ArrayLike, second: ArrayLike) -> float:
    """Return the largest difference of two rewards, over all members."""
    return float(np.abs(np.subtract(first, second, dtype=np.float64)).max())


def _digits(reward: ArrayLike) -> str:
    """Return a reward with six digits, or those of all members, for a message."""
    return ", ".join(f"{number:.6f}" for number in np.ravel(reward))
