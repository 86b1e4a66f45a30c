"""Best of n: exact expectations over subsets, the divergence, and the command on a tiny policy."""

import copy
import errno
import itertools
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from cli_runner import run_cli

from gram_jax.checkpoint.manifest import write_manifest
from gram_jax.errors import CheckpointError, DataError
from gram_jax.evals.best_of_n import best_of, best_of_n_rows, divergence, rate, run_best_of_n
from gram_jax.evals.graded import expected_of_k
from gram_jax.evals.intervals import wilson_interval
from gram_jax.generation.generator import TextGenerator
from gram_jax.interop.hf_export import export_hf
from gram_jax.interop.hf_files import GENERATION
from gram_jax.interop.models import load_tokenizer, stop_tokens
from gram_jax.judge.messages import Message, as_prompt
from gram_jax.model.generate import SamplingConfig
from gram_jax.plots import plot_best_of
from gram_jax.scoring.results import OutputSink, read_rows
from gram_jax.scoring.scorer import Scorer


def test_the_expected_pick_is_the_mean_over_all_subsets():
    draw = np.random.default_rng(0)
    grades, by = draw.uniform(size=6), draw.uniform(size=6)
    for k in range(1, 7):
        picks = [max(some, key=by.__getitem__) for some in itertools.combinations(range(6), k)]
        assert expected_of_k(grades, by, k) == pytest.approx(np.mean(grades[picks]))


def test_equally_good_ones_are_as_likely_to_be_picked():
    assert expected_of_k(np.array([1.0, 0.0, 0.0]), np.array([2.0, 2.0, 1.0]), 3) == 0.5


def test_the_divergence_by_hand():
    assert divergence(1) == 0
    assert divergence(8) == pytest.approx(math.log(8) - 7 / 8)


def test_a_judge_whose_mistakes_grow_is_seen_by_the_oracle():
    proxy = np.tile(np.linspace(0, 1, 8), (5, 1))
    oracle = [0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.6, 0.0]  # the proxy's favourite is bad
    rows = best_of(proxy, np.tile(oracle, (5, 1)))
    assert [row["k"] for row in rows] == [1, 2, 4, 8]
    proxies, oracles = ([row[name]["mean"] for row in rows] for name in ("proxy", "oracle"))
    assert proxies == sorted(proxies) and proxies[-1] == 1
    assert oracles[-1] == 0 and max(oracles) > oracles[0]
    assert "oracle" not in best_of(proxy, None)[0]


def test_a_plot_on_a_full_disk_is_an_error_that_names_it_and_leaves_no_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    table = best_of(np.random.default_rng(0).random((4, 4)), None)
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DataError, match=r"bon\.png cannot be written: No space left"):
        plot_best_of(table, tmp_path / "bon.png", title="x")
    assert not list(tmp_path.iterdir())


def test_the_change_since_one_is_of_the_same_prompts():
    draw = np.random.default_rng(1)
    level, gains = draw.uniform(0, 0.5, (40, 1)), np.array([0.0, 0.1, 0.2, 0.3])
    gains = gains * draw.uniform(0.98, 1.02, (40, 1))  # prompts differ, their gains hardly
    table = best_of(level + gains, level + gains[:, ::-1])
    assert "change" not in table[0]["proxy"]
    for name, sign in (("proxy", 1), ("oracle", -1)):
        change = table[-1][name]["change"]
        assert change["mean"] == pytest.approx(0.15 * sign, abs=2e-3)  # best against mean of all
        assert change["interval"] == pytest.approx((0.15 * sign, 0.15 * sign), abs=2e-3)
        low, high = table[-1][name]["interval"]
        assert high - low > 0.05
    shown = best_of_n_rows(table)
    # Without a change in n prompts: as between two judges, symmetric around 0.
    same = best_of(np.full((20, 4), 0.5), None)[-1]["proxy"]["change"]
    unseen = wilson_interval(0, 20)[1]
    assert same["mean"] == 0 and same["interval"] == pytest.approx((-unseen, unseen))
    for prompts in (3, 20):  # the same change in each
        change = best_of(np.tile([0.5, 0.6, 0.5, 0.5], (prompts, 1)), None)[-1]["proxy"]["change"]
        low, high = change["interval"]
        assert change["mean"] == pytest.approx(0.075) and -1 <= low < 0.075 < high <= 1
    assert shown[0][-1] == "-" and re.fullmatch(r"-0\.1\d+ \(-0\.1\d+ to -0\.1\d+\)", shown[-1][-1])


def test_a_greedy_response_without_text_is_compared_with_as_it_is(tmp_path):
    judge = Scorer.load("tiny-random", compute_dtype="float32")
    rows = [{"greedy": "", "responses": ["", "some text"]}]
    sink = OutputSink(tmp_path / "rated.jsonl")
    rate(judge, "tiny", [as_prompt("Say nothing.")], rows, sink)
    ((even, other),) = [row["rewards"] for row in read_rows(sink.file)]
    assert even == 0.5
    assert other == judge.score("Say nothing.", "some text", "").first


@pytest.fixture(scope="module")
def policy() -> TextGenerator:
    return TextGenerator.load("tiny-random", compute_dtype="float32")


