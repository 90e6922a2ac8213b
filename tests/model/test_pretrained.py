"""Checkpoints that are not what they should be: one error each, and nothing is loaded by halves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    ByT5Tokenizer,
    Gemma3Config,
    LlavaConfig,
    T5Config,
)

from nacd.cli import main
from nacd.data import Example, Message, encode_all, make_template
from nacd.errors import UserError
from nacd.model import checkpoints
from nacd.model.lora import LoraModel, ModelConfig, check_ids, load_model
from nacd.training.evaluation import response_nll
from tiny import ROWS, TOKENS, tiny_model

Folder = Callable[[str], Path]
Change = Callable[[Path], object]

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


@pytest.fixture
def changed(tiny_folder: Folder, tmp_path: Path) -> Callable[..., Path]:
    """`changed(change)`: a copy of a tiny model's folder, changed."""

    def copy(change: Change, arch: str = "llama") -> Path:
        folder = tmp_path / "model"
        shutil.copytree(tiny_folder(arch), folder)
        change(folder)
        return folder

    return copy


def load(folder: Path, **options: Any) -> LoraModel:
    return load_model(ModelConfig(str(folder), device="cpu", lora_rank=2, **options))


def refused(folder: Path, match: str, **options: Any) -> str:
    with pytest.raises(UserError, match=match) as caught:
        load(folder, **options)
    message = str(caught.value)
    assert str(folder) in message
    return message


def config(**values: Any) -> Change:
    return settings("config.json", **values)


def settings(name: str, **values: Any) -> Change:
    """Set values of a JSON file; None takes one away."""

    def change(folder: Path) -> None:
        known = json.loads((folder / name).read_text()) | values
        (folder / name).write_text(json.dumps({k: v for k, v in known.items() if v is not None}))

    return change


def weights(edit: Callable[[dict[str, Any]], object]) -> Change:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def tokenizer(edit: Callable[[Any], object]) -> Change:
    def change(folder: Path) -> None:
        known = AutoTokenizer.from_pretrained(folder)
        edit(known)
        known.save_pretrained(folder)

    return change


def rewrite(name: str, edit: Callable[[bytes], bytes]) -> Change:
    return lambda folder: (folder / name).write_bytes(edit((folder / name).read_bytes()))


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def sharded(folder: Path) -> None:
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="40KB")
    (folder / "model.safetensors").unlink()
    assert len([*folder.glob("model-0*.safetensors")]) > 2


def another(model: Any) -> Change:
    return lambda folder: model.save_pretrained(folder)


# --- the vocabulary ---------------------------------------------------------------------------


def grown(tokens: int, **options: Any) -> Change:
    names = [f"<plan{i}>" for i in range(tokens)]
    return tokenizer(lambda known: known.add_tokens(names, **options))


def test_a_tokenizer_with_more_ids_than_embeddings_is_refused_at_load(
    changed: Callable[..., Path],
) -> None:
    message = refused(changed(grown(ROWS - TOKENS + 2)), f"ids up to {ROWS + 1}, but the model has")
    assert f"embeddings for {ROWS} (ids 0 to {ROWS - 1}): <plan8>, <plan9>" in message
    assert f"resize_token_embeddings({ROWS + 2})" in message


def test_the_mend_of_a_grown_tokenizer_mends(changed: Callable[..., Path]) -> None:
    def resized(folder: Path) -> None:
        grown(ROWS - TOKENS + 2)(folder)
        model = AutoModelForCausalLM.from_pretrained(folder)
        model.resize_token_embeddings(ROWS + 2)
        model.save_pretrained(folder)

    assert load(changed(resized)).vocabulary == ROWS + 2


def test_embeddings_beyond_the_tokenizer_are_fine(tiny_folder: Folder) -> None:
    model = load(tiny_folder("llama"))
    assert len(model.tokenizer) < model.vocabulary == ROWS
    assert model.notes == []


