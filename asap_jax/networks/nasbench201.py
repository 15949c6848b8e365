"""Tables of trained architectures, to follow a search by without training anything."""

import csv
import functools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from pathlib import Path

from asap_jax.networks.genotypes import Genotype


class NASBench201(Mapping):
    """Accuracies of NAS-Bench-201's cells, read from a CSV file that the user has.

    The file's first line names its columns; one of them, `architecture`, holds the cells' strings
    ("|nor_conv_3x3~0|+|..."), the others numbers, in the file's own units. A row a cell.

        table = NASBench201("nasbench201.csv")
        table["|avg_pool_3x3~0|+|...|"]  # {"cifar10_valid": 84.9, "cifar10_test": 88.1}
        table.worse("|avg_pool_3x3~0|+|...|")  # {"cifar10_valid": 71.3, "cifar10_test": 70.2}, %

    Args:
      path: the file.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is no such table; names the line.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            names = [name for name in rows.fieldnames or () if name != "architecture"]
            if "architecture" not in (rows.fieldnames or ()) or not names:
                raise ValueError(
                    f"{path}: the first line has to name the column architecture and one or more "
                    f"columns of accuracies, got {rows.fieldnames}"
                )
            self._rows: dict[str, dict[str, float]] = {}
            for row in rows:
                try:
                    cell = _canonical(row["architecture"])
                    self._rows[cell] = {name: _number(row[name]) for name in names}
                except (ValueError, TypeError) as error:
                    raise ValueError(f"{path}, line {rows.line_num}: {error}") from error

    def __getitem__(self, cell: str | Genotype) -> dict[str, float]:
        """{column: value} of an architecture string or a genotype; KeyError if it is not there."""
        if isinstance(cell, Genotype):
            name = cell.architecture_string()
            if name is None:
                raise KeyError("the genotype is not a cell of NAS-Bench-201")
            return self._rows[name]
        try:
            return self._rows[_canonical(cell)]
        except ValueError as error:
            raise KeyError(str(error)) from error

    def worse(self, cell: str | Genotype) -> dict[str, float]:
        """{column: the share, in %, of the table's cells below this one's value; ties count half}.

        50 in the mean for cells drawn from the table. KeyError as for `[]`.
        """
        return {
            column: 50 * (bisect_left(values, value) + bisect_right(values, value)) / len(values)
            for column, value in self[cell].items()
            for values in [self._ascending[column]]
        }

    @functools.cached_property
    def _ascending(self) -> dict[str, list[float]]:
        columns = next(iter(self._rows.values()))
        return {column: sorted(row[column] for row in self._rows.values()) for column in columns}

    def __iter__(self):
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"not a finite number: {text!r}")
    return value


def _canonical(text: str) -> str:
    """The string with its inputs in order."""
    name = Genotype.from_architecture_string(text or "").architecture_string()
    if name is None:
        raise ValueError(f"an edge has several operations: {text!r}")
    return name
