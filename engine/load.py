"""From an artifact on disk to what scores with it: the encoder with its limits, and the golden check."""

from tokenizers import Tokenizer

from kwise.engine.artifact import Artifact
from kwise.engine.config import EngineConfig
from kwise.engine.model.session import Session
from kwise.engine.sequence import EncodedSequence
from kwise.engine.text.encoder import ConversationEncoder
from kwise.engine.text.limits import EncoderLimits
from kwise.errors import ArtifactError, ConfigError, InvalidRequest
from kwise.types import Group


def effective_max_tokens(artifact: Artifact, config: EngineConfig) -> int:
    """The longest conversation in tokens: the option where given, else the model's limit.

    Raises:
        ConfigError: the option exceeds the model's limit.
    """
    limit = artifact.manifest.max_tokens
    if config.max_tokens > limit:
        raise ConfigError(
            f"--max-tokens is {config.max_tokens}; it must be at most {limit}, the model's own limit"
        )
    return config.max_tokens or limit


def new_encoder(
    artifact: Artifact, config: EngineConfig, tokenizer: Tokenizer | None = None
) -> ConversationEncoder:
    """The artifact's tokenizer (`tokenizer`, where it is loaded: SmolLM2's takes 23 MB) and template, with the config's limits."""
    manifest = artifact.manifest
    return ConversationEncoder(
        tokenizer or load_tokenizer(artifact),
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
    return Tokenizer.from_file(str(artifact.tokenizer_path))


def golden_sequences(artifact: Artifact, encoder: ConversationEncoder) -> list[EncodedSequence]:
    """The artifact's golden conversations as the model reads them. Raises ArtifactError where one is refused."""
    sequences = []
    for number, golden in enumerate(artifact.golden, start=1):
        (encoded,) = encoder.encode(Group(prompt=golden.prompt, responses=(golden.response,)))
        if isinstance(encoded, InvalidRequest):
            raise ArtifactError(f"{artifact.path}/golden.jsonl:{number}: {encoded}")
        sequences.append(encoded)
    return sequences


def check_golden(artifact: Artifact, encoder: ConversationEncoder, session: Session) -> None:
    """Score the artifact's golden conversations, each by itself and all together, as this server would.

    Raises:
        ArtifactError: a reward is further from its golden value than the manifest promises of this precision (a lost head, a
            wrong provider or a wrong pooling shows here, not in a ruined RL run), or changes with its company by more.
    """
    sequences = golden_sequences(artifact, encoder)
    promise = artifact.manifest.promise(session.precision)
    together = session.run(sequences).rewards
    for number, (golden, sequence, beside) in enumerate(
        zip(artifact.golden, sequences, together, strict=True), start=1
    ):
        (raw,) = session.run([sequence]).rewards
        problem = ""
        if (
            not abs(float(raw) - golden.reward) <= promise.max_difference
        ):  # also where it is not a number
            problem = f"where the checkpoint gave {golden.reward:.6f}; it may differ by {promise.max_difference:.2g}"
        elif not abs(float(raw) - float(beside)) <= promise.max_change:
            problem = (
                f"alone and {beside:.6f} in company; it may change by {promise.max_change:.2g}"
            )
        if problem:
            raise ArtifactError(
                f"{artifact.path}/golden.jsonl:{number}: {session.runtime} in {session.precision.value} gives {raw:.6f} {problem}"
            )