def test_a_special_token_beyond_the_embeddings_is_borne_until_a_row_holds_it(
    changed: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Gemma 3's text models carry the tokenizer of its multimodal ones, one id too long."""
    folder = changed(grown(ROWS - TOKENS + 1, special_tokens=True))
    model = load(folder)
    texts = ("a plant", f"a <plan{ROWS - TOKENS}> here")
    examples = [
        Example((Message("user", "What is it?"), Message("assistant", text)), f"mine.jsonl:{i}")
        for i, text in enumerate(texts, start=1)
    ]
    rows, kept, _ = encode_all(make_template("qa", model.tokenizer, examples), examples, 256)
    check_ids(model, rows[:1], kept[:1])
    assert response_nll(model, model.zero_theta(), rows[:1]).mean > 0
    match = rf"mine\.jsonl:2: it holds <plan8>, .* id {ROWS}, .* {ROWS} \(ids 0 to {ROWS - 1}\)"
    with pytest.raises(UserError, match=match):
        check_ids(model, rows, kept)

    data = tmp_path / "rows.jsonl"
    pairs = [(f"What is {i}?", f" {texts[i % 2]}") for i in range(40)]
    data.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in pairs))
    common = ["--model", str(folder), "--data", str(data), "--device", "cpu"]
    for verb in (
        ["train", *common, "--steps", "1", "--warmup", "0", "--out", str(tmp_path / "out")],
        ["evaluate", *common],
        ["select", *common, "--method", "random", "--out", str(tmp_path / "out")],
    ):
        assert main(verb) == 1
        assert "holds <plan8>, a special token" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("role", ["eos_token", "bos_token", "pad_token"])
def test_a_token_that_pairsare_written_with_needs_an_embedding(
    role: str, changed: Callable[..., Path]
) -> None:
    def change(folder: Path) -> None:
        grown(ROWS - TOKENS, special_tokens=True)(folder)
        tokenizer(lambda known: known.add_special_tokens({role: "<mine>"}))(folder)

    refused(changed(change), "<mine> would be read past their end")


def test_a_token_of_the_chat_template_needs_an_embedding(changed: Callable[..., Path]) -> None:
    def edit(known: Any) -> None:
        known.add_tokens([f"<plan{i}>" for i in range(9)], special_tokens=True)
        known.chat_template = "<plan8>" + known.chat_template

    refused(changed(tokenizer(edit)), "<plan8> would be read past")


def test_a_tokenizer_without_special_tokens_pads_with_any(changed: Callable[..., Path]) -> None:
    names = ("eos_token", "bos_token", "pad_token", "extra_special_tokens")
    folder = changed(settings("tokenizer_config.json", **dict.fromkeys(names)))
    model = load(folder)
    assert model.tokenizer.eos_token is None
    assert 0 <= model.tokenizer.pad_token_id < ROWS
    with pytest.raises(UserError, match="end-of-sequence"):
        make_template("qa", model.tokenizer, [])


# --- config.json ------------------------------------------------------------------------------

SMALL: dict[str, Any] = {"vocab_size": ROWS, "hidden_size": 32, "num_hidden_layers": 2}
KINDS = {
    "T5Config": lambda: T5Config(vocab_size=ROWS, d_model=32),
    "Bart": lambda: BartForConditionalGeneration(
        BartConfig(
            vocab_size=ROWS,
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
        )
    ),
    "Bert": lambda: BertForMaskedLM(
        BertConfig(**SMALL, num_attention_heads=4, intermediate_size=48)
    ),
    "Llava": LlavaConfig,
    "Gemma3": Gemma3Config,
}


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("T5Config", "t5 is an encoder-decoder model"),
        ("Bart", "BartForConditionalGeneration is an encoder-decoder model"),
        ("Bert", "BertForMaskedLM is no causal language model"),
        ("Llava", "llava is no causal language model"),
        ("Gemma3", "gemma3 is a model of images or sound beside text"),
    ],
)
def test_another_kind_of_model_is_refused(
    kind: str, match: str, changed: Callable[..., Path]
) -> None:
    message = refused(changed(another(KINDS[kind]())), match)
    assert len(message) < 300


