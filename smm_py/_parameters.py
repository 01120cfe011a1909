"""The learned arrays of a NumPy module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np

from ._arrays import Array, check_array, check_finite
from ._options import near
from ._spec import Spec, initial_state_names, parameter_shapes


class Parameters(MutableMapping[str, Array]):
    """Name -> array. Assigning checks name, dtype, shape and values; nothing is cast."""

    def __init__(self, spec: Spec, values: Mapping[str, Array]) -> None:
        self._spec = spec
        self._shapes = parameter_shapes(spec)
        self._values = dict(values)
        self._drawn_names = initial_state_names(spec)
        self.core_names = [name for name in self._shapes if name not in self._drawn_names]

    def __getitem__(self, name: str) -> Array:
        self._known(name)
        return self._values[name]

    def __setitem__(self, name: str, value: Array) -> None:
        self._values[name] = self.checked(name, value)

    def update(self, other: Any = (), /, **more: Array) -> None:
        """Assign several: all of them, or none where one is refused."""
        values = {name: self.checked(name, value) for name, value in dict(other, **more).items()}
        self._values.update(values)

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"parameter {name!r} cannot be removed, only assigned")

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def __repr__(self) -> str:
        return "{" + ", ".join(f"{n!r}: {list(v.shape)}" for n, v in self.items()) + "}"

    def of_core(self) -> tuple[Array, ...]:
        """What the core takes, in its order."""
        return tuple(map(self._values.__getitem__, self.core_names))

    def of_draw(self) -> dict[str, Array]:
        """What the initial state is drawn from."""
        return {name: self._values[name] for name in self._drawn_names}

    def _known(self, name: str) -> None:
        if name not in self._shapes:
            raise KeyError(f"no parameter {name!r} in this module; {near(str(name), self._shapes)}")

    def checked(self, name: str, value: Array) -> Array:
        """A copy of `value` if it may be this parameter's, else an error."""
        self._known(name)
        check_array(name, value, self._spec.dtype)
        shapes = [self._shapes[name]]
        if name in self._drawn_names:  # one for all slots, or one for each
            shapes.append((self._spec.num_slots, self._spec.dim))
        if value.shape not in shapes:
            raise ValueError(
                f"{name} must have shape {' or '.join(map(str, shapes))}, got {value.shape}"
            )
        check_finite(name, value)
        return np.array(value, order="C")
