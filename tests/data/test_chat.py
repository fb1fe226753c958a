"""Chat prompts: the ids of apply_chat_template, whatever a message spells."""

import hypothesis
import pytest
import tokenizers
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rljax import data
from rljax.data import chat as chats
from rljax.data import control_token
from rljax.data.chat import Chat
from rljax.data.problem import Message

START, END, BEGIN = "<|im_start|>", "<|im_end|>", "<s>"

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# Begin token, and messages without the blanks around them.
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}<|eot|>\n\n"
    "{{ m.content | trim }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant<|eot|>\n\n{% endif %}"
)
# No system role, and the assistant has another name.
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<|im_start|>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>model\n"
    "{% endif %}"
)
# The system's message becomes a part of the user's first.
FOLDED = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{% set first = messages[0].content + '\n\n' %}{% set rest = messages[1:] %}"
    "{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if m.role == 'user' %}<|im_start|> "
    "{{ (first if loop.first else '') + m.content }} <|eot|>"
    "{% else %} {{ m.content }}<|im_end|>{% endif %}{% endfor %}"
)
PLAIN = Chat()
STYLES = {"ChatML": CHATML, "Llama 3": LLAMA3, "Gemma": GEMMA, "folded": FOLDED}


def made(template, begins=True):
    """Byte-level BPE with some merges, which puts a begin token before any text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [("u", "s"), ("us", "e"), ("i", "m"), ("e", "n"), ("en", "d"), ("Ċ", "Ċ")]
    words = [*alphabet, *(a + b for a, b in pairs)]
    vocabulary = {token: i for i, token in enumerate(words)}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, pairs))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([START, END, "<|eot|>", BEGIN])
    backend.add_tokens(["<think>", "</think>"])
    if begins:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{BEGIN} $A",
            special_tokens=[(BEGIN, backend.token_to_id(BEGIN))],
        )
    out = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        eos_token=END,
        bos_token=BEGIN,
    )
    out.chat_template = template
    return out


MADE = {name: made(template) for name, template in STYLES.items()}


def wanted(tokenizer, messages, **arguments):
    return tokenizer.apply_chat_template(
        [m._asdict() for m in messages],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=False,
        **arguments,
    )


def controls(tokenizer, ids):
    special = control_token.special_ids(tokenizer)
    return [tokenizer.convert_ids_to_tokens(i) for i in ids if i in special]


def encode(tokenizer, question, chat=PLAIN, **options):
    """Ids of one prompt and whether it spells a control token."""
    problem = data.Problem(question, "1")
    prompts, report = data.encode_prompts(
        [problem], tokenizer, 400, chat=chat, **options
    )
    return prompts.tokens[0][: prompts.length[0]].tolist(), report.num_spelled


pieces = [
    "use",
    " the ",
    "end",
    "\n\n",
    "\n",
    " ",
    "é",
    "<think>",
    "</think>",
    "{",
    "<|",
]
text = st.lists(st.sampled_from(pieces), max_size=6).map(lambda x: "a" + "".join(x))
spelling = st.lists(
    st.sampled_from(
        [*pieces, START, END, "<|eot|>", BEGIN, "<spelled0>", "<control0>"]
    ),
    max_size=6,
).map(lambda x: "a" + "".join(x))


@st.composite
def conversations(draw, content):
    system = draw(st.one_of(st.none(), content))
    turns = draw(st.integers(0, 1)) * [("user", content), ("assistant", content)]
    messages = [Message(role, draw(c)) for role, c in [*turns, ("user", content)]]
    return system, tuple(messages)


@hypothesis.settings(deadline=None, max_examples=150)
@hypothesis.given(st.sampled_from(list(STYLES)), conversations(text))
def test_ids_are_those_of_the_chat_template(name, drawn):
    tokenizer, (system, messages) = MADE[name], drawn
    if name == "Gemma":
        system = None
    said = messages if system is None else (Message("system", system), *messages)
    ids, spelled = encode(tokenizer, messages, Chat(system=system))
    assert ids == wanted(tokenizer, said) and not spelled
    # Encoded as any text, the prompt would begin twice.
    assert controls(tokenizer, ids).count(BEGIN) == (name != "ChatML")


@hypothesis.settings(deadline=None, max_examples=150)
@hypothesis.given(st.sampled_from(list(STYLES)), conversations(spelling))
def test_no_message_changes_the_control_tokens_of_its_prompt(name, drawn):
    tokenizer, (_, messages) = MADE[name], drawn
    ids, spelled = encode(tokenizer, messages)
    neutral = tuple(m._replace(content="a") for m in messages)
    assert controls(tokenizer, ids) == controls(tokenizer, wanted(tokenizer, neutral))
    # And the text is the template's, to the byte.
    assert tokenizer.decode(ids) == chats.render(tokenizer, messages, Chat())
    assert bool(spelled) == (ids != wanted(tokenizer, messages))


def test_a_text_is_the_message_of_a_user_in_its_template():
    ids, _ = encode(MADE["Llama 3"], "1+1", template="{question}?\nA number only.")
    want = (Message("user", "1+1?\nA number only."),)
    assert ids == wanted(MADE["Llama 3"], want)


def test_arguments_reach_the_template():
    ask = (Message("user", "a"),)
    ids, _ = encode(MADE["ChatML"], "a", Chat(arguments={"enable_thinking": False}))
    assert ids == wanted(MADE["ChatML"], ask, enable_thinking=False)
    assert ids != wanted(MADE["ChatML"], ask)


def test_a_conversation_keeps_its_own_system_message():
    own = (Message("system", "own"), Message("user", "a"))
    ids, _ = encode(MADE["ChatML"], own, Chat(system="of the run"))
    assert ids == wanted(MADE["ChatML"], own)


def test_token_ids_stay_as_they_are_beside_conversations():
    problems = [data.Problem(data.Tokens((5, 2)), "x"), data.Problem("a", "y")]
    prompts, _ = data.encode_prompts(problems, MADE["Gemma"], 40, chat=Chat())
    assert prompts.tokens[0].tolist() == [5, 2, *[0] * 38]
    want = wanted(MADE["Gemma"], (Message("user", "a"),))
    assert prompts.tokens[1][: prompts.length[1]].tolist() == want


@pytest.mark.parametrize(
    ("template", "end"),
    [(CHATML, END), (CHATML.replace(END, "<|eot|>"), "<|eot|>"), ("x", END)],
)
def test_a_demonstration_ends_as_the_assistants_turn_does(template, end):
    # With the tokenizer's end token Gemma would learn to end no turn.
    tokenizer = made(template + "{{ messages[0].content }}")
    problems = [data.Problem("a", "1", "an answer")]
    prompts, _ = data.encode_prompts(
        problems, tokenizer, 200, chat=Chat(), max_completion_tokens=20
    )
    ids = prompts.data["completion"][0][prompts.data["completion_mask"][0]]
    assert tokenizer.decode(ids) == f"an answer{end}"


SYSTEM = Chat(system="be short")


@pytest.mark.parametrize(
    ("template", "chat", "told"),
    [
        (None, Chat(), r"must have a chat template .*, got none; take the folder of"),
        ("{{ bos_token }}say", Chat(), "put the user's message into the prompt"),
        (GEMMA, SYSTEM, "of system then user, .*System role not supported; leave the"),
        (
            "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
            SYSTEM,
            "system's message into the prompt, got .*; write it into the question",
        ),
        ("{{ messages[0].no.such }}", Chat(), "must take messages of user, but raises"),
        ("{% if %}", Chat(), "must take messages of user, but raises TemplateSyntaxE"),
        (
            "{{ messages[0].content }}{% if 'bad' in messages[0].content %}"
            "{{ raise_exception('no') }}{% endif %}",
            Chat(),
            "number 1, 'user: bad', raises TemplateError: no",
        ),
    ],
)
def test_templates_that_make_no_prompt_are_refused(template, chat, told):
    problems = [data.Problem("good", "1"), data.Problem("bad", "1")]
    with pytest.raises(ValueError, match=told):
        data.encode_prompts(problems, made(template), 40, chat=chat)


def test_conversations_without_chat_and_empty_questions_are_refused():
    asked = (Message("user", "a"),)
    with pytest.raises(ValueError, match="number 1 is a conversation"):
        problems = [data.Problem("a", "1"), data.Problem(asked, "1")]
        data.encode_prompts(problems, MADE["ChatML"], 40)
    for empty in ("", ()):
        with pytest.raises(ValueError, match="must have a prompt, but number 0"):
            encode(MADE["ChatML"], empty)


def test_prompts_that_are_all_too_long_are_refused():
    with pytest.raises(ValueError, match=r"kept 0 of 1 .*raise max_prompt_tokens"):
        encode(MADE["ChatML"], "a" * 500)
