"""The test bed of the claims: answers verified by code, and no surface that gives them away.

Each response of a split is chosen as often as it is rejected, so a classifier of the responses alone has exactly 0.5:
there is no sampling noise that a threshold of 0.52 would have to allow for. What remains, the words and letters that a
response shares with its prompt, is measured on whole splits of 1,000 pairs and more.
"""

import json
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from gram_jax.data.examples import shown_first
from gram_jax.data.reading import read_records
from gram_jax.evals.curation import CurationConfig, JudgedPair, curate, curation_figures, suspects
from gram_jax.interop.models import load_tokenizer
from gram_jax.judge.encode import encode_fitting_items
from gram_jax.judge.messages import as_prompt
from gram_jax.judge.spec import make_spec

FOLDER = Path(__file__).parents[1] / "benchmarks" / "claims"
HIGHEST = 0.52


@pytest.fixture(scope="module")
def bed():
    """The module bed, imported from the benchmark's folder."""
    sys.path.insert(0, str(FOLDER))
    try:
        import bed

        yield bed
    finally:
        sys.path.remove(str(FOLDER))
        for name in ("bed", "bed_tasks", "surface"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def splits(bed):
    return bed.make_bed(0)


def labeled(bed, rows):
    """(prompt, chosen, rejected) of rows; for unlabeled ones, by the code that verifies."""
    kinds = {kind.name: kind for kind in bed.language("English", 0).kinds.values()}
    for row in rows:
        if "chosen" in row:
            yield row["prompt"], row["chosen"], row["rejected"]
            continue
        first, second = row["response_a"], row["response_b"]
        kind = kinds[row["source"]]
        draw = bed.language("English", 0).draw(kind, None, None)
        right = bed.is_right(kind, draw, row["prompt"], first)
        yield row["prompt"], *((first, second) if right else (second, first))


@pytest.fixture(scope="module")
def pairs(bed, splits):
    return {name: list(labeled(bed, rows)) for name, rows in splits.items()}


def share(leads) -> float:
    """Share of pairs in which the first of two values is larger; ties are half."""
    return float(np.mean([(a > b) + 0.5 * (a == b) for a, b in leads]))


def test_the_bed_has_the_kinds_and_sizes_that_the_claims_need(bed, splits):
    roles = Counter(kind.role for kind in bed.language("English", 0).kinds.values())
    assert sum(roles.values()) >= 40 and min(roles.values()) >= 15
    for split in bed.SPLITS:
        assert not split.test or len(splits[split.name]) >= 1000
        degrees = Counter(row["id"].split("-")[-2] for row in splits[split.name])
        assert min(degrees[name] for name in ("clear", "middle", "subtle")) >= 0.1 * len(
            splits[split.name]
        )
    kinds = {name: {row["source"] for row in rows} for name, rows in splits.items()}
    assert kinds["preference_train"] == kinds["preference_valid"]
    assert not kinds["preference_train"] & kinds["eval/unlabeled_kinds"]
    assert not kinds["unlabeled_train"] & kinds["eval/unseen_kinds"]


def test_right_is_right_and_wrong_is_wrong_by_the_texts_alone(bed, splits):
    checked = 0
    for name in bed.LANGUAGES:
        lang = bed.language(name, 0)
        for split in bed.SPLITS:
            for row in splits[split.name] if split.labeled else ():
                kind = lang.kinds.get(row["source"])
                if kind is None or kind.role not in split.roles:
                    continue
                draw = lang.draw(kind, None, None)
                assert bed.is_right(kind, draw, row["prompt"], row["chosen"]), row
                assert not bed.is_right(kind, draw, row["prompt"], row["rejected"]), row
                checked += 1
    assert checked == sum(len(splits[s.name]) for s in bed.SPLITS if s.labeled)


def test_no_prompt_occurs_twice_in_the_whole_bed(splits):
    prompts = [row["prompt"].casefold() for rows in splits.values() for row in rows]
    assert len(set(prompts)) == len(prompts)


def test_words_and_facts_of_the_tests_occur_in_no_training_answer(bed):
    lang = bed.language("English", 0)
    kind = lang.kinds["capital"]
    train, test = (lang.draw(kind, part, None).texts for part in (False, True))
    for table in ("capital", "tool"):
        assert test["facts"][table] and not set(train["facts"][table]) & set(test["facts"][table])
    for name in ("names", "places"):
        assert test[name] and not set(train[name]) & set(test[name])
    assert test["topics"] and not set(train["topics"]) & set(test["topics"])


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(bed, tmp_path):
    small = [bed.Split("preference_valid", ("labeled",), 4, test=True)]
    assert bed.make_bed(3, small) == bed.make_bed(3, small) != bed.make_bed(4, small)


def test_every_response_is_chosen_as_often_as_it_is_rejected(pairs):
    """So no function of the responses alone predicts the label: each split, exactly 0.5."""
    for name, rows in pairs.items():
        assert Counter(c for _, c, _ in rows) == Counter(r for _, _, r in rows), name


FEATURES = {
    "characters": len,
    "words": lambda text: len(text.split()),
    "digits": lambda text: sum(map(str.isdigit, text)),
    "punctuation": lambda text: len(re.findall(r"[^\w\s]", text)),
    "capitals": lambda text: sum(map(str.isupper, text)),
    "lines": lambda text: text.count("\n"),
    "first word": lambda text: text.split()[0],
    "last character": lambda text: text[-1],
}


@pytest.mark.parametrize("feature", FEATURES)
def test_no_feature_of_the_responses_predicts_the_label(pairs, feature):
    value = FEATURES[feature]
    for name, rows in pairs.items():
        assert share((value(c), value(r)) for _, c, r in rows) == 0.5, name


@pytest.mark.slow
def test_the_number_of_tokens_does_not_predict_the_label_and_pairs_are_short(pairs):
    tokenizer = load_tokenizer("smollm2-135m")
    for name, rows in pairs.items():
        texts = sorted({text for _, c, r in rows for text in (c, r)})
        sizes = dict(zip(texts, map(len, tokenizer(texts)["input_ids"]), strict=True))
        assert share((sizes[c], sizes[r]) for _, c, r in rows) == 0.5, name
    spec = make_spec(tokenizer, max_length=150, system="")
    longest = max((row for rows in pairs.values() for row in rows), key=lambda r: sum(map(len, r)))
    item = (as_prompt(longest[0]), *longest[1:])
    assert encode_fitting_items(tokenizer, spec.comparison, [item], 150)[0] is not None


def shared(prompt: str, response: str) -> dict[str, float]:
    """What a response has in common with its prompt, by several measures."""
    ask, answer = (set(re.findall(r"\w+", text.lower())) for text in (prompt, response))
    pieces = [{t[at : at + 4] for at in range(len(t) - 3)} for t in (prompt, response)]
    firsts = [word[0] for word in sorted(answer) if word in prompt.lower()]
    return {
        "shared words": len(ask & answer) / max(1, len(answer)),
        "number of shared words": len(ask & answer),
        "new words": len(answer - ask),
        "shared four letters": len(pieces[0] & pieces[1]),
        "contained": float(response.strip(" .") in prompt),
        "found words": len(firsts),
    }


def test_what_a_response_shares_with_its_prompt_does_not_predict_the_label(pairs):
    for name, rows in pairs.items():
        found = [(shared(p, c), shared(p, r)) for p, c, r in rows]
        for feature in found[0][0]:
            value = share((a[feature], b[feature]) for a, b in found)
            assert 1 - HIGHEST <= value <= HIGHEST, (name, feature, value)


def test_the_side_shown_first_does_not_predict_the_label(splits):
    """Unlabeled pairs show the right response on each side equally often; for others a hash decides, or both orders."""
    for rows in splits.values():
        by_item = Counter(row["id"][:-1] for row in rows)
        assert set(by_item.values()) == {2}
    rows = splits["preference_train"]
    first = np.mean([shown_first(0, row["id"]) for row in rows])
    assert abs(first - 0.5) < 3 * 0.5 / len(rows) ** 0.5  # a hash: binomial, here within 3 sd


@pytest.mark.slow
def test_a_classifier_of_words_and_ngrams_learns_nothing(bed, pairs):
    """Logistic regression on the training pairs, tested on every split and on the training pairs themselves."""
    from surface import controls

    found = controls(pairs["preference_train"], pairs)["classifier of words and n-grams"]
    for name, value in found.items():
        assert 1 - HIGHEST <= value <= HIGHEST, (name, value)


def test_as_many_labels_are_flipped_as_asked_for_and_always_the_same_ones(bed):
    wrong = bed.flips(400, 0.2, seed=1)
    assert len(wrong) == 80 and wrong <= set(range(400))
    assert wrong == bed.flips(400, 0.2, seed=1) != bed.flips(400, 0.2, seed=2)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3])
