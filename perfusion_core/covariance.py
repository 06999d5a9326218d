"""C = E[e eᵀ], the uncentered second moment of text encodings over many captions: the metric of the edit (§4.2, after ROME).

It depends only on the text encoder, so it is estimated once per encoder and kept in a file.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from . import PerfusionError
from .safe_files import read, require, write

FORMAT = "perfusion-covariance"
VERSION = 1
RIDGE = 1e-3
MAX_BYTES = 128 * 2**20
"""Of a file. The widest encoding, of Wan's 14B models, has 5120 numbers, and its covariance takes 100 MiB."""


class Estimate:
    """A streaming estimate of C, summed in float64; memory is O(d²) for any number of captions."""

    def __init__(self, width: int) -> None:
        """Start an empty estimate; `width` is d, the width of an encoding."""
        self.sum = torch.zeros(width, width, dtype=torch.float64)
        self.count = 0

    def add(self, encodings: Tensor) -> None:
        """Add encodings [..., d] of any float dtype, on any device.

        Raises:
            PerfusionError: an encoding contains NaN or infinity.
        """
        flat = encodings.detach().reshape(-1, encodings.shape[-1]).to("cpu", torch.float64)
        if not flat.isfinite().all():
            raise PerfusionError("The text encoder returned NaN or infinity for a caption; load it in a higher precision.")
        self.sum += flat.T @ flat
        self.count += len(flat)

    def finish(self, identity: str) -> "Covariance":
        """Return C for the text encoder with the given identity.

        Raises:
            PerfusionError: fewer encodings than dimensions were added.
        """
        width = len(self.sum)
        if self.count < width:
            raise PerfusionError(
                f"A covariance of width {width} needs captions with at least {width} tokens in total, but only {self.count} were "
                "given; add more captions."
            )
        return Covariance((self.sum / self.count).float(), self.count, identity)


@dataclass(frozen=True)
class Covariance:
    """C of one text encoder.

    Attributes:
        matrix: float32 [d, d], symmetric.
        count: number of token encodings that it averages.
        identity: of the text encoder, as given by the host.
    """

    matrix: Tensor
    count: int
    identity: str

    def regularised(self) -> Tensor:
        """Return C + ridge · mean eigenvalue · I, float64 [d, d].

        Encodings that end in a layer norm of equal weights lie in a hyperplane, so that C alone is singular.
        """
        matrix = self.matrix.double()
        return matrix + RIDGE * matrix.diagonal().mean() * torch.eye(len(matrix), dtype=torch.float64)

    def inverse(self) -> Tensor:
        """Return C⁻¹, the inverse of the regularised C, float64 [d, d].

        Raises:
            PerfusionError: C is not positive definite.
        """
        factor, failed = torch.linalg.cholesky_ex(self.regularised())
        if failed:
            raise PerfusionError(
                "This covariance is not positive definite, so it cannot be the covariance of real encodings; measure it again."
            )
        return torch.cholesky_inverse(factor)

    def condition(self) -> float:
        """Return the condition number of the regularised C."""
        values = torch.linalg.eigvalsh(self.regularised())
        return float(values[-1] / values[0])

    def save(self, path: Path) -> None:
        """Write the file atomically; raise PerfusionError if it cannot be written."""
        metadata = {"format": FORMAT, "version": str(VERSION), "identity": self.identity, "count": str(self.count)}
        write(path, {"covariance": self.matrix.float()}, metadata)

    @classmethod
    def load(cls, path: Path) -> "Covariance":
        """Read and validate a file.

        Raises:
            PerfusionError: the file is not a complete, finite covariance of a supported version.
        """
        tensors, metadata = read(path, MAX_BYTES)
        require(metadata.get("format") == FORMAT, path, "it is not a Perfusion covariance")
        version = metadata.get("version", "")[:20]
        require(version == str(VERSION), path, f"its format version is {version!r}, not {VERSION}")
        matrix = tensors.get("covariance")
        square = matrix is not None and matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1] > 0
        require(len(tensors) == 1 and square and matrix.dtype == torch.float32, path, "it should contain one square float32 matrix")
        require(metadata.get("count", "").isdecimal() and len(metadata["count"]) < 19, path, "its count of encodings is missing")
        return cls(matrix, int(metadata["count"]), metadata.get("identity", ""))


def probe(inverse: Tensor, target_input: Tensor) -> Tensor:
    """Return C⁻¹ i* / ‖i*‖², float32 [d], whose dot product with e is sim(e) (§4.2).

    Args:
        inverse: C⁻¹, float64 [d, d].
        target_input: i*, [d].
    """
    measured = inverse @ target_input.double()
    return (measured / (measured @ target_input.double())).float()
