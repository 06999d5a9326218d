"""C = E[e eᵀ], the uncentered second moment of text encodings over many captions: the metric of the edit (§4.2, after ROME).

It depends on the text encoder alone, so it is estimated once for each and kept in a file.
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
MAX_BYTES = 80 * 2**20


class Estimate:
    """A streaming estimate of C: float64 sums, memory O(d²) for any number of captions."""

    def __init__(self, width: int) -> None:
        """Start with nothing; `width` is d, the width of an encoding."""
        self.sum = torch.zeros(width, width, dtype=torch.float64)
        self.count = 0

    def add(self, encodings: Tensor) -> None:
        """Take in encodings [..., d] of any float dtype, on any device.

        Raises:
            PerfusionError: an encoding holds NaN or infinity.
        """
        flat = encodings.detach().reshape(-1, encodings.shape[-1]).to("cpu", torch.float64)
        if not flat.isfinite().all():
            raise PerfusionError("The text encoder gave NaN or infinity for a caption; load it in a higher precision.")
        self.sum += flat.T @ flat
        self.count += len(flat)

    def finish(self, identity: str) -> "Covariance":
        """C for the text encoder of the given identity.

        Raises:
            PerfusionError: there were fewer encodings than dimensions.
        """
        width = len(self.sum)
        if self.count < width:
            raise PerfusionError(
                f"A covariance of width {width} needs at least {width} tokens of captions, {self.count} came; give more captions."
            )
        return Covariance((self.sum / self.count).float(), self.count, identity)


@dataclass(frozen=True)
class Covariance:
    """C of one text encoder.

    Attributes:
        matrix: float32 [d, d], symmetric.
        count: how many token encodings it averages.
        identity: of the text encoder, as the host tells it.
    """

    matrix: Tensor
    count: int
    identity: str

    def regularised(self) -> Tensor:
        """C + ridge · mean eigenvalue · I, float64 [d, d].

        Encodings that end in a layer norm of equal weights lie in a hyperplane, where C alone has no inverse.
        """
        matrix = self.matrix.double()
        return matrix + RIDGE * matrix.diagonal().mean() * torch.eye(len(matrix), dtype=torch.float64)

    def inverse(self) -> Tensor:
        """C⁻¹ of the regularised C, float64 [d, d].

        Raises:
            PerfusionError: C is not positive definite.
        """
        factor, failed = torch.linalg.cholesky_ex(self.regularised())
        if failed:
            raise PerfusionError("This covariance is not positive definite, so it is not one of encodings; make it anew.")
        return torch.cholesky_inverse(factor)

    def condition(self) -> float:
        """Condition number of the regularised C."""
        values = torch.linalg.eigvalsh(self.regularised())
        return float(values[-1] / values[0])

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all; raises PerfusionError where the disk will not take it."""
        metadata = {"format": FORMAT, "version": str(VERSION), "identity": self.identity, "count": str(self.count)}
        write(path, {"covariance": self.matrix.float()}, metadata)

    @classmethod
    def load(cls, path: Path) -> "Covariance":
        """Read and check a file.

        Raises:
            PerfusionError: the file is not a whole, finite covariance of a version that this code knows.
        """
        tensors, metadata = read(path, MAX_BYTES)
        require(metadata.get("format") == FORMAT, path, "it is not a Perfusion covariance")
        version = metadata.get("version", "")[:20]
        require(version == str(VERSION), path, f"its format version is {version!r}, not {VERSION}")
        matrix = tensors.get("covariance")
        square = matrix is not None and matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1] > 0
        require(len(tensors) == 1 and square and matrix.dtype == torch.float32, path, "it should hold one square float32 matrix")
        require(metadata.get("count", "").isdecimal() and len(metadata["count"]) < 19, path, "its count of encodings is missing")
        return cls(matrix, int(metadata["count"]), metadata.get("identity", ""))


def probe(inverse: Tensor, target_input: Tensor) -> Tensor:
    """C⁻¹ i* / ‖i*‖², float32 [d]: sim(e) is its product with e (§4.2).

    Args:
        inverse: C⁻¹, float64 [d, d].
        target_input: i*, [d].
    """
    measured = inverse @ target_input.double()
    return (measured / (measured @ target_input.double())).float()
