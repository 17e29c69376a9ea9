"""p-values by category keep their promise in each, and no claim of a sender's makes a scan look calmer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detectors.calibration import Guarantee, fewest
from detectors.errors import InputError, TooFewError
from detectors.mondrian import Category, Mondrian, Taxonomy

CT, MR, US = ("CT", "ACME"), ("MR", "ACME"), ("US", "OTHER")
BY = ("modality", "manufacturer")


def clean(category: Category, count: int, seed: int = 0) -> Tensor:
    """Statistics of clean scans; each kind has a level of its own, MR the loudest."""
    level = {CT: 0.0, MR: 3.0, US: -2.0}[category]
    return torch.randn(count, generator=torch.Generator().manual_seed(seed + len(category[0]))) + level


def fitted(counts: dict[Category, int], fpr: float = 0.05, seed: int = 0, **options) -> Mondrian:
    statistics = torch.cat([clean(category, count, seed) for category, count in counts.items()])
    categories = [category for category, count in counts.items() for _ in range(count)]
    return Mondrian.fit(BY, categories, {"twin": statistics, "ensemble": statistics}, fpr, **options)


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.tuples(*[st.integers(20, 400)] * 3),
    seed=st.integers(0, 10_000),
    claims=st.lists(st.sets(st.sampled_from([CT, MR, US]), min_size=1), min_size=8, max_size=8),
)
def test_p_values_are_at_most_one_and_the_smallest_of_what_is_claimed(
    sizes: tuple[int, int, int], seed: int, claims: list[set[Category]]
) -> None:
    mondrian = fitted(dict(zip((CT, MR, US), sizes, strict=True)), seed=seed)
    statistics = torch.linspace(-6, 8, 8)

    p_value = mondrian.p_value("ensemble", statistics, claims)

    assert 0 < float(p_value.min()) <= float(p_value.max()) <= 1
    for k, claimed in enumerate(claims):
        alone = [float(mondrian.p_value("ensemble", statistics[k : k + 1], [[each]])) for each in claimed]
        assert float(p_value[k]) == min(alone)
        more = mondrian.p_value("ensemble", statistics[k : k + 1], [{CT, MR, US}])
        assert float(more) <= float(p_value[k])  # whoever leaves more open gains nothing


def test_what_is_drawn_on_beyond_the_ranks_is_the_smallest_of_what_is_claimed_too() -> None:
    mondrian = fitted({CT: 300, MR: 300})
    loud = torch.tensor([9.0])
    ct, mr, both = (mondrian.p_value("ensemble", loud, [claims], beyond=True) for claims in ([CT], [MR], [CT, MR]))
    assert float(both) == float(ct) < float(mr)
    assert float(ct) < float(mondrian.p_value("ensemble", loud, [[CT]]))


@settings(deadline=None, max_examples=40)
@given(
    shares=st.tuples(*[st.floats(0.01, 1)] * 3), sizes=st.tuples(*[st.integers(20, 900)] * 3),
    alpha=st.floats(0.001, 0.999),
)  # fmt: skip
def test_p_values_are_super_uniform_in_each_category_and_so_for_any_mix_of_them(
    shares: tuple[float, ...], sizes: tuple[int, ...], alpha: float
) -> None:
    """On average over calibration sets a new clean statistic falls with equal chance into each of the n + 1 gaps."""
    fpr = 0.05
    mondrian = fitted(dict(zip((CT, MR, US), sizes, strict=True)), fpr=fpr)
    chances = []
    for category, size in zip((CT, MR, US), sizes, strict=True):
        table = mondrian.tables[category]["ensemble"]
        assert table.size == size
        assert (table.guarantee is Guarantee.CONFIDENT) == (size >= fewest(fpr, Guarantee.CONFIDENT))
        edges = torch.cat([torch.tensor([-1e9]), clean(category, size).sort().values])
        gaps = torch.nextafter(edges, torch.tensor(torch.inf))  # one statistic from each gap
        p_value = mondrian.p_value("ensemble", gaps, [[category]] * (size + 1))
        chances.append(float((p_value <= alpha).sum()) / (size + 1))

    assert max(chances) <= alpha + 1e-9
    assert sum(share * chance for share, chance in zip(shares, chances, strict=True)) / sum(shares) <= alpha + 1e-9


def test_each_category_keeps_the_rate_that_one_threshold_for_all_breaks() -> None:
    """Half of the loud kind would be flagged if it were judged by the calm one's threshold."""
    mondrian = fitted({CT: 600, MR: 600})
    for category in (CT, MR):
        fresh = clean(category, 4000, seed=99)
        flagged = mondrian.p_value("ensemble", fresh, [[category]] * len(fresh)) <= 0.05
        assert float(flagged.float().mean()) < 0.06
    fresh = clean(MR, 4000, seed=99)
    assert float((mondrian.p_value("ensemble", fresh, [[CT]] * len(fresh)) <= 0.05).float().mean()) > 0.5


