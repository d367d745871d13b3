"""Encode texts to which the caller has applied the chat template."""

from collections.abc import Sequence
from os.path import commonprefix

from kwise.engine.sequence import EncodedSequence
from kwise.engine.text.limits import ControlTokens, EncoderLimits
from kwise.engine.text.outcomes import Outcomes
from kwise.engine.text.shared_text import SharedTextTokenizer
from kwise.engine.text.template_frame import TemplateFrame
from kwise.errors import InvalidRequest
from kwise.types import TemplatedText


class TemplatedTextEncoder:
    """Encodes templated texts of a model that has a chat template.

    Args:
        texts: tokenises texts that begin alike.
        frame: the frame of the template; None if it is not known.
        limits: the limits on characters and tokens.
        outcomes: makes the outcome of each response.
    """

    def __init__(
        self,
        texts: SharedTextTokenizer,
        frame: TemplateFrame | None,
        limits: EncoderLimits,
        outcomes: Outcomes,
    ) -> None:
        self._texts = texts
        self._frame = frame
        self._limits = limits
        self._outcomes = outcomes

    def check(self, prompt: TemplatedText) -> None:
        """Raise InvalidRequest if the model or the server does not accept the prompt."""
        field = "prompt.templated_text"
        if self._frame is None:
            raise InvalidRequest(
                field,
                "the chat template of this model does not show where a response begins and ends, "
                "so the text cannot be completed; give messages or token ids",
            )
        if self._limits.control_tokens is ControlTokens.REJECT:
            raise InvalidRequest(
                field,
                "this server refuses texts that spell out control tokens (--control-tokens), and a "
                "text with the chat template applied does; give messages",
            )
        if len(prompt.text) > self._limits.max_characters:
            raise self._outcomes.too_many_characters(field, len(prompt.text))

    def encode(
        self, prompt: TemplatedText, responses: Sequence[str]
    ) -> list[EncodedSequence | InvalidRequest]:
        """Return the token sequence of each response, in order, or the error of that response."""
        frame = self._frame
        assert frame is not None, "check has refused the group"
        room = self._limits.max_characters - len(prompt.text)
        texts = [
            frame.complete(prompt.text + (response if len(response) <= room else ""))
            for response in responses
        ]
        shared = commonprefix([min(texts), max(texts)])
        if len(set(texts)) == 1:
            # The next call may have another response to this prompt. The caller's prompt and the
            # last header of a response both tell where the prompt ends.
            of_caller = commonprefix([shared, frame.with_start(prompt.text)])
            shared = max(frame.shared_part(shared), of_caller, key=len)
        outcomes: list[EncodedSequence | InvalidRequest] = []
        for index, tokens in enumerate(self._texts.encode(texts, shared)):
            if not prompt.text and not responses[index]:
                outcomes.append(InvalidRequest("text", "it is empty", response=index))
            elif (length := len(responses[index])) > room:
                num_characters = len(prompt.text) + length
                outcomes.append(self._outcomes.too_many_characters("text", num_characters, index))
            elif len(tokens.ids) > self._limits.max_tokens:
                outcomes.append(self._outcomes.too_long(index, len(tokens.ids), has_turns=False))
            else:
                outcomes.append(self._outcomes.sequence(index, tokens))
        return outcomes