def test_a_model_that_sees_what_follows_is_refused(changed: Callable[..., Path]) -> None:
    """Nothing but its logits tells: transformers builds a causal model of a BERT's weights."""

    def change(folder: Path) -> None:
        another(KINDS["Bert"]())(folder)
        config(architectures=None)(folder)

    refused(changed(change), "logits at a token change with the tokens after it, so BertLMHead")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (config(architectures=["LlamaForSequenceClassification"]), "no causal language model"),
        (config(pad_token_id=400), rf"pad_token_id 400, but vocab_size {ROWS}; set"),
        (config(vocab_size=400), rf"{ROWS} x 32 in the checkpoint, and 400 x 32 by config\.json"),
        (
            config(num_hidden_layers=1),
            r"says 1 layers, and the checkpoint has more \(model\.layers\.1",
        ),
        (
            config(num_hidden_layers=3),
            r"says 3 layers, and the checkpoint has fewer \(model\.layers\.2",
        ),
        (config(model_type="xyz"), "knows no model_type 'xyz'"),
        (config(model_type=None), "no model_type"),
        (
            config(model_type="xyz", auto_map={"AutoConfig": "mine.Config"}),
            "needs Python code of its own",
        ),
        (config(dtype="wide"), r"config\.json cannot be read"),
        (config(hidden_size=33), r"config\.json cannot be read"),
        (rewrite("config.json", lambda _: b"{"), "not a valid JSON file"),
        (rewrite("config.json", lambda _: b"[]"), "not a JSON object"),
        *(
            (config(quantization_config={"quant_method": name}), f"quantised \\({name}")
            for name in ("bitsandbytes", "gptq", "awq", "fp8", "compressed-tensors")
        ),
        (
            settings(
                "tokenizer_config.json",
                tokenizer_class="Mine",
                auto_map={"AutoTokenizer": ["mine.Mine", None]},
            ),
            "its tokenizer needs Python code of its own",
        ),
        (rewrite("tokenizer.json", lambda _: POINTER.encode()), "a Git LFS pointer"),
        (rewrite("tokenizer.json", lambda text: text[:500]), "no tokenizer could be loaded"),
    ],
)
def test_a_wrong_config_is_refused(
    change: Change, match: str, changed: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    refused(changed(change), match)
    assert "Do you wish to run" not in capsys.readouterr().out


def test_code_of_a_model_that_transformers_has_is_left_alone(changed: Callable[..., Path]) -> None:
    folder = changed(config(auto_map={"AutoModelForCausalLM": "mine.Model"}))
    (folder / "mine.py").write_text("raise RuntimeError('this code was run')")
    assert type(load(folder).hf).__name__ == "LlamaForCausalLM"


def test_a_slow_tokenizer_is_refused(changed: Callable[..., Path]) -> None:
    def change(folder: Path) -> None:
        (folder / "tokenizer.json").unlink()
        ByT5Tokenizer(extra_ids=0).save_pretrained(folder)

    model = load(changed(change))
    with pytest.raises(UserError, match=r"ByT5Tokenizer.*expected a fast one"):
        make_template("qa", model.tokenizer, [])


def test_attention_that_the_model_lacks_is_named(changed: Callable[..., Path]) -> None:
    def change(folder: Path) -> None:
        from transformers import GptOssConfig

        sizes: Any = SMALL | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
        GptOssConfig(**sizes, intermediate_size=16, num_local_experts=2).save_pretrained(folder)

    refused(changed(change), "has no --attention sdpa; give --attention eager")


# --- weights ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (rewrite("model.safetensors", lambda b: b[:-100]), r"model\.safetensors: damaged"),
        (rewrite("model.safetensors", lambda b: b""), r"model\.safetensors: damaged"),
        (rewrite("model.safetensors", lambda b: POINTER.encode()), "pointer.*git lfs pull"),
        (lambda folder: (folder / "model.safetensors").unlink(), "the folder has no weights"),
        (
            weights(lambda w: w["model.layers.0.mlp.up_proj.weight"][0].fill_(float("nan"))),
            r"layers\.0\.mlp\.up_proj\.weight holds numbers that are not finite; the checkpoint",
        ),
        (
            weights(lambda w: w["model.embed_tokens.weight"][250].fill_(float("inf"))),
            r"embed_tokens\.weight holds numbers that are not finite",
        ),
        (
            weights(lambda w: w.pop("model.layers.0.mlp.up_proj.weight")),
            r"lacks weights of LlamaForCausalLM \(model\.layers\.0\.mlp\.up_proj\.weight\)",
        ),
        (
            weights(lambda w: w.update({"x.y": w.pop("model.norm.weight")})),
            r"lacks .* \(model\.norm\.weight\).* It has x\.y instead",
        ),
        (weights(lambda w: w.pop("lm_head.weight")), "no output head.*tie_word_embeddings"),
    ],
)
def test_wrong_weights_are_refused(
    change: Change, match: str, changed: Callable[..., Path]
) -> None:
    refused(changed(change), match)


