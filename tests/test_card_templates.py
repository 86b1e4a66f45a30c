"""Templates of model cards: every spelling of published GRAM checkpoints, in made-up cards."""

import json

import jax
import pytest
from cli_runner import run_cli
from tiny_runs import write_pairs

from gram_jax.errors import JudgeError
from gram_jax.interop.hf_export import export_hf
from gram_jax.interop.models import load_model, load_tokenizer
from gram_jax.judge.card import GRAM_TAIL, card_templates
from gram_jax.sharding import make_placement

BODY = "Compare.\n[Q]\n{%s}\n\n[A]\n{%s}\n[End of A]\n\n[B]\n{%s}\n[End of B]"
USUAL = BODY % ("prompt", "first", "second")


def indented(text):
    return "".join(f"  {line}\n" if line else "\n" for line in text.split("\n"))


README = BODY % ("your prompt here", "answer of assistant A", "answer of assistant B")
CODE = BODY % ("input", "response_a", "response_b")
RATIONALE = BODY % ("user_input", "response_1", "response_2")
CARDS = {
    "a text block in a list": f"1. Ask:\n\n  ```text\n{indented(README + chr(10) + chr(10) + '#Preferred:')}  ```\n",
    "a Python constant": f'```python\nPROMPT = """{CODE}\n\n#Preferred: """\nprint(PROMPT)\n```\n',
    "an f-string": f'```python\nprompt = f"""{CODE}\n\n#Preferred: """\n```\n',
    "a stripped constant": f"```python\npairwise = '''\n{RATIONALE}\n'''.strip()\n```\n",
    "a sum": f"```py\np = {CODE!r} + {GRAM_TAIL!r}\n```\n",
}
TAILS = {"a text block in a list": "\n\n#Preferred:", "a stripped constant": ""}


@pytest.mark.parametrize("kind", CARDS)
def test_the_template_of_every_spelling_is_found(kind):
    card = f"# A model\n\nSome prose with {{input}}.\n\n{CARDS[kind]}\n```bash\nls {{input}}\n```\n"
    best = card_templates(card)[0]
    tail = TAILS.get(kind, GRAM_TAIL)
    assert best.template == USUAL + tail
    assert best.asks is (tail != "")
    fence = card[: card.index("```")].count("\n") + 1
    assert best.place.startswith(f"line {fence},")


def test_templates_that_ask_come_first_and_a_tail_is_given_to_the_others():
    card = CARDS["a stripped constant"] + CARDS["a Python constant"]
    assert [one.asks for one in card_templates(card)] == [True, False]
    (one,) = card_templates(card, GRAM_TAIL)  # both are the same text now
    assert one.template == USUAL + GRAM_TAIL


@pytest.mark.parametrize(
    "card",
    [
        "no code",
        "```python\nx = 'broken\n```",
        "```text\n{input} {response_a} {response_b}\n```",  # no delimiters
        "```text\n[A]\n{response_a}\n[Q]\n{input}\n[B]\n{response_b}\n```",
        "```text\n[Q]\n{input}\n[A]\n{response_a}\n[A]\n{response_a}\n[B]\n{response_b}\n```",
        "```text\n[Q]\n{input}\n[A]\n{response_1}\n[B]\n{response_b}\n```",
    ],
)
def test_a_card_without_a_usable_prompt_is_an_error_that_lists_the_spellings(card):
    with pytest.raises(JudgeError, match=r"\{user_input\}"):
        card_templates(card)


def test_the_command_takes_the_template_from_the_card_and_tries_it_on_pairs(tmp_path):
    one = make_placement({}, devices=jax.devices()[:1])
    cfg, params = load_model("tiny-random", one, None)
    tokenizer = load_tokenizer("tiny-random")
    folder = export_hf(tmp_path / "m", cfg, params, dtype=None, tokenizer=tokenizer, spec=None)
    words = ["spec", tmp_path / "judge.json", "--model", folder, "--template", "from-card"]
    missing = run_cli(*words)
    assert missing.status == 2 and "--card" in missing.stderr
    card = tmp_path / "card.md"
    card.write_text(CARDS["a stripped constant"] + CARDS["a Python constant"])
    pairs = write_pairs(tmp_path / "pairs.jsonl", 8)
    done = run_cli(*words, "--card", card, "--pairs", pairs, "--max-length", 300)
    assert done.status == 0, done.stderr
    assert json.loads((tmp_path / "judge.json").read_text())["template"] in (
        USUAL,
        USUAL + GRAM_TAIL,
    )
    assert done.output.count("taken") == 1
