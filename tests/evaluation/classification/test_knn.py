# SPDX-License-Identifier: Apache-2.0
"""Nearest neighbours of whole images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.nn.functional import normalize

import rekindle.evaluation.classification.knn
from rekindle.core.errors import RequestError
from rekindle.data.labelled.classification import ClassFolder
from rekindle.evaluation.classification.knn import Knn, hits, nearest_images, standardised_columns, votes
from rekindle.evaluation.classification.options import KnnOptions
from rekindle.evaluation.features.extractors import FeatureExtractor
from rekindle.evaluation.protocol import TrainingPart
from rekindle.networks.tokens import Tokens
from tests.evaluation.pictures import ClassTokenExtractor, ConstantExtractor, PatchOnlyExtractor, write_classes

SMALL = KnnOptions(k=3, other_k=(1, 99), size_px=16)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def predicted(cosines: list[float], labels: list[int], temperature: float) -> int:
    return int(votes(torch.tensor([cosines]), torch.tensor([labels]), 2, temperature).argmax())


def test_one_near_neighbour_beats_two_farther_ones_at_a_low_temperature() -> None:
    """MMC, property 15."""
    scores = votes(torch.tensor([[0.9, 0.8, 0.8]]), torch.tensor([[0, 1, 1]]), 2, 0.07)[0]
    assert scores.tolist() == pytest.approx([1.0, 0.479], abs=5e-4)
    scores = votes(torch.tensor([[0.9, 0.8, 0.8]]), torch.tensor([[0, 1, 1]]), 2, 1.0)[0]
    assert (scores * np.exp(0.9)).tolist() == pytest.approx([2.460, 2 * 2.226], abs=1e-3)
    assert predicted([0.9, 0.8, 0.8], [0, 1, 1], 0.07) == 0
    assert predicted([0.9, 0.8, 0.8], [0, 1, 1], 1.0) == 1


def test_equal_similarities_give_the_majority() -> None:
    assert predicted([0.5, 0.5, 0.5], [1, 0, 1], 0.07) == 1


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (11, 0.5)])
def test_classes_are_those_of_scikit_learn(k: int, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle weighs cosine distances by exp((1 - distance) / temperature)."""
    monkeypatch.setattr(rekindle.evaluation.classification.knn, "SIMILARITIES", 200)  # several blocks
    train, test = normalize(noise(60, 6)), normalize(noise(40, 6, seed=1))
    labels = torch.arange(60) % 4
    oracle = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1 - d) / temperature))
    oracle.fit(train.numpy(), labels.numpy())
    cosines, index = nearest_images(test, train, k)
    scores = votes(cosines, labels[index], 4, temperature)
    assert scores.argmax(dim=1).tolist() == oracle.predict(test.numpy()).tolist()
    shares = scores.where(scores.isfinite(), 0.0)
    assert (shares / shares.sum(dim=1, keepdim=True)).numpy() == pytest.approx(
        oracle.predict_proba(test.numpy()), abs=1e-4
    )


def test_classes_without_a_vote_are_never_hits() -> None:
    scores = votes(torch.tensor([[0.9, 0.8]]), torch.tensor([[0, 1]]), 4, 0.07)
    assert [hits(scores, torch.tensor([c]), 4).tolist() for c in range(4)] == [[1.0], [1.0], [0.0], [0.0]]
    assert [hits(scores, torch.tensor([c]), 1).tolist() for c in range(2)] == [[1.0], [0.0]]


def test_renaming_classes_renames_predictions() -> None:
    cosines, index = nearest_images(normalize(noise(9, 4)), normalize(noise(20, 4, seed=1)), 7)
    labels, renamed = torch.arange(20) % 3, torch.tensor([2, 0, 1])
    plain = votes(cosines, labels[index], 3, 0.07).argmax(dim=1)
    assert torch.equal(votes(cosines, renamed[labels][index], 3, 0.07).argmax(dim=1), renamed[plain])


