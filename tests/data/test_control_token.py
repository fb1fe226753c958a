"""Control tokens: the template's are control tokens, a question's are text."""

import pathlib

import hypothesis
import pytest
import tokenizers
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rljax import data
from rljax.data import control_token, tokenizer

SHARED = pathlib.Path(__file__).parents[2].parent / "shared"
STORIES = SHARED / "models" / "stories260k"

CHAT = "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
START, END = "<|im_start|>", "<|im_end|>"


def fast(backend, **special):
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **special
    )


def byte_level():
    """As Qwen's: bytes, some merges, and control tokens that are added."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [("u", "s"), ("us", "e"), ("e", "r"), ("i", "m"), ("e", "n"), ("en", "d")]
    tokens = [*alphabet, *(a + b for a, b in pairs)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, pairs))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([START, END])
    backend.add_tokens(["<think>"])  # added, but no control token
    return fast(backend, eos_token=END)


def unigram():
    """As T5's: the control tokens are pieces, with scores better than any text's."""
    pieces = [("<unk>", 0.0), (START, 0.0), (END, 0.0)]
    pieces += [(c, -3.0) for c in "▁abcdefimnrstu_|<>\n"]
    backend = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Replace("▁", " ")
    backend.add_special_tokens(["<unk>", START, END])
    return fast(backend, eos_token=END, unk_token="<unk>")


def metaspace():
    """As Llama 2's: a mark in front of the text's first word alone."""
    vocabulary = {"<unk>": 0, START: 1, END: 2}
    vocabulary |= {c: i for i, c in enumerate("▁abcdefimnrstu_|<>\n", 3)}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="never")
    blanks = tokenizers.AddedToken(END, special=True, lstrip=True, rstrip=True)
    backend.add_special_tokens(["<unk>", START, blanks])
    return fast(backend, eos_token=END, unk_token="<unk>")


MADE = {"byte level": byte_level(), "unigram": unigram(), "metaspace": metaspace()}


def controls(made, ids):
    special = control_token.special_ids(made) - {made.unk_token_id}
    return [made.convert_ids_to_tokens(i) for i in ids if i in special]


@pytest.mark.parametrize("name", MADE)
def test_a_control_token_in_a_question_is_text(name):
    made = MADE[name]
    question = f"is {END} text{START}a"
    got = control_token.encode(made, ["a b", question], CHAT)
    assert got.spelled == [1]
    for ids in got.ids:
        # The tokenizer alone gives START END START END START for the second.
        assert controls(made, ids) == [START, END, START]


def test_text_with_a_control_token_is_spelled_out_byte_by_byte():
    made = MADE["byte level"]
    (ids,) = control_token.encode(made, [f"a{END}b"], CHAT).ids
    assert made.decode(ids) == CHAT.replace("{question}", f"a{END}b")
    # Between the template's tokens it is what the tokenizer makes of text.
    inner = made(f"user\na{END}b", add_special_tokens=False, split_special_tokens=True)
    assert ids[1 : 1 + len(inner["input_ids"])] == inner["input_ids"]


@pytest.mark.parametrize("name", MADE)
def test_what_spells_no_control_token_is_what_the_tokenizer_makes_of_it(name):
    # Parts encoded one by one would have marks of the text's beginning in each.
    made = MADE[name]
    questions = ["a b", " a ", "<|im_end", "im_end|>", "émü", "<unk", "<think>"]
    got = control_token.encode(made, questions, CHAT)
    texts = [CHAT.replace("{question}", q) for q in questions]
    want = made(texts, add_special_tokens=False)["input_ids"]
    assert got == control_token.Encoded(want, [])


def test_a_token_that_template_and_question_spell_together_is_text():
    made = MADE["byte level"]
    got = control_token.encode(made, ["end|>"], "a<|im_{question}" + END)
    assert controls(made, got.ids[0]) == [END]
    assert made.decode(got.ids[0]) == f"a{END}{END}"


def test_names_that_a_question_could_guess_are_not_used():
    # Inside, control tokens go by names of the kind <control0>.
    made = MADE["byte level"]
    question = f"{END}<control0><controll1>"
    (ids,) = control_token.encode(made, [question], CHAT).ids
    assert controls(made, ids) == [START, END, START]
    assert made.decode(ids) == CHAT.replace("{question}", question)


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(st.data())
def test_no_question_changes_the_control_tokens_of_its_prompt(draw):
    made = MADE[draw.draw(st.sampled_from(list(MADE)))]
    pieces = st.sampled_from([START, END, "<|im", "_end|>", "a ", " b", "\n", "<unk>"])
    part = st.lists(pieces, max_size=5).map("".join)
    template = "".join([draw.draw(part), "{question}", draw.draw(part)])
    questions = draw.draw(st.lists(part, min_size=1, max_size=4))
    got = control_token.encode(made, questions, template)
    before, after = template.split("{question}")
    want = [t for x in (before, after) for t in controls(made, made(x)["input_ids"])]
    for n, (question, ids) in enumerate(zip(questions, got.ids, strict=True)):
        assert controls(made, ids) == want
        plain = made(before + question + after, add_special_tokens=False)["input_ids"]
        assert (n in got.spelled) == (ids != plain)


@pytest.mark.skipif(not STORIES.is_dir(), reason="no shared models")
def test_a_real_tokenizer_reads_its_own_end_token_as_text():
    words = tokenizer.load_tokenizer(STORIES)
    questions = ["Say </s> and <s>.", "<unk>", "é 漢"]
    got = control_token.encode(words, questions, "{question}")
    want = words(questions, add_special_tokens=False, split_special_tokens=True)
    assert got == control_token.Encoded(want["input_ids"], [0, 1])


def test_prompts_and_demonstrations_are_encoded_so_and_counted():
    made = MADE["byte level"]
    problems = [
        data.Problem("1+1", "2", "two"),
        data.Problem(f"1+1{END}", "2", "two"),
        data.Problem("1+2", "3", f"three{END}{END}"),
        data.Problem(f"1+{END}{'3' * 99}", "4", "too long: not kept, not counted"),
        data.Problem("1+1 ", "2", "the first once more"),
    ]
    prompts, report = data.encode_prompts(
        problems, made, 60, template=CHAT, max_completion_tokens=40
    )
    assert (report.num_kept, report.num_spelled, report.num_repeated) == (4, 2, 1)
    for row, length in zip(prompts.tokens, prompts.length, strict=True):
        assert controls(made, row[:length].tolist()) == [START, END, START]
    rows = zip(prompts.data["completion"], prompts.data["completion_mask"], strict=True)
    for row, mask in rows:
        assert controls(made, row[mask].tolist()) == [END]  # the one that ends it
    assert "1 repeat the question of an earlier one; 2 spell a control" in str(report)


def test_a_text_that_cannot_be_encoded_is_named():
    letters = tokenizer.character_tokenizer("abc")
    with pytest.raises(ValueError, match=r"text number 1 cannot be .*UNK.*'abx'"):
        control_token.encode(letters, ["abc", "abx"], "{question}")
    # Its end token, as text, is of characters that it does not know.
    with pytest.raises(ValueError, match=r"text number 2 cannot be encoded"):
        control_token.encode(letters, ["abc", "a", "a<end>"], "{question}")
