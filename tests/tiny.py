"""Tiny random models of six architectures, each with its quirks, and a tokenizer of ~300 tokens.

    opt     embeddings of another width than the layers, positions offset by 2, dropout 0.1, a
            tokenizer that puts BOS first, no chat template
    llama   grouped-query attention, a tokenizer that puts BOS first, ChatML template without BOS
    gpt2    Conv1D layers, dropout 0.1, no BOS, no chat template
    qwen3   head dimension of its own, query and key norms, ChatML template
    gemma3  embeddings scaled inside their module, sliding and full attention, tied head, a template
            that starts with BOS, trims contents and puts the system turn into the user's
    mistral sliding attention in every layer; otherwise as llama, and so not in `ARCHITECTURES`

Two mixtures of experts beside them, with one of four experts a token, and the llama's tokenizer:

    mixtral    peft's `all-linear` puts LoRA on the experts' fused matrices too
    qwen2_moe  it leaves the experts out

Each model has a few more embedding rows than its tokenizer has tokens, as OPT and Qwen do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen2MoeConfig,
    Qwen3Config,
)

ARCHITECTURES = ("opt", "llama", "gpt2", "qwen3", "gemma3")
MIXTURES = ("mixtral", "qwen2_moe")
TOKENS = 300
ROWS = 308

CORPUS = (
    "Which of these is a property of all living things?",
    "Question: What does a plant need to make its own food? Answer: sunlight and water",
    "The quick brown fox jumps over the lazy dog; the answer is the one that the question names.",
)

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}"
    "{% set first = messages[0]['content'] + '\n\n' %}{% set turns = messages[1:] %}"
    "{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}"
    "<|im_start|>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{% if loop.first %}{{ first }}{% endif %}{{ message['content'] | trim }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
TEMPLATES = {"opt": None, "gpt2": None, "gemma3": GEMMA}


def tiny_tokenizer(arch: str = "llama") -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of `TOKENS` tokens with the habits of the architecture's own."""
    special = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    if arch in ("opt", "llama", "gemma3", "mistral", *MIXTURES):
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A",
            pair="<s> $A $B",
            special_tokens=[("<s>", backend.token_to_id("<s>"))],
        )
    names: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    if arch == "gpt2":  # one special token for everything, and no padding token
        names = {"bos_token": "</s>", "eos_token": "</s>"}
    elif arch == "qwen3":
        names = {"eos_token": "<|im_end|>", "pad_token": "<pad>"}
    names["additional_special_tokens"] = ["<|im_start|>", "<|im_end|>"]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    tokenizer.chat_template = TEMPLATES.get(arch, CHATML)
    return tokenizer


def tiny_config(arch: str) -> Any:
    """The configuration of a two-layer model."""
    common: dict[str, Any] = {
        "vocab_size": ROWS,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    wide = common | {"intermediate_size": 48, "num_key_value_heads": 2, "initializer_range": 0.15}
    if arch == "opt":
        return OPTConfig(
            **common,
            ffn_dim=48,
            word_embed_proj_dim=24,
            do_layer_norm_before=False,
            init_std=0.15,
        )
    if arch == "llama":
        return LlamaConfig(**wide, tie_word_embeddings=False)
    if arch == "mistral":
        return MistralConfig(**wide, sliding_window=6, tie_word_embeddings=False)
    if arch == "gpt2":
        return GPT2Config(
            vocab_size=ROWS,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=256,
            bos_token_id=2,
            eos_token_id=2,
            initializer_range=0.15,
        )
    if arch == "qwen3":
        return Qwen3Config(**wide, head_dim=12, tie_word_embeddings=True)
    if arch == "gemma3":
        return Gemma3TextConfig(
            **wide,
            head_dim=12,
            query_pre_attn_scalar=12,
            sliding_window=8,
            layer_types=["sliding_attention", "full_attention"],
            tie_word_embeddings=True,
        )
    experts = {"num_experts_per_tok": 1, "tie_word_embeddings": False}
    if arch == "mixtral":
        return MixtralConfig(**wide, **experts, num_local_experts=4)
    if arch == "qwen2_moe":
        return Qwen2MoeConfig(
            **wide,
            **experts,
            num_experts=4,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=24,
        )
    raise ValueError(f"{arch}: one of {', '.join((*ARCHITECTURES, *MIXTURES))}")


def tiny_model(arch: str, folder: Path, seed: int = 0) -> Path:
    """Save a random model and its tokenizer in `folder` (made if needed); returns `folder`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(arch), dtype=torch.float32)
    model.save_pretrained(folder)
    tiny_tokenizer(arch).save_pretrained(folder)
    return folder