def test_standardised_features_have_the_training_mean_and_deviation_taken_out() -> None:
    train, test = 3 + 2 * noise(50, 3), noise(5, 3, seed=1)
    a, b = standardised_columns(train, test)
    assert torch.allclose(a.mean(dim=0), torch.zeros(3), atol=1e-5)
    assert torch.allclose(a.std(dim=0, correction=0), torch.ones(3), atol=1e-5)
    assert torch.allclose(b * train.std(dim=0, correction=0) + train.mean(dim=0), test, atol=1e-5)
    assert bool(standardised_columns(torch.ones(4, 2), torch.ones(1, 2))[0].isfinite().all())


def made(
    root: Path, config: KnnOptions = SMALL, extractor: FeatureExtractor | None = None, train: str = "train"
) -> Knn:
    data = ClassFolder(root, train), ClassFolder(root, "val")
    return Knn(config, extractor or ClassTokenExtractor(), *data)


def test_separated_classes_are_all_found(tmp_path: Path) -> None:
    protocol = made(write_classes(tmp_path))
    protocol.check()
    protocol.prepare()
    found = protocol.run(0)
    assert found.metrics["top-1"] == found.metrics["top-1/hyb k=1"] == 1.0
    assert next(iter(found.metrics)) == "top-1"
    assert found.counts == {"images": 15, "train_images": 20, "classes": 5}
    ks = {1, 3}  # 99 neighbours do not exist
    others = {f"top-{t}/{d} k={k}" for t in (1, 5) for d in ("cls", "pat", "hyb") for k in ks} - {
        "top-1/cls k=3",
        "top-5/cls k=3",
    }
    assert set(found.metrics) == {"top-1", "top-5"} | others


def test_the_memory_itself_is_remembered(tmp_path: Path) -> None:
    protocol = made(write_classes(tmp_path), KnnOptions(k=1, other_k=(), size_px=16), train="val")
    protocol.prepare()
    assert protocol.run(0).metrics["top-1"] == 1.0


def test_constant_features_are_right_by_chance(tmp_path: Path) -> None:
    protocol = made(write_classes(tmp_path), KnnOptions(k=20, other_k=(), size_px=16), ConstantExtractor())
    protocol.prepare()
    assert protocol.run(0).metrics["top-1"] == pytest.approx(0.2)


def test_a_seed_remembers_its_own_share(tmp_path: Path) -> None:
    protocol = made(
        write_classes(tmp_path, num_train=8), KnnOptions(k=2, other_k=(), every_descriptor=False, size_px=16)
    )
    protocol.part = TrainingPart(0.25)
    protocol.prepare()
    found = [protocol.run(s) for s in range(4)]
    assert found[0].counts["train_images"] == 10
    assert set(found[0].metrics) == {"top-1", "top-5"}
    assert len({f.metrics["top-1"] for f in found}) > 1


def test_standardising_helps_features_with_a_large_common_part(tmp_path: Path) -> None:
    class Shifted(ClassTokenExtractor):
        """The class token lies far from the origin, so all cosines are near 1."""

        def extract(self, images: Tensor, blocks: Sequence[int] = (-1,)) -> list[Tokens]:
            found = super().extract(images, blocks)
            return [Tokens(t.class_token * 1e-3 + 50.0, t.registers, t.patches) for t in found]

    values = []
    for standardise in (False, True):
        config = KnnOptions(k=3, other_k=(), every_descriptor=False, standardise=standardise, size_px=16)
        protocol = made(write_classes(tmp_path), config, Shifted())
        protocol.prepare()
        values.append(protocol.run(0).metrics["top-1"])
    assert values[1] == 1.0 > values[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 21}, r"knn\.k = 21 asks for more neighbours than there are training images \(20\)"),
        ({"size_px": 20}, r"knn\.size_px = 20 is not a multiple"),
    ],
)
def test_requests_that_cannot_be_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        made(write_classes(tmp_path), SMALL.model_copy(update=change)).check()


def test_the_class_token_is_refused_where_there_is_none(tmp_path: Path) -> None:
    root = write_classes(tmp_path)
    with pytest.raises(RequestError, match=r"knn\.descriptor = cls needs a class token"):
        made(root, extractor=PatchOnlyExtractor()).check()
    protocol = made(root, SMALL.model_copy(update={"descriptor": "pat"}), PatchOnlyExtractor())
    protocol.check()
    protocol.prepare()
    assert not any("cls" in name or "hyb" in name for name in protocol.run(0).metrics)
