"""The streaming covariance against numpy in float64, and its file against every way of being wrong."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from perfusion_core import PerfusionError
from perfusion_core.covariance import FORMAT, MAX_BYTES, RIDGE, VERSION, Covariance, Estimate, probe

torch.set_num_threads(1)  # with tensors this small, threads only wait for each other

D = 20
IDENTITY = "clip_l-0123abcd"


@pytest.fixture
def encodings() -> Tensor:
    """Encodings [15, 11, D] far from centred, of very different size along their directions."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(15, 11, D, generator=generator) * torch.logspace(-1.5, 1, D) + torch.randn(D, generator=generator)


@pytest.fixture
def covariance(encodings: Tensor) -> Covariance:
    estimate = Estimate(D)
    estimate.add(encodings)
    return estimate.finish(IDENTITY)


def one_shot(encodings: Tensor) -> np.ndarray:
    """E[e eᵀ] by numpy."""
    flat = encodings.reshape(-1, encodings.shape[-1]).double().numpy()
    return np.einsum("nd,ne->de", flat, flat) / len(flat)


# ---- the estimate --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [[15], [1] * 15, [7, 8], [2, 3, 10], [14, 1]])
def test_any_split_into_batches_gives_the_one_shot_moment(encodings: Tensor, split: list[int]) -> None:
    estimate = Estimate(D)
    for part in encodings.split(split):
        estimate.add(part)
    got = estimate.finish(IDENTITY)
    np.testing.assert_allclose((estimate.sum / estimate.count).numpy(), one_shot(encodings), rtol=1e-13, atol=1e-13)
    assert torch.equal(got.matrix, torch.from_numpy(one_shot(encodings)).float())
    assert (got.count, got.identity, got.matrix.dtype) == (165, IDENTITY, torch.float32)


def test_sums_are_kept_in_float64() -> None:
    estimate = Estimate(1)
    estimate.add(torch.tensor([[4096.0]]))
    for _ in range(50):
        estimate.add(torch.full((100, 1), 0.5))
    # Each 0.25 would vanish beside 2^24 in float32.
    assert float(estimate.sum) == 4096.0**2 + 5000 * 0.25


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_takes_any_float_type_and_shape(encodings: Tensor, dtype: torch.dtype) -> None:
    estimate = Estimate(D)
    given = encodings.to(dtype).requires_grad_()
    estimate.add(given)
    estimate.add(given[0, 0])
    wanted = (one_shot(given.detach()) * 165 + one_shot(given[0, 0].detach())) / 166
    np.testing.assert_allclose((estimate.sum / estimate.count).numpy(), wanted, rtol=1e-12, atol=1e-12)
    assert not estimate.sum.requires_grad


def test_the_state_does_not_grow_with_the_captions(encodings: Tensor) -> None:
    estimate = Estimate(D)

    def held() -> int:
        assert set(vars(estimate)) == {"sum", "count"} and isinstance(estimate.count, int)
        return estimate.sum.untyped_storage().nbytes()

    assert held() == D * D * 8
    for _ in range(30):
        estimate.add(encodings)
        assert held() == D * D * 8
    assert estimate.count == 30 * 165


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_refuses_what_is_not_finite_and_keeps_what_it_had(encodings: Tensor, bad: float) -> None:
    estimate = Estimate(D)
    estimate.add(encodings)
    before = estimate.sum.clone()
    broken = encodings.clone()
    broken[3, 4, 5] = bad
    with pytest.raises(PerfusionError, match="NaN or infinity"):
        estimate.add(broken)
    assert torch.equal(estimate.sum, before) and estimate.count == 165


def test_refuses_fewer_encodings_than_dimensions(encodings: Tensor) -> None:
    estimate = Estimate(D)
    estimate.add(encodings.reshape(-1, D)[: D - 1])
    with pytest.raises(PerfusionError, match=f"captions with at least {D} tokens in total, but only {D - 1}"):
        estimate.finish(IDENTITY)
    estimate.add(encodings[0, 0])
    assert estimate.finish(IDENTITY).count == D


# ---- the inverse ---------------------------------------------------------------------------------------------------------


def test_the_inverse_times_the_regularised_matrix_is_the_identity(covariance: Covariance) -> None:
    inverse = covariance.inverse()
    assert inverse.dtype == torch.float64
    unit = inverse @ covariance.regularised()
    assert (unit - torch.eye(D, dtype=torch.float64)).abs().max() < 1e-8
    assert (inverse - inverse.T).abs().max() < 1e-8 * inverse.abs().max()


def test_the_ridge_is_a_share_of_the_mean_eigenvalue(covariance: Covariance) -> None:
    plain = covariance.matrix.double().numpy()
    wanted = plain + RIDGE * np.linalg.eigvalsh(plain).mean() * np.eye(D)
    np.testing.assert_allclose(covariance.regularised().numpy(), wanted, rtol=1e-12, atol=1e-12)


def test_the_condition_number_is_numpys(covariance: Covariance) -> None:
    wanted = np.linalg.cond(covariance.regularised().numpy())
    assert covariance.condition() == pytest.approx(wanted, rel=1e-9)
    assert 10 < wanted < np.linalg.cond(covariance.matrix.double().numpy())


def test_encodings_in_a_hyperplane_still_have_an_inverse() -> None:
    given = torch.randn(200, D, generator=torch.Generator().manual_seed(1))
    given -= given.mean(-1, keepdim=True)
    estimate = Estimate(D)
    estimate.add(given)
    covariance = estimate.finish(IDENTITY)
    unit = covariance.inverse() @ covariance.regularised()
    assert (unit - torch.eye(D, dtype=torch.float64)).abs().max() < 1e-8
    assert covariance.condition() < 1e5