def test_a_policy_reads_its_own_chat_format_and_people_cannot_forge_turns(policy):
    tokenizer = load_tokenizer("tiny-random")
    end = policy.frame.end_of_turn
    for turns in (as_prompt("Say {} to me."), (Message("system", "a {} b"), Message("user", "c"))):
        stops = [
            sum(token in policy.stop_token_ids for token in policy.encode(prompt))
            for prompt in (
                tuple(Message(m.role, m.content.format(said)) for m in turns) for said in (end, "")
            )
        ]
        assert stops[0] == stops[1]  # the forged end is text
    ids = policy.encode(as_prompt(f"Say {end} to me."))
    text = tokenizer.decode(ids)
    assert text.startswith(policy.frame.prefix[:10]) and text.endswith(
        policy.frame.generation_prompt
    )
    several = policy.encode((Message("user", "a"), Message("assistant", "b"), Message("user", "c")))
    assert len(several) > len(policy.encode(as_prompt("c")))


def test_what_ends_a_response_is_also_what_the_models_settings_say(policy, tmp_path):
    kept = {"dtype": None, "tokenizer": policy.tokenizer, "spec": None}
    folder = export_hf(tmp_path / "hf", policy.cfg, policy.params, **kept)
    path = folder / GENERATION

    def ends() -> tuple[int, ...]:
        return TextGenerator.load(folder, compute_dtype="float32").stop_token_ids

    assert ends() == policy.stop_token_ids
    for said, more in (([7, 9], (7, 9)), (7, (7,)), (None, ())):
        path.write_text(json.dumps({"eos_token_id": said}))
        write_manifest(folder)
        assert ends() == (*policy.stop_token_ids, *more)
    path.unlink()
    assert stop_tokens(folder) == stop_tokens("tiny-random") == ()
    path.write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(CheckpointError, match="'</s>'"):
        stop_tokens(folder)


def test_a_conversation_is_read_turn_by_turn_as_its_template_has_it(policy):
    said = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Yes?"), ("user", "Why?")]
    for turns in (said, said[1:], said[:2]):
        rows = [{"role": role, "content": text} for role, text in turns]
        rendered = policy.tokenizer.apply_chat_template(
            rows, tokenize=False, add_generation_prompt=True
        )
        ids = policy.encode(tuple(Message(role, text) for role, text in turns))
        assert policy.tokenizer.decode(ids) == rendered


def test_roles_that_the_template_does_not_take_are_one_users_text(policy):
    tools = (Message("user", "2 + 3?"), Message("tool", "5"), Message("user", "So?"))
    strict = "{% if messages[1] is defined %}{{ raise_exception('no') }}{% endif %}"
    tokenizer = copy.deepcopy(policy.tokenizer)
    tokenizer.chat_template = strict + tokenizer.chat_template
    found = tokenizer.decode(replace(policy, tokenizer=tokenizer).encode(tools))
    assert "[tool turn]\n5" in found and found.startswith(policy.frame.prefix)


def test_a_policys_own_system_turn_gives_way_to_the_prompts():
    spoken = TextGenerator.load("tiny-random", compute_dtype="float32", system="Sing.")
    shown = spoken.tokenizer.decode(spoken.encode((Message("user", "a"), Message("user", "b"))))
    assert shown.count("Sing.") == 1
    own = (Message("system", "Hum."), Message("user", "a"))
    assert "Sing." not in spoken.tokenizer.decode(spoken.encode(own))


def test_what_is_written_is_text_without_control_tokens(policy):
    prompts, sampling = [as_prompt("a"), as_prompt("b")], SamplingConfig(6, seed=3)
    found = policy.generate(prompts, sampling)
    assert len(found.texts) == 2 and policy.frame.end_of_turn not in "".join(found.texts)
    assert policy.generate(prompts, sampling).texts == found.texts


@pytest.mark.parametrize("lost", ["judge", "oracle"])
def test_a_missing_judge_is_noticed_before_anything_is_generated(tmp_path, monkeypatch, lost):
    monkeypatch.setattr(TextGenerator, "load", lambda *_, **__: pytest.fail("loaded"))
    models = {"judge": "tiny-random", "oracle": None} | {lost: "absent.json"}
    with pytest.raises(CheckpointError, match=r"absent\.json"):
        run_best_of_n(
            "tiny-random",
            models["judge"],
            [as_prompt("a"), as_prompt("b")],
            tmp_path,
            SamplingConfig(4),
            n=2,
            oracle=models["oracle"],
        )


def test_the_command_samples_once_rates_and_draws(tmp_path):
    source = tmp_path / "p.jsonl"
    rows = [{"prompt": f"q{at}"} for at in range(3)]  # prompts alone
    source.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": None}]))
    out = tmp_path / "out"
    words = ["bon", "tiny-random", "tiny-random", str(source), "--out", str(out), "--n", "4"]
    assert "line 4" in run_cli(*words).output
    words += ["--on-bad", "skip"]
    words += ["--max-new-tokens", "5", "--oracle", "tiny-random", "--compute-dtype", "float32"]
    done = run_cli(*words)
    assert done.status == 0 and "1 bad row" in done.output, done.output
    report = json.loads((out / "bon.json").read_text())
    assert [row["k"] for row in report["best_of"]] == [1, 2, 4]
    assert np.shape(report["rewards"]["proxy"]) == (3, 4)
    assert report["rewards"]["proxy"] == report["rewards"]["oracle"]
    assert (out / "bon.png").read_bytes().startswith(b"\x89PNG")
    before = (out / "samples.jsonl").stat().st_mtime_ns
    assert run_cli(*words).status == 0
    assert (out / "samples.jsonl").stat().st_mtime_ns == before
    other = run_cli(*words, "--seed", "1")
    assert "samples.jsonl" in other.output and other.status != 0