def test_claiming_the_loud_kind_hides_no_attack_on_the_calm_one() -> None:
    mondrian = fitted({CT: 600, MR: 600})
    attacked = torch.tensor([3.5])  # loud for a CT, ordinary for an MR
    assert float(mondrian.p_value("ensemble", attacked, [[MR]])) > 0.05
    assert float(mondrian.p_value("ensemble", attacked, [[CT, MR]])) < 0.01
    assert float(mondrian.p_value("ensemble", attacked, None)) < 0.01


def test_a_kind_that_was_asked_for_and_has_too_few_scans_is_refused_by_name() -> None:
    with pytest.raises(TooFewError, match=r"modality 'US', manufacturer 'OTHER': 18 clean scans, .* needs 19, 59 for"):
        fitted({CT: 100, US: 18}, asked=[CT, US])
    with pytest.raises(TooFewError, match="no category has the 19"):
        fitted({US: 18})


def test_a_kind_with_too_few_scans_is_left_out_and_has_no_p_value() -> None:
    mondrian = fitted({CT: 100, US: 18})
    assert set(mondrian.tables) == {CT}
    with pytest.raises(InputError, match=r"'US'.* is not calibrated"):
        mondrian.p_value("ensemble", torch.zeros(1), [[US]])
    with pytest.raises(InputError, match="no calibrated category"):
        mondrian.p_value("ensemble", torch.zeros(1), [[]])


@pytest.mark.parametrize(("counts", "guarantee"), [((59, 59), "confident"), ((59, 58), "marginal")])
def test_the_guarantee_is_that_of_the_weakest_category(counts: tuple[int, int], guarantee: str) -> None:
    assert fitted(dict(zip((CT, MR), counts, strict=True))).guarantee.value == guarantee


def test_what_is_known_of_a_scan_narrows_what_it_may_be() -> None:
    taxonomy = fitted({CT: 60, MR: 60, US: 60}).taxonomy
    assert taxonomy.claimable({}) == (CT, MR, US)
    assert taxonomy.claimable({"manufacturer": "ACME"}) == (CT, MR)
    assert taxonomy.claimable({"manufacturer": "ACME", "modality": "MR", "source": "anyone"}) == (MR,)
    assert taxonomy.claimable({"modality": "XA"}) == ()


def test_calibrations_survive_their_state_and_the_manifest() -> None:
    mondrian = fitted({CT: 70, MR: 60})
    again = Mondrian.from_state(mondrian.state())
    some = torch.linspace(-3, 6, 50)
    for claims in (None, [[MR]] * 50):
        assert torch.equal(again.p_value("twin", some, claims), mondrian.p_value("twin", some, claims))
    assert Taxonomy.of(mondrian.taxonomy.document()) == mondrian.taxonomy == again.taxonomy


@pytest.mark.parametrize("attributes", [(), ("patient",), ("source", "source")])
def test_scans_are_told_apart_by_what_can_be_vouched_for_alone(attributes: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="told apart by some of modality, manufacturer, source"):
        Taxonomy(attributes, {("x",) * len(attributes): 100})