def test_curation_finds_flipped_labels_of_the_bed(bed, splits, share, tmp_path):
    """Two simulated judges that are right on about 85 % of the pairs, with independent errors."""
    true = splits["preference_train"]
    flips = bed.flips(len(true), share, seed=0)
    exchanged = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in true]
    rows = [exchanged[at] if at in flips else row for at, row in enumerate(true)]
    path = tmp_path / "flipped.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = read_records(path)[0]
    truth = {row["id"]: row["chosen"] for row in splits["preference_train"]}
    rng = np.random.default_rng(0)
    judged = []
    for record in records:
        toward = 1.5 if record.chosen == truth[record.id] else -1.5
        p = expit(toward + rng.normal(0, 1.45, 2))
        sides = np.sign(p - 0.5)[:, None].repeat(2, axis=1)
        judged.append(JudgedPair(record, True, p, sides))
    config = CurationConfig(suspected="flip")
    wrong = {r.id for r in records if r.chosen != truth[r.id]}
    found = {judged.pair.id for judged in suspects(judged, config)}
    assert len(found & wrong) > 0.6 * len(wrong) and len(found & wrong) > 0.8 * len(found)
    left = sum(pair.chosen != truth[pair.id] for pair in curate(judged, config))
    assert left < 0.55 * len(wrong)
    assert set(curation_figures(judged, config).by_source) == {row["source"] for row in rows}
