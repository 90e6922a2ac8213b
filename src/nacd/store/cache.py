"""What is made once and read again: a folder of files, each of which says what it is of.

    once(name, make, of=...)       a JSON result, in `name`.json
    tensors(name, make, of=...)    tensors, in `name`.safetensors
    belongs(name, of)              all that the folder holds: `name`.json says what it is of

Of several processes that were started together, and of several jobs that share the folder, one
makes a thing. A file is whole or absent, and sealed with its content and its name: one that is
damaged, or lies in another's place, is named in an error. One that is whole but of something else
is made anew, or refused with what differs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nacd.errors import UserError
from nacd.store import claims, processes
from nacd.store.files import SEAL, json_text, read_json, read_tensors, write_json, write_tensors
from nacd.store.key import hold, key_sha256, unlike

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class Cache:
    """A folder of things that are made once."""

    def __init__(self, path: Path):
        self.path = path
        self.shared = False
        """Whether other jobs may be at work in it: what they make just now is waited for."""

    @contextlib.contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """Wait until no other job makes `name` in a folder that is shared, and keep them off it."""
        with contextlib.ExitStack() as stack:
            if self.shared:
                processes.first(lambda: stack.enter_context(claims.turn(self.path, name)))
            yield

    def taken(self, name: str) -> bool:
        """Whether another job makes `name` just now."""
        return self.shared and claims.claimed(self.path, name)

    def once(
        self,
        name: str,
        make: Callable[[], dict[str, Any]],
        *,
        of: str = "",
        older: str = "",
        stale: Callable[[dict[str, Any]], bool] = lambda kept: False,
    ) -> dict[str, Any]:
        """The JSON result `name`: read it if it is there, else make and keep it.

        Args:
            name: of the file, without its ending.
            make: makes the result; of several processes all call it, and the first one's counts.
            of: a hash of what the result is of, kept with it as `of`: one of something else is
                made anew. Empty, or a file of an older version, which does not say: it is read.
            older: the same hash as an older version wrote it.
            stale: whether a kept result, though of the same, is to be made anew.

        Returns:
            The result as the file has it: lists for tuples, None for what is not a finite number.

        Raises:
            UserError: the file is damaged; it is named.
        """

        def there() -> dict[str, Any] | None:
            kept = self.kept(name)
            same = kept is not None and (not of or kept.get("of", of) in (of, older))
            return kept if kept is not None and same and not stale(kept) else None

        def keep(made: dict[str, Any]) -> dict[str, Any]:
            self.keep(name, made | ({"of": of} if of else {}))
            return self.kept(name) or {}

        return self._once(name, there, make, keep)

    def tensors(
        self,
        name: str,
        make: Callable[[], Mapping[str, Tensor]],
        *,
        of: Mapping[str, str],
        lately: Collection[str] = (),
        anew: bool = False,
    ) -> dict[str, Tensor]:
        """The tensors `name`: read them if they are there, else make and keep them.

        Args:
            name: of the file, without its ending.
            make: makes the tensors; of several processes all call it, and the first one's count.
            of: what they are of, kept in the file's header.
            lately: names in `of` that files of an older version lack.
            anew: whether those of something else are made anew; else they are refused.

        Returns:
            The tensors, on the CPU.

        Raises:
            UserError: the file is damaged, or of something else; it is named.
        """
        file = self.path / f"{name}.safetensors"

        def there() -> dict[str, Tensor] | None:
            if not file.is_file():
                return None
            tensors, said = read_tensors(file)
            if anew and unlike(said, of, lately):
                return None
            hold(file, said, of, lately=lately)
            return tensors

        def keep(made: Mapping[str, Tensor]) -> dict[str, Tensor]:
            write_tensors(file, made, of)
            return {key: tensor.detach().cpu() for key, tensor in made.items()}

        return self._once(name, there, make, keep)

    def belongs(self, name: str, of: Mapping[str, Any], lately: Collection[str] = ()) -> str:
        """Write down in `name`.json what the folder's files are of, or hold the folder to it.

        What a process that was killed has left half-written there is removed.

        Args:
            name: of the file, without its ending.
            of: what they are of.
            lately: names in `of` that files of an older version lack.

        Returns:
            A hash of `of`, with which the other files can say that they belong here.

        Raises:
            UserError: the folder is of something else; what differs is named.
        """
        there = self.once(name, lambda: dict(of))
        hold(self.path / f"{name}.json", there, of, lately=lately, delete=self.path)

        def clean() -> None:
            for partial in self.path.glob(".*.partial-*"):
                partial.unlink(missing_ok=True)

        processes.first(clean)
        return key_sha256(of)

    def _once(
        self,
        name: str,
        there: Callable[[], T | None],
        make: Callable[[], Any],
        keep: Callable[[Any], T],
    ) -> T:
        found = processes.first(there)
        if found is not None:
            return found
        with self.turn(name):
            if self.shared and (found := processes.first(there)) is not None:
                return found
            made = make()
            return processes.first(lambda: keep(made))

    def keep(self, name: str, result: Mapping[str, Any]) -> None:
        """Keep a JSON result as `name`.json, with a seal of it and of its name."""
        plain: dict[str, Any] = json.loads(json_text(result))
        write_json(self.path / f"{name}.json", plain | {SEAL: _seal(name, plain)})

    def kept(self, name: str) -> dict[str, Any] | None:
        """The JSON result `name`; None: there is none.

        Raises:
            UserError: the file is damaged, or has taken another's place; it is named.
        """
        file = self.path / f"{name}.json"
        if not file.is_file():
            return None
        found: Any = read_json(file)
        seal = found.pop(SEAL, None) if isinstance(found, dict) else ""
        if seal is not None and seal != _seal(name, found):  # None: an older version's
            raise UserError(
                f"{file}: damaged, or moved here from another place (its content is not what was "
                "written); delete it, and run the same command again to make it anew."
            )
        return found


def read_of(
    file: Path, of: Mapping[str, str], lately: Collection[str] = ()
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors that are to be there and of this, and all that their header says.

    Raises:
        UserError: the file is damaged, or of something else; it is named.
    """
    tensors, said = read_tensors(file)
    hold(file, said, of, lately=lately)
    return tensors, said


def _seal(name: str, result: Any) -> str:
    text = json.dumps([name, result], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
