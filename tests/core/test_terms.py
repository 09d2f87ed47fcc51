import torch

from biofound.core.losses import SumCount
from biofound.core.terms import Terms


def some(seed):
    random = torch.Generator().manual_seed(seed)
    return Terms(
        SumCount(torch.rand(2, generator=random), torch.rand(2, generator=random) + 1),
        SumCount(torch.rand(3, 2, generator=random), torch.rand(3, 2, generator=random) + 1),
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
