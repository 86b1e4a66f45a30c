"""A judge as a classifier: the rows of its head that give the two verdicts, for servers of classifiers.

Two labels: the logits of the verdicts, bit for bit. A margin: one label, the difference of the two rows in f32.
"""

import json
from dataclasses import replace
from typing import Any, Literal

import jax.numpy as jnp

from gram_jax.errors import LayoutError
from gram_jax.interop.hf_config import config_to_hf
from gram_jax.judge.spec import JudgeSpec
from gram_jax.model.config import ModelConfig
from gram_jax.model.heads import label_rows
from gram_jax.model.specs import SCORE
from gram_jax.tree import Tree

ClassifierKind = Literal["labels", "margin"]


def as_classifier(
    cfg: ModelConfig, params: Tree, spec: JudgeSpec, kind: ClassifierKind
) -> tuple[ModelConfig, Tree]:
    """A judge's config and weights with `kind` as head. Raises LayoutError if that is another judge or has no class."""
    if cfg.traits.logit_softcap is not None:
        raise LayoutError(
            f"the logits of this model have a soft cap (final_logit_softcapping = {cfg.traits.logit_softcap:g}), which "
            "classifiers do not apply: serve the judge with gram-jax serve, or as a language model"
        )
    if cfg.head not in ("language", kind):
        raise LayoutError(
            f"this model's head is {cfg.head!r}: expected a judge with a language model's head"
        )
    rows = label_rows(params, cfg, spec.label_ids)
    if cfg.head != kind and kind == "margin":
        rows = (rows[0].astype(jnp.float32) - rows[1].astype(jnp.float32))[None]
    elif kind == "margin":
        rows = rows[:1]
    trunk = {name: leaf for name, leaf in params.items() if name not in ("head", SCORE)}
    return replace(cfg, head=kind), {**trunk, SCORE: rows}


def cross_encoder_files(spec: JudgeSpec, tokenizer: Any) -> dict[str, str]:
    """Files by which sentence-transformers (5.4 and later) loads a judge's folder as a CrossEncoder.

    Its score is the log-odds of the first label. The input is the messages of a comparison, which the tokenizer's chat
    template renders; the settings are those of the specification's frame. Raises LayoutError without a padding token.
    """
    if tokenizer.pad_token_id is None:
        raise LayoutError(
            "sentence-transformers needs a padding token, which this tokenizer lacks: set pad_token in "
            "tokenizer_config.json"
        )
    chat: dict[str, Any] = {"add_generation_prompt": True}
    if not spec.thinking:
        chat["enable_thinking"] = False
    module = "sentence_transformers.{}"
    modules = [
        ("", module.format("base.modules.transformer.Transformer")),
        ("1_LogitScore", module.format("cross_encoder.modules.logit_score.LogitScore")),
    ]
    flat = {"method": "forward", "method_output_name": "logits", "format": "flat"}
    files: dict[str, Any] = {
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": kind}
            for i, (path, kind) in enumerate(modules)
        ],
        "1_LogitScore/config.json": {
            "true_token_id": spec.label_ids[0],
            "false_token_id": spec.label_ids[1],
            "module_input_name": "causal_logits",
        },
        "sentence_bert_config.json": {
            "transformer_task": "text-generation",
            "modality_config": {"message": flat},
            "module_output_name": "causal_logits",
            "processing_kwargs": {"chat_template": chat},
        },
        "config_sentence_transformers.json": {
            "model_type": "CrossEncoder",
            "activation_fn": "torch.nn.modules.linear.Identity",
            "prompts": {},
            "default_prompt_name": None,
        },
    }
    return {name: json.dumps(content, indent=2) + "\n" for name, content in files.items()}


def classifier_card(cfg: ModelConfig, spec: JudgeSpec, name: str) -> str:
    """README.md of an exported classifier: how to serve it, what to send, what goes wrong."""
    architecture = config_to_hf(cfg, "float32")["architectures"][0]
    first, second = spec.labels
    both = cfg.head == "labels"
    probs = f"[P({first}), P({second})]" if both else f"[P({first})]"
    thinking = ""
    if "<think>" in spec.generation_prompt:
        thinking = ' and `"chat_template_kwargs"` `{"enable_thinking": false}`'
    body: dict[str, Any] = {"model": name, "input": [["TOKEN IDS"]], "use_activation": True}
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-classification",
        "---",
        f"# {name}",
        "",
        f"A judge of two responses as `{architecture}`, written by gram_jax. The text that it reads is in judge.json;",
        f"`{first}` means that the response shown first is better, `{second}` the one shown second."
        + (
            ""
            if both
            else f" Its one logit is the log-odds of `{first}`, so its sigmoid is P({first})."
        ),
        "",
        "## Requests",
        "",
        "vLLM: `vllm serve FOLDER --runner pooling`, then POST /classify",
        "",
        "```json",
        json.dumps(body),
        "```",
        "",
        f'`data[i].probs` is {probs}. With `"use_activation": false` it is the raw logits.',
        *(
            []
            if both
            else [
                "A classifier with one label also has /score and /rerank, which show one order of a pair only."
            ]
        ),
        "",
        "SGLang: `python -m sglang.launch_server --model-path FOLDER --is-embedding`, then POST /classify",
        "",
        "```json",
        json.dumps({"model": name, "text": ["PROMPT"]}),
        "```",
        "",
        'It returns raw logits, `[{"embedding": [...]}]`.',
        "",
        "gram_jax: `Scorer.load(FOLDER)` loads it as the same judge.",
        "",
        "## What to watch",
        "",
        '- Send token ids, or text with `"add_special_tokens": false`: servers add a beginning-of-text token.',
        f"- With `messages`, `add_generation_prompt` must be true{thinking}, or the verdict is read elsewhere.",
        "- Leave `truncate_prompt_tokens` unset: it cuts the end of the prompt. The judge was trained with at most",
        f"  {spec.max_length} tokens, longer texts shortened inside the responses.",
        f"- Ask for both orders and average: P(first) = (P_12({first}) + 1 - P_21({first})) / 2.",
        "- Servers compute in bfloat16 by default: expect differences of 0.1 in log-odds, 1e-4 in float32.",
        "",
    ]
    return "\n".join(lines)
