import pytest
import torch

from biofound.core.losses import SumCount
from biofound.core.terms import Terms


def some(seed):
    random = torch.Generator().manual_seed(seed)
    return Terms(
        SumCount(torch.rand(2, generator=random), torch.rand(2, generator=random) + 1),
        SumCount(torch.rand(3, 2, generator=random), torch.rand(3, 2, generator=random) + 1),
        SumCount(torch.rand(2, generator=random), torch.rand(2, generator=random) + 1),
    )


def test_terms_pack_and_unpack_to_the_same_loss():
    terms = some(0)
    again = Terms.unpacked(terms.packed(), channels=2, resolutions=3)
    assert again.total(stft_weight=0.3).item() == terms.total(stft_weight=0.3).item() or torch.isclose(
        again.total(stft_weight=0.3), terms.total(stft_weight=0.3).double(), rtol=1e-6
    )
    assert torch.equal(again.packed(), terms.packed())


def test_parts_counted_as_the_whole_add_up_to_its_loss():
    one, other = some(1), some(2)
    whole = one + other
    parts = sum(part.counted_as(whole).total(stft_weight=0.3) for part in (one, other))
    assert torch.isclose(parts, whole.total(stft_weight=0.3), rtol=1e-6)


def test_no_terms_add_nothing_and_lose_nothing():
    zero = Terms.zero(channels=2, resolutions=3, device=torch.device("cpu"))
    assert zero.total(stft_weight=0.3).item() == 0
    assert torch.equal((zero + some(0)).packed(), some(0).packed())


def test_the_global_and_rhythm_terms_count_by_their_weights_and_not_at_all_at_zero():
    terms = some(0)
    plain = terms.total(stft_weight=0.3)
    assert torch.equal(terms.total(stft_weight=0.3, rhythm_weights=(0.0, 0.0)), plain)
    global_term, rhythm_term = (terms.rhythm.total / terms.rhythm.count).tolist()
    expected = plain.item() + 0.3 * global_term + 0.1 * rhythm_term
    assert terms.total(stft_weight=0.3, rhythm_weights=(0.3, 0.1)).item() == pytest.approx(expected)
    losses = terms.losses(stft_weight=0.3, rhythm_weights=(0.3, 0.1), channels=("PPG", "ECG"))
    assert (losses.global_term, losses.rhythm_term) == pytest.approx((global_term, rhythm_term))
