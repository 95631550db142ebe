"""Filters on the attributes of items (属性过滤): from a condition to the rows that fulfil it.

A condition is a dictionary that JSON can hold, in MongoDB's form:
`{"colour": "red", "price": {"$gte": 10, "$lt": 20}}`. Section 6: a shop's customers search among
the goods that they can afford.
"""

import bisect
import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

OPERATORS = ("$eq", "$ne", "$in", "$nin", "$gt", "$gte", "$lt", "$lte")

NO_VALUES = ((), np.empty(0, np.intp))


class AttributeTable:
    """The attributes of some rows. A column is sorted when a condition first asks for it.

    Args:
        records: `{name: value}` for each row. A value is a string, a number, a boolean, or a list
            of these; one matching element of a list is enough. Other values (None, a dictionary)
            are kept, but never match.

    >>> table = AttributeTable([{"colour": "red", "price": 5}, {"colour": "blue"}, {"price": 30}])
    >>> table.mask({"price": {"$lt": 10}}).tolist()
    [True, False, False]
    >>> table.mask({"$or": [{"colour": "blue"}, {"price": 30}]}).tolist()
    [False, True, True]
    """

    def __init__(self, records: Sequence[Mapping[str, Any]]):
        self.records = records
        self._columns: dict[str, dict[str, tuple[tuple, np.ndarray]]] = {}

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.records)

    @functools.cached_property
    def names(self) -> set[str]:
        """The attributes that at least one row has."""
        return set().union(*self.records)

    def mask(self, where: Mapping[str, Any], names: Collection[str] | None = None) -> np.ndarray:
        """Find the rows that fulfil a condition. A row without the attribute fulfils only "$ne",
        "$nin" and "$not".

        Args:
            where: A condition, see `check_condition`.
            names: The attributes that it may name; by default those of the rows.

        Returns:
            bool `[rows]`.

        Raises:
            ValueError: See `check_condition`.
        """
        names = self.names if names is None else names
        if not isinstance(where, Mapping):
            raise ValueError(f'where must be a dictionary as {{"price": 5}}; got {where!r:.80}')
        fulfilled = np.ones(len(self), bool)
        for name, condition in where.items():
            if name == "$not":
                fulfilled &= ~self.mask(condition, names)
            elif name in ("$and", "$or"):
                if not isinstance(condition, list | tuple) or not condition:
                    raise ValueError(f"{name} needs a list of conditions; got {condition!r:.80}")
                reduce = np.logical_and if name == "$and" else np.logical_or
                fulfilled &= reduce.reduce([self.mask(each, names) for each in condition])
            elif name not in names:
                known = ", ".join(sorted(names)) or "none"
                raise ValueError(f"no item has the attribute {name!r:.80}; there are: {known:.200}")
            else:
                # A bare value means equality.
                operators = condition if isinstance(condition, Mapping) else {"$eq": condition}
                if not operators:
                    raise ValueError(f"{name!r} must have a value or an operator; got {{}}")
                for operator, operand in operators.items():
                    fulfilled &= self._compared(name, operator, operand)
        return fulfilled

    def _compared(self, name: str, operator: str, operand: Any) -> np.ndarray:
        if operator not in OPERATORS:
            known = ", ".join(OPERATORS)
            raise ValueError(f"{name!r}: unknown operator {operator!r:.80}; there are: {known}")
        if operator in ("$ne", "$nin"):
            return ~self._compared(name, {"$ne": "$eq", "$nin": "$in"}[operator], operand)
        if operator == "$in" and not isinstance(operand, list | tuple | set | frozenset):
            raise ValueError(f"$in and $nin of {name!r} must have a list; got {operand!r:.80}")
        found = np.zeros(len(self), bool)
        for each in map(_plain, operand if operator == "$in" else [operand]):
            if not (kind := _kind(each)):
                raise ValueError(
                    f"{name!r} can be compared with strings, numbers and booleans; got {each!r:.80}"
                )
            values, rows = self._sorted(name).get(kind, NO_VALUES)
            left, right = bisect.bisect_left(values, each), bisect.bisect_right(values, each)
            start = {"$gt": right, "$lt": 0, "$lte": 0}.get(operator, left)
            stop = {"$gt": None, "$gte": None, "$lt": left}.get(operator, right)
            found[rows[start:stop]] = True
        return found

    def _sorted(self, name: str) -> dict[str, tuple[tuple, np.ndarray]]:
        """The values of an attribute in ascending order and their rows, for each kind of value."""
        if name not in self._columns:
            pairs: dict[str, Any] = {}
            for row, record in enumerate(self.records):
                value = record.get(name)
                for each in map(_plain, value if isinstance(value, list | tuple) else [value]):
                    if kind := _kind(each):
                        pairs.setdefault(kind, []).append((each, row))
            for kind, each in pairs.items():
                values, rows = zip(*sorted(each), strict=True)
                pairs[kind] = (values, np.array(rows))
            self._columns[name] = pairs
        return self._columns[name]


def checked_records(
    records: Sequence[Mapping[str, Any]] | None, n: int
) -> Sequence[Mapping[str, Any]]:
    """Check that there are dictionaries with strings as keys; n empty ones by default."""
    records = [{}] * n if records is None else list(records)
    for row, record in enumerate(records):
        if not isinstance(record, Mapping) or not all(isinstance(name, str) for name in record):
            raise ValueError(
                "attributes must be a dictionary {name: value} for each item; "
                f"got {record!r:.80} in row {row}"
            )
    return records


def check_condition(where: Mapping[str, Any], names: Collection[str]) -> None:
    """Check a condition on the attributes of items. Section 6.

    A condition is one of these; all entries of one dictionary must hold:

    - `{name: value}`: equality.
    - `{name: {operator: value}}` with "$eq", "$ne", "$gt", "$gte", "$lt", "$lte"; "$in" and "$nin"
      take a list of values.
    - `{"$and": [...]}` and `{"$or": [...]}` of conditions, `{"$not": condition}`.

    Strings are compared by code point, and only with strings.

    Args:
        where: The condition.
        names: The attributes that items have.

    Raises:
        ValueError: The condition has another form, an unknown operator, or a name that no item has.

    >>> check_condition({"$or": [{"price": {"$lt": 9}}, {"sale": True}]}, ["price", "sale"])
    >>> check_condition({"price": {"$gt": 3, "$lte": 9}, "$not": {"colour": "red"}}, ["price"])
    Traceback (most recent call last):
    ValueError: no item has the attribute 'colour'; there are: price
    """
    AttributeTable([]).mask(where, names)


def _plain(value: Any) -> Any:
    """A NumPy scalar as a Python number: only these compare with integers of any size."""
    return value.item() if isinstance(value, np.generic) else value


def _kind(value: Any) -> str | None:
    """The kind of values that a value can be compared with; None if it cannot be compared."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number" if value == value else None  # NaN is not equal to itself
    return "string" if isinstance(value, str) else None
