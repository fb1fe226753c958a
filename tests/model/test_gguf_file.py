"""GGUF files as Hugging Face folders: of a tiny Llama that is written here."""

import json
import pathlib

import numpy as np
import pytest

from rljax import verify
from rljax.model import language_model
from rljax.model.hugging_face import gguf_file

gguf = pytest.importorskip("gguf")

WIDTH, HEADS, KV_HEADS, WIDE = 32, 4, 2, 64
# GPT-2's alphabet writes a space as U+0120.
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "1", "2", "a", "b", "\u0120"]
TOKENS += ["\u0120a"]


def write(file: pathlib.Path, architecture="llama", pre="smollm") -> dict:
    """A GGUF file of one layer; returns its tensors by GGUF's names."""
    rng = np.random.default_rng(0)
    shapes = {
        "token_embd": (len(TOKENS), WIDTH),
        "output_norm": (WIDTH,),
        "blk.0.attn_norm": (WIDTH,),
        "blk.0.attn_q": (WIDTH, WIDTH),
        "blk.0.attn_k": (WIDTH * KV_HEADS // HEADS, WIDTH),
        "blk.0.attn_v": (WIDTH * KV_HEADS // HEADS, WIDTH),
        "blk.0.attn_output": (WIDTH, WIDTH),
        "blk.0.ffn_norm": (WIDTH,),
        "blk.0.ffn_gate": (WIDE, WIDTH),
        "blk.0.ffn_up": (WIDE, WIDTH),
        "blk.0.ffn_down": (WIDTH, WIDE),
    }
    tensors = {
        f"{name}.weight": rng.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(100.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["\u0120 a"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    for name, tensor in tensors.items():
        kind = None
        if "ffn" in name and tensor.ndim == 2:  # quantised, as published files are
            kind = gguf.GGMLQuantizationType.Q8_0
            tensor = gguf.quants.quantize(tensor, kind)
            tensors[name] = gguf.quants.dequantize(tensor, kind)
        writer.add_tensor(name, tensor, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "tiny.gguf")
    gguf_file.write_folder(tmp_path / "tiny.gguf", tmp_path / "folder")
    return tmp_path / "folder"


def test_rotated_pairs_go_half_a_head_apart():
    # Two heads of two pairs, the rows of a pair side by side: a and b, then c and d.
    rows = np.array([0, 10, 1, 11, 20, 30, 21, 31])[:, None]
    assert gguf_file.by_halves(rows, 2)[:, 0].tolist() == [0, 1, 10, 11, 20, 21, 30, 31]


def test_the_folder_is_a_model_of_rljax(folder):
    model = language_model.load(folder)
    assert model.config.tie_embeddings and model.config.rope_theta == 100.0
    assert model.config.norm_epsilon == 1e-5  # not the float32 next to it
    assert model.stop_tokens == (2, 0)  # a turn's end, and a document's


def test_each_digit_is_a_token_and_bytes_are_read_off(folder):
    tokenizer = language_model.load(folder).tokenizer
    # Without the split at digits " 2" would be one piece, with the space in it.
    ids = tokenizer("12 a<|im_end|>")["input_ids"]
    assert ids == [TOKENS.index(t) for t in ("1", "2", "\u0120a", "<|im_end|>")]
    pieces = verify.token_bytes(tokenizer).pieces
    assert pieces[TOKENS.index("\u0120a")] == b" a" and pieces[2] == b""
    chat = [{"role": "user", "content": "ab"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "ab"


@pytest.mark.parametrize(
    "other", [{"architecture": "qwen2"}, {"pre": "llama-bpe"}], ids=["model", "words"]
)
def test_a_file_of_another_kind_is_refused_by_its_name(tmp_path, other):
    write(tmp_path / "other.gguf", **other)
    with pytest.raises(ValueError, match=r"other.gguf: .* must be"):
        gguf_file.write_folder(tmp_path / "other.gguf", tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@pytest.mark.slow
def test_the_weights_are_those_that_transformers_reads(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    write(tmp_path / "tiny.gguf")
    gguf_file.write_folder(tmp_path / "tiny.gguf", tmp_path / "folder")
    of_file, of_folder = (
        transformers.AutoModelForCausalLM.from_pretrained(path, **more)
        for path, more in (
            (tmp_path, {"gguf_file": "tiny.gguf", "dtype": torch.float32}),
            (tmp_path / "folder", {"dtype": torch.float32}),
        )
    )
    ours = of_folder.state_dict()
    for name, weight in of_file.state_dict().items():
        assert torch.equal(weight.to(torch.bfloat16).float(), ours[name]), name
    assert json.loads((tmp_path / "folder" / "config.json").read_text())