def test_weights_too_large_for_float16(changed: Callable[..., Path]) -> None:
    folder = changed(weights(lambda w: w["model.norm.weight"].fill_(1e5)))
    refused(folder, "too large for --dtype float16: give bfloat16 or float32", dtype="float16")
    load(folder, dtype="bfloat16")


def test_weights_beside_the_model_are_said(changed: Callable[..., Path]) -> None:
    model = load(changed(weights(lambda w: w.update({"v_head.weight": torch.zeros(3)}))))
    assert len(model.notes) == 1
    assert "left out (v_head.weight)" in model.notes[0]


def test_pickled_weights_are_refused_and_converted_as_said(
    changed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = changed(pickled)
    message = refused(folder, r"pickled \(pytorch_model\.bin\).*convert it once")
    code = message.split('python -c "')[1].split('"\n')[0]
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    load(tmp_path / "NEW")


def test_shards(changed: Callable[..., Path]) -> None:
    folder = changed(sharded)
    load(folder)
    shard = sorted(folder.glob("model-0*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-8])
    with pytest.raises(UserError, match=f"{shard.name}: damaged"):
        load(folder)
    shard.unlink()
    refused(folder, f"names . files, and {shard.name} is not there")
    shard.write_bytes(whole)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match=r"index\.json: damaged"):
        load(folder)


def test_a_head_of_its_own_stays_its_own_where_config_says_tied(
    changed: Callable[..., Path],
) -> None:
    model = load(changed(config(tie_word_embeddings=True)))
    head, table = (end.weight for end in (model.hf.lm_head, model.hf.get_input_embeddings()))
    assert not torch.equal(head, table)


@pytest.mark.parametrize("arch", ["mixtral", "qwen2_moe"])
def test_mixtures_load_in_float64(arch: str, tmp_path: Path) -> None:
    assert load(tiny_model(arch, tmp_path / arch), dtype="float64").size > 0


# --- what --model names -----------------------------------------------------------------------


def test_an_adapter_is_no_model(tiny_folder: Folder, tmp_path: Path) -> None:
    from nacd.model.lora import adapter_folder

    model = load(tiny_folder("llama"))
    adapter = tmp_path / "adapter"
    adapter_folder(model, model.fresh_theta(0), adapter)
    message = refused(adapter, "the folder is an adapter, not a model")
    assert (
        f"--model {tiny_folder('llama')}, and to `nacd evaluate` also --adapter {adapter}"
        in message
    )
    shutil.copy(tiny_folder("llama") / "config.json", adapter)
    refused(adapter, "the folder is an adapter, not a model")
    shutil.copy(tiny_folder("llama") / "model.safetensors", adapter)
    refused(adapter, "holds a model and an adapter")


def test_a_folder_of_gguf_files_names_one(tmp_path: Path) -> None:
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=rf"no config\.json.*--model {tmp_path}/b\.gguf"):
        checkpoints.locate(str(tmp_path))