@pytest.mark.parametrize("matrix", [-torch.eye(D), torch.zeros(D, D), torch.diag(torch.tensor([1.0] * (D - 1) + [-1.0]))])
def test_what_is_not_positive_definite_has_none(matrix: Tensor) -> None:
    with pytest.raises(PerfusionError, match="not positive definite"):
        Covariance(matrix, D, IDENTITY).inverse()


def test_the_probe_gives_a_target_input_the_similarity_one(covariance: Covariance, encodings: Tensor) -> None:
    inverse = covariance.inverse()
    for target in encodings[:, 0]:
        found = probe(inverse, target)
        assert found.dtype == torch.float32
        assert float(found @ target) == pytest.approx(1, abs=1e-5)
        other = encodings[3, 7].double()
        wanted = (target.double() @ inverse @ other) / (target.double() @ inverse @ target.double())
        assert float(found.double() @ other) == pytest.approx(float(wanted), rel=1e-5, abs=1e-6)
    # Any scale of C cancels.
    torch.testing.assert_close(probe(inverse * 1e6, encodings[0, 0]), probe(inverse, encodings[0, 0]))


# ---- its file ------------------------------------------------------------------------------------------------------------


def refused(path: Path, says: str = "") -> None:
    """The file is refused in one sentence that names it."""
    with pytest.raises(PerfusionError, match=says) as caught:
        Covariance.load(path)
    text = str(caught.value)
    assert text.startswith(path.name) and len(text) < 400 and text.isprintable()


def written(path: Path, tensors: dict[str, Tensor] | None = None, **metadata: str | None) -> Path:
    """A file with something changed."""
    told = {"format": FORMAT, "version": str(VERSION), "identity": IDENTITY, "count": "165"} | metadata
    given = {"covariance": torch.eye(D)} if tensors is None else tensors
    save_file(given, path, {k: v for k, v in told.items() if v is not None})
    return path


def test_a_saved_covariance_comes_back_exactly(covariance: Covariance, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "c.safetensors"
    covariance.save(path)
    back = Covariance.load(path)
    assert torch.equal(back.matrix, covariance.matrix) and back.matrix.dtype == torch.float32
    assert (back.count, back.identity) == (covariance.count, covariance.identity)
    assert [each.name for each in path.parent.iterdir()] == ["c.safetensors"]
    back.save(path)
    again = Covariance.load(path)
    assert torch.equal(again.matrix, back.matrix) and (again.count, again.identity) == (back.count, back.identity)


def test_the_identity_is_kept_whatever_it_is(covariance: Covariance, tmp_path: Path) -> None:
    for identity in ("", 'a "quoted"\n name', "größe ∑ 🧸", "x" * 3000):
        Covariance(covariance.matrix, 165, identity).save(tmp_path / "c.safetensors")
        assert Covariance.load(tmp_path / "c.safetensors").identity == identity


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"matrix": torch.eye(D)},
        {"covariance": torch.eye(D), "more": torch.ones(1)},
        {"covariance": torch.ones(D)},
        {"covariance": torch.ones(D, D + 1)},
        {"covariance": torch.ones(2, D, D)},
        {"covariance": torch.ones(0, 0)},
        {"covariance": torch.tensor(1.0)},
        {"covariance": torch.eye(D).double()},
        {"covariance": torch.eye(D).half()},
    ],
    ids=["none", "name", "extra", "vector", "oblong", "cube", "empty", "scalar", "float64", "half"],
)
def test_refuses_another_matrix(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    refused(written(tmp_path / "c.safetensors", tensors), "one square float32 matrix")


def test_refuses_numbers_that_are_not_finite_or_not_floating(tmp_path: Path) -> None:
    for bad in (float("nan"), float("inf")):
        matrix = torch.eye(D)
        matrix[2, 3] = bad
        refused(written(tmp_path / "c.safetensors", {"covariance": matrix}), "contains NaN or infinity")
    for dtype in (torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2):
        refused(written(tmp_path / "c.safetensors", {"covariance": torch.eye(D).to(dtype)}), "not floating-point")


@pytest.mark.parametrize("version", ["0", "2", "1.0", " 1", "", None, "1\n2", "9" * 5000])
def test_refuses_another_version(version: str | None, tmp_path: Path) -> None:
    refused(written(tmp_path / "c.safetensors", version=version), "its format version is")


@pytest.mark.parametrize("kind", ["perfusion", "", None, "perfusion-covariance "])
def test_refuses_another_format(kind: str | None, tmp_path: Path) -> None:
    refused(written(tmp_path / "c.safetensors", format=kind), "not a Perfusion covariance")


@pytest.mark.parametrize("count", [None, "", "-1", "1.5", "1e9", "²", "½", "0x10", " 12", "1_000", "9" * 19, "9" * 9000, "none"])
def test_refuses_a_count_that_is_no_number(count: str | None, tmp_path: Path) -> None:
    refused(written(tmp_path / "c.safetensors", count=count), "count of encodings")


def test_refuses_files_that_are_cut_off_or_of_another_kind(covariance: Covariance, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    covariance.save(path)
    whole = path.read_bytes()
    for length in [*range(0, 300, 7), *range(300, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        refused(path, "not a complete safetensors file")
    for content in (whole + b"\0", b"PK\x03\x04" + whole, struct.pack("<Q", 2**63) + whole[8:], b"{}" * 600):
        path.write_bytes(content)
        refused(path, "not a complete safetensors file")
    torch.save({"covariance": covariance.matrix}, path)
    refused(path, "not a complete safetensors file")
    refused(tmp_path, "no such file")
    refused(tmp_path / "missing.safetensors", "no such file")
    with open(path, "wb") as file:
        file.truncate(MAX_BYTES + 1)
    refused(path, "more than the limit of")
