"""Prompts of chat models: messages through the tokenizer's own chat template.

    chat = Chat(system="Reply with the number only.")
    prompts, report = encode_prompts(problems, tokenizer, 256, chat=chat)

The tokens are those of `tokenizer.apply_chat_template(messages, tokenize=True,
add_generation_prompt=True)`. The template writes the begin token; none is added. There
is one exception: if a message spells a control token, this stays plain text.

Some templates write today's date into the prompt (Llama 3.2's). Fix it by the argument
`date_string`; otherwise a run that is resumed tomorrow has other prompts.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rljax.data import control_token
from rljax.data.control_token import Encoded
from rljax.data.problem import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE, _SYSTEM_PROBE, _ANSWER_PROBE = "question 4711", "system 4712", "answer 4713"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chat:
    """How messages become a prompt.

    system: the system message for conversations without one.
    arguments: further arguments of the template, such as {"enable_thinking": False}.
    """

    system: str | None = None
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)


Conversation = tuple[Message, ...]


def conversation(
    question: str | Conversation, chat: Chat, template: str
) -> Conversation:
    """The messages of a question: the system message, then the user's in `template`.

    Args:
      template: text in which {question} is replaced by the last message.
    """
    messages = question
    if isinstance(messages, str):
        messages = (Message("user", messages),)
    if chat.system is not None and messages[0].role != "system":
        messages = (Message("system", chat.system), *messages)
    last = messages[-1]
    text = template.replace(control_token.QUESTION, last.content)
    return (*messages[:-1], last._replace(content=text))


def encode(
    tokenizer: "PreTrainedTokenizerBase",
    conversations: Sequence[Conversation],
    chat: Chat,
) -> Encoded:
    """The conversations as tokens, up to the beginning of the assistant's answer.

    Raises:
      ValueError: if the tokenizer has no template, or if the template refuses a
        conversation (with its number) or omits its question or system message.
    """
    _require_template(tokenizer)
    for shape in {tuple(m.role for m in messages) for messages in conversations}:
        _require_kept(tokenizer, shape, chat)
    texts = {n: _text(tokenizer, c, chat, n) for n, c in enumerate(conversations)}
    ids = control_token.all_ids(tokenizer, texts) if texts else []
    special = control_token.special_ids(tokenizer)
    names = [tokenizer.convert_ids_to_tokens(i) for i in special]
    known = re.compile("|".join(map(re.escape, names)) or "(?!)")
    more = [
        n
        for n, messages in enumerate(conversations)
        if any(known.search(m.content) for m in messages)
    ]
    if not more:
        return Encoded(ids, [])
    contents = [m.content for n in more for m in conversations[n]]
    mark = control_token.unused([*contents, *(texts[n] for n in more)], "<spelled")

    def write(n: int, renamed: dict[str, str]) -> str:
        # Control tokens in messages get placeholders while those of the template are
        # renamed.
        spelled = {name: f"{mark}{i}>" for i, name in enumerate(renamed)}
        messages = tuple(
            m._replace(content=control_token.renamed(m.content, spelled))
            for m in conversations[n]
        )
        text = _text(tokenizer, messages, chat, n)
        back = {hidden: name for name, hidden in spelled.items()}
        text = control_token.renamed(text, renamed)
        return control_token.renamed(text, back)

    rows = control_token.as_written(tokenizer, {n: texts[n] for n in more}, write)
    spelled = [n for n, row in zip(more, rows, strict=True) if row != ids[n]]
    for n, row in zip(more, rows, strict=True):
        ids[n] = row
    return Encoded(ids, spelled)


def render(
    tokenizer: "PreTrainedTokenizerBase", messages: Conversation, chat: Chat
) -> str:
    """The text of a prompt; raises whatever the template raises."""
    return tokenizer.apply_chat_template(
        [message._asdict() for message in messages],
        tokenize=False,
        add_generation_prompt=True,
        **chat.arguments,
    )


def end_token(tokenizer: "PreTrainedTokenizerBase", chat: Chat) -> int:
    """The token that the template puts after the assistant's answer.

    It ends demonstrations. For Gemma it differs from the tokenizer's end token. If the
    template puts no control token there, it is the tokenizer's end token.
    """
    messages = ({"role": "user", "content": _PROBE},)
    messages += ({"role": "assistant", "content": _ANSWER_PROBE},)
    text = tokenizer.apply_chat_template(messages, tokenize=False, **chat.arguments)
    _, _, rest = text.rpartition(_ANSWER_PROBE)
    ids = tokenizer(rest, add_special_tokens=False)["input_ids"]
    special = control_token.special_ids(tokenizer)
    return ids[0] if ids and ids[0] in special else tokenizer.eos_token_id


def _text(tokenizer, messages: Conversation, chat: Chat, number: int) -> str:
    try:
        return render(tokenizer, messages, chat)
    except Exception as error:  # a template may raise anything
        raise ValueError(
            f"the chat template must take every conversation, but number {number},"
            f" {_shown(messages)}, raises {type(error).__name__}: {error};"
            " change the messages."
        ) from error


def _require_template(tokenizer) -> None:
    if not tokenizer.chat_template:
        raise ValueError(
            "the tokenizer must have a chat template (chat_template.jinja, or the key"
            " chat_template of tokenizer_config.json), got none; take the folder of a"
            " chat model, or leave chat out."
        )


def _require_kept(tokenizer, roles: tuple[str, ...], chat: Chat) -> None:
    """Raises ValueError unless the template writes question and system message."""
    said = {0: _SYSTEM_PROBE, len(roles) - 1: _PROBE}
    messages = tuple(Message(r, said.get(n, "text")) for n, r in enumerate(roles))
    system = roles[0] == "system"
    advice = "leave the system's message out" if system else "change the messages"
    try:
        text = render(tokenizer, messages, chat)
    except Exception as error:  # a template may raise anything
        raise ValueError(
            f"the chat template must take messages of {' then '.join(roles)}, but"
            f" raises {type(error).__name__}: {error}; {advice}."
        ) from error
    if system and _SYSTEM_PROBE not in text:
        raise ValueError(
            "the chat template must put the system's message into the prompt, got"
            f" {text[-300:]!r} without it; write it into the question instead."
        )
    if _PROBE not in text:
        raise ValueError(
            "the chat template must put the user's message into the prompt, got"
            f" {text[-300:]!r} without it; take the template that was published with"
            " the model."
        )


def _shown(messages: Conversation) -> str:
    return repr(" / ".join(f"{m.role}: {m.content}" for m in messages)[:200])
