"""Check that a chat template renders conversations, in the engine as in transformers.

The engine renders with an environment of its own (engine/text/chat_template.py), and it tokenises a
conversation in two parts. Therefore a few conversations are encoded by both, and the tokens must
agree.
"""

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from kwise.engine.sequence import EncodedSequence
from kwise.engine.text.encoder import ConversationEncoder
from kwise.engine.text.limits import EncoderLimits
from kwise.errors import ConfigError, InvalidRequest
from kwise.train.template.render import TemplateRefusal, render, template_variables
from kwise.types import Conversation, Group, Message

_NO_LIMIT = 2**40


def check_template(tokenizer: PreTrainedTokenizerBase, origin: str) -> list[str]:
    """Check the chat template of a tokenizer; return lines that the user should know.

    Args:
        origin: names the template in messages.

    Raises:
        ConfigError: the template cannot render a question and its answer, or prints the same text
            whatever the answer is; or the engine encodes a conversation otherwise than
            transformers.
    """
    answered = _conversation("Well?", "Yes.")
    if problem := _refusal(tokenizer, answered):
        raise ConfigError(f"{origin} cannot render a question and its answer: {problem}")
    if _text(tokenizer, answered) == _text(tokenizer, _conversation("Well?", "No!")):
        raise ConfigError(
            f"{origin} prints the same text whatever the answer is; kwise gives it each message's "
            "content as a string"
        )
    encoder = ConversationEncoder(
        Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()),
        template=tokenizer.chat_template,
        special_tokens=template_variables(tokenizer),
        limits=EncoderLimits(max_tokens=_NO_LIMIT, vocab_size=_NO_LIMIT),
        trailing_pad_id=None,
    )
    special = " ".join(tokenizer.all_special_tokens)
    for conversation in (
        answered,
        _conversation(" a \n", " b \n"),
        _conversation(f"Is {special} a token?", f"No, {special}."),
        _conversation("One?", "1", "Two?", "2"),
        _conversation("One?", "1", system="Count."),
    ):
        _compare(tokenizer, encoder, conversation, origin)
    notes = []
    if _text(tokenizer, answered) == _text(tokenizer, _conversation("Or?", "Yes.")):
        notes.append(f"{origin} prints the same text whatever the question is")
    if turns := _refusal(tokenizer, _conversation("One?", "1", "Two?", "2")):
        notes.append(f"{origin} refuses conversations of more than one turn: {turns}")
    return notes


def _conversation(*contents: str, system: str = "") -> Conversation:
    turns = [
        Message(role="user" if index % 2 == 0 else "assistant", content=content)
        for index, content in enumerate(contents)
    ]
    return (*([Message(role="system", content=system)] if system else []), *turns)


def _refusal(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> str | None:
    try:
        render(tokenizer, conversation)
    except TemplateRefusal as refusal:
        return str(refusal)
    return None


def _text(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> str | None:
    """Return the text of a conversation; None if the template refuses it."""
    try:
        return render(tokenizer, conversation)
    except TemplateRefusal:
        return None


def _compare(
    tokenizer: PreTrainedTokenizerBase,
    encoder: ConversationEncoder,
    conversation: Conversation,
    origin: str,
) -> None:
    """Raise ConfigError if the engine encodes a conversation otherwise than transformers."""
    text = _text(tokenizer, conversation)
    expected = None if text is None else tokenizer(text, add_special_tokens=False)["input_ids"]
    group = Group(prompt=conversation[:-1], responses=(conversation[-1].content,))
    try:
        (outcome,) = encoder.encode(group)
    except InvalidRequest as error:
        outcome = error
    served = outcome.token_ids.tolist() if isinstance(outcome, EncodedSequence) else None
    # Neither takes an empty conversation, but transformers gives it no tokens.
    if served != (expected or None):
        problem = outcome.problem if isinstance(outcome, InvalidRequest) else "other tokens"
        raise ConfigError(
            f"{origin} cannot be served: the engine's result for a conversation of "
            f"{len(conversation)} messages is not that of transformers: {problem}"
        )
