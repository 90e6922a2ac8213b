"""From chosen ids to text and back: what may be chosen, and that every row settles."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from nacd.data import Encoded, Example, Message, Template, make_template
from nacd.data.pseudo import make_pseudo_data
from nacd.distillation.text import RoundTrip, choosable, share_changed, slot_ids, to_text
from nacd.errors import UserError
from tiny import ARCHITECTURES, ROWS, TOKENS, tiny_tokenizer

SEEDS = (
    Example((Message("user", "What does a plant need?"), Message("assistant", "water")), "a"),
    Example((Message("user", "Is 7 prime, or  not?"), Message("assistant", "Yes.")), "b"),
    Example((Message("user", "Naïve — 你好 the fox"), Message("assistant", "a fox")), "c"),
    Example(
        (
            Message("system", "Be brief."),
            Message("user", "Name the property.\nOf all things"),
            Message("assistant", "life"),
        ),
        "d",
    ),
)
CASES = [
    *((arch, name) for arch in ARCHITECTURES for name in ("qa", "alpaca", "plain")),
    *((arch, "chat") for arch in ("llama", "qwen3", "gemma3")),
]


def setting(arch: str, name: str) -> tuple[Any, Template]:
    tokenizer = tiny_tokenizer(arch)
    tokenizer.pad_token_id = 0
    return tokenizer, make_template(name, tokenizer, SEEDS)


def none_left(_: int) -> Sequence[int]:
    return ()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_only_plain_text_may_be_chosen(arch: str) -> None:
    tokenizer = tiny_tokenizer(arch)
    allowed = choosable(tokenizer, ROWS)
    assert allowed.shape == (ROWS,)
    assert not bool(allowed[TOKENS:].any())  # embedding rows without a token
    assert not bool(allowed[tokenizer.all_special_ids].any())
    assert 30 < int(allowed.sum()) < TOKENS
    for token in range(TOKENS):
        text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
        again = tokenizer(text, add_special_tokens=False)["input_ids"]
        if allowed[token]:
            assert again == [token]
            assert "\ufffd" not in text
        elif token not in tokenizer.added_tokens_decoder:
            assert again != [token] or "\ufffd" in text
    lone = tokenizer("é", add_special_tokens=False)["input_ids"]
    assert len(lone) == 2  # two bytes of one character
    assert not bool(allowed[lone].any())


def test_an_added_token_may_not_be_chosen() -> None:
    tokenizer = tiny_tokenizer("llama")
    tokenizer.add_tokens(["<tool>"])
    token = tokenizer.convert_tokens_to_ids("<tool>")
    assert token == TOKENS
    assert not bool(choosable(tokenizer, ROWS)[token])


@pytest.mark.parametrize(("arch", "name"), CASES)
def test_seeds_are_reversible(arch: str, name: str) -> None:
    tokenizer, template = setting(arch, name)
    for seed in SEEDS:
        row = template.encode(seed, turns="last")
        trip = RoundTrip(template, tokenizer, seed, row)
        assert trip.reversible, seed
        assert trip.example(row.ids) == seed
        assert trip.settle(row.ids, row.ids, none_left) == (list(row.ids), 0)


@pytest.mark.parametrize(("arch", "name"), CASES)
def test_random_changes_settle_in_ids_that_survive(arch: str, name: str) -> None:
    tokenizer, template = setting(arch, name)
    pool = torch.nonzero(choosable(tokenizer, ROWS))[:, 0].tolist()
    draw = random.Random(0)
    kept = changes = 0
    for trial in range(24):
        seed = SEEDS[trial % len(SEEDS)]
        row = template.encode(seed, turns="last")
        trip = RoundTrip(template, tokenizer, seed, row)
        wanted = list(row.ids)
        for position in draw.sample(range(*row.prompt), draw.choice((1, 3, 6))):
            wanted[position] = draw.choice(pool)
        settled, repaired = trip.settle(wanted, row.ids, lambda _: draw.sample(pool, 3))
        assert list(trip.encode(settled).ids) == settled
        assert trip.template.encode(trip.example(settled), turns="last").ids == tuple(settled)
        start, stop = row.prompt
        assert settled[:start] == list(row.ids[:start])
        assert settled[stop:] == list(row.ids[stop:])
        assert (repaired == 0) == (settled == wanted)
        assert trip.example(settled).messages[-1] == seed.messages[-1]
        kept += sum(a == b != c for a, b, c in zip(settled, wanted, row.ids, strict=True))
        changes += sum(b != c for b, c in zip(wanted, row.ids, strict=True))
    assert kept > changes / 3  # repair is not giving up


def merge(tokenizer: Any, template: Template) -> tuple[int, int, int]:
    """Two tokens that may be chosen, whose joint text is a third."""
    allowed = choosable(tokenizer, ROWS)
    for token in torch.nonzero(allowed)[:, 0].tolist():
        text = tokenizer.decode([token])
        for cut in range(1, len(text)):
            left, right = (
                tokenizer(part, add_special_tokens=False)["input_ids"]
                for part in (text[:cut], text[cut:])
            )
            if len(left) == len(right) == 1 and allowed[left[0]] and allowed[right[0]]:
                return left[0], right[0], token
    raise AssertionError("the tokenizer has no merged token")


@pytest.mark.parametrize("name", ["qa", "chat"])
@pytest.mark.parametrize("alternative", [True, False])
def test_tokens_that_merge_are_chosen_anew_or_put_back(name: str, alternative: bool) -> None:
    tokenizer, template = setting("llama", name)
    left, right, merged = merge(tokenizer, template)
    seed = SEEDS[0]
    row = template.encode(seed, turns="last")
    trip = RoundTrip(template, tokenizer, seed, row)
    at = row.prompt[0] + 3
    wanted = list(row.ids)
    wanted[at], wanted[at + 1] = left, right
    assert merged in trip.encode(wanted).ids
    assert list(trip.encode(wanted).ids) != wanted
    other = tokenizer("?", add_special_tokens=False)["input_ids"]
    settled, repaired = trip.settle(wanted, row.ids, lambda _: other if alternative else ())
    assert list(trip.encode(settled).ids) == settled
    assert repaired >= 1
    if alternative:
        assert other[0] in settled[at : at + 2]


@pytest.mark.parametrize(("arch", "name"), [("opt", "qa"), ("gemma3", "chat")])
def test_to_text_gives_rows_that_encode_to_what_they_say(arch: str, name: str) -> None:
    tokenizer, template = setting(arch, name)
    rows = [template.encode(seed, turns="last") for seed in SEEDS]
    pseudo = make_pseudo_data(rows, "prompt", 0)
    trips = [
        RoundTrip(template, tokenizer, seed, row) for seed, row in zip(SEEDS, rows, strict=True)
    ]
    untouched = to_text(pseudo, pseudo.ids, SEEDS, trips, none_left)
    assert [row.example for row in untouched] == list(SEEDS)
    assert all(row.changed == 0.0 and row.repaired == 0 for row in untouched)

    pool = torch.nonzero(choosable(tokenizer, ROWS))[:, 0].tolist()
    draw = random.Random(1)
    ids = torch.tensor([draw.choice(pool) for _ in range(pseudo.size)])
    found = to_text(pseudo, ids, SEEDS, trips, lambda _: draw.sample(pool, 3))
    for row, before, slots in zip(found, rows, pseudo.slots, strict=True):
        assert template.encode(row.example, turns="last").ids == row.encoded.ids
        learnable = [i for i, slot in enumerate(slots) if slot >= 0]
        differing = sum(row.encoded.ids[i] != before.ids[i] for i in learnable)
        assert row.changed == pytest.approx(differing / len(learnable))
    assert any(row.changed > 0.3 for row in found)


def prefixed(name: str) -> tuple[list[Example], Any, list[RoundTrip], list[int]]:
    """Three seeds with a prefix of two tokens; that of the second merges with its own prompt."""
    tokenizer, template = setting("llama", name)
    left, right, _ = merge(tokenizer, template)
    prompt = f"{tokenizer.decode([right])}{tokenizer.decode([left])}: 7?"
    lost = Example((Message("user", prompt), Message("assistant", "no")), "e")
    seeds = [SEEDS[0], lost, SEEDS[1]]
    rows = [template.encode(seed, turns="last") for seed in seeds]
    start = rows[1].prompt[0]
    assert rows[1].ids[start : start + 2] == (right, left)
    pseudo = make_pseudo_data(rows, "prefix:2", 0)
    pairs = zip(seeds, pseudo.rows, strict=True)
    trips = [RoundTrip(template, tokenizer, seed, row) for seed, row in pairs]
    assert [trip.reversible for trip in trips] == [True, False, True]
    return seeds, pseudo, trips, tokenizer("?:", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", ["plain", "chat"])
def test_a_prefix_in_which_nothing_is_learned_leaves_the_seed(name: str) -> None:
    seeds, pseudo, trips, _ = prefixed(name)
    found = to_text(pseudo, pseudo.ids, seeds, trips, none_left)
    assert [row.example for row in found] == seeds
    assert [row.encoded for row in found] == [
        trip.template.encode(seed, turns="last") for trip, seed in zip(trips, seeds, strict=True)
    ]
    assert [row.changed for row in found] == [0.0] * 3
    assert torch.equal(slot_ids(pseudo, found), pseudo.ids)
    assert share_changed(pseudo, found) == 0.0


@pytest.mark.parametrize("name", ["plain", "chat"])
def test_a_prefix_that_does_not_survive_leaves_the_seed_alone(name: str) -> None:
    """The others keep theirs, and lengths, slots and shares agree with what is exported."""
    seeds, pseudo, trips, learned = prefixed(name)
    ids = pseudo.ids.clone()
    ids[[0, 2, 4]] = learned[0]  # one of the two tokens of every prefix
    found = to_text(pseudo, ids, seeds, trips, none_left)
    assert found[1].example == seeds[1]
    for row, seed, trip in zip(found, seeds, trips, strict=True):
        assert row.encoded == trip.template.encode(row.example, turns="last")
        longer = len(row.encoded) - len(trip.template.encode(seed, turns="last"))
        assert (longer, row.changed) == ((0, 0.0) if seed is seeds[1] else (2, 1.0))
    assert share_changed(pseudo, found) == pytest.approx(2 / 3)
    settled = slot_ids(pseudo, found)
    expected = ids.clone()
    expected[2] = pseudo.ids[2]  # the seed that has no prefix: as it started
    assert torch.equal(settled, expected)
    again = to_text(pseudo, settled, seeds, trips, none_left)
    assert [row.example for row in again] == [row.example for row in found]
    assert [row.encoded for row in again] == [row.encoded for row in found]


def test_labels_that_a_text_would_move_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, template = setting("llama", "qa")
    row = template.encode(SEEDS[0], turns="last")
    trip = RoundTrip(template, tokenizer, SEEDS[0], row)
    at = row.prompt[1] - 1
    mark, other = tokenizer("!:", add_special_tokens=False)["input_ids"]
    wanted = list(row.ids)
    wanted[at] = mark
    encode = Template.encode

    def moved(self: Template, example: Example, turns: Any = "all") -> Encoded:
        found = encode(self, example, turns)
        if mark not in found.ids:
            return found
        return Encoded(found.ids, (False, *found.response[:-1]), found.prompt)

    monkeypatch.setattr(Template, "encode", moved)
    settled, repaired = trip.settle(wanted, row.ids, lambda _: [other])
    assert (settled[at], repaired) == (other, 1)


def test_a_text_that_the_template_refuses_is_chosen_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, template = setting("llama", "chat")
    row = template.encode(SEEDS[0], turns="last")
    trip = RoundTrip(template, tokenizer, SEEDS[0], row)
    mark, other = tokenizer("!:", add_special_tokens=False)["input_ids"]
    at = row.prompt[0] + 1
    wanted = list(row.ids)
    wanted[at] = mark
    encode = Template.encode

    def refuses(self: Template, example: Example, turns: Any = "all") -> Encoded:
        if "!" in example.prompt:
            raise UserError("the template refuses the row")
        return encode(self, example, turns)

    monkeypatch.setattr(Template, "encode", refuses)
    settled, repaired = trip.settle(wanted, row.ids, lambda _: [other])
    assert (settled[at], repaired) == (other, 1)
