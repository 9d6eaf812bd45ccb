"""Options of a command line from the fields of frozen dataclasses, and these from what it said.

A field that `option` or `argument` makes holds, beside its type and default, what the help of a
command says of it; one that `part` makes holds another such dataclass. `CommandParser` takes its
options from a dataclass and returns an instance of it.
"""

import argparse
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from typing import Any, get_args, get_origin

REQUIRED = MISSING  # as default of an option that must be given


@dataclass(frozen=True, eq=False)
class Exclusive:
    """Options that name the same one exclude each other."""

    required: bool = False


@dataclass(frozen=True)
class Spelling:
    """How one argument is written, and what its help says.

    Attributes
    ----------
    names
        With their dashes; none for a positional argument. Spellings with ``_`` for ``-`` are
        understood anyway.
    keywords
        Of `argparse.ArgumentParser.add_argument`, but for what follows from the field.
    group
        Title in the help; None: that of the part, or none.
    """

    names: tuple[str, ...]
    keywords: Mapping[str, Any]
    group: str | None = None
    exclusive: Exclusive | None = None


def spelling(*names: str, **keywords: Any) -> Spelling:
    """Return a further argument for ``also`` of `option`."""
    return Spelling(names, keywords)


def argument(text: str, *, default: Any = REQUIRED, **keywords: Any) -> Any:
    """Return a field that is a positional argument."""
    return _field(default, [Spelling((), {"help": text, **keywords})])


def option(
    default: Any,
    text: str,
    /,
    *names: str,
    group: str | None = None,
    exclusive: Exclusive | None = None,
    also: Sequence[Spelling] = (),
    **keywords: Any,
) -> Any:
    """Return a field that is an option.

    Parameters
    ----------
    default
        Value, a function without arguments that makes it, or `REQUIRED`.
    text
        Help of it.
    names
        With their dashes; by default the field's name.
    also
        Arguments that stand after it in the help, for the same field unless they name a ``dest``.
    keywords
        Of `argparse.ArgumentParser.add_argument`; what follows from the field's type and default
        may be left out.
    """
    first = Spelling(names or ("",), {"help": text, **keywords}, group, exclusive)
    return _field(default, [first, *(replace(one, group=group) for one in also)])


def part(section: type, group: str | None = None, *, hidden: bool = False) -> Any:
    """Return a field that holds a dataclass of options, in a group of the help or not shown."""
    return field(default_factory=section, metadata={"part": section, "of": (group, hidden)})


def _field(default: Any, spellings: Sequence[Spelling]) -> Any:
    metadata = {"spellings": spellings}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


class CommandParser(argparse.ArgumentParser):
    """A parser whose options come from a dataclass; long ones may be spelled with ``_`` for ``-``.

    Parameters
    ----------
    **keywords
        Of `argparse.ArgumentParser`.
    """

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **keywords})
        self._intermixed = False

    def allow_options_between(self) -> None:
        """Let options stand between positional arguments of which there may be several."""
        self._intermixed = True

    def add_options(self, section: type) -> None:
        """Add the options of a dataclass, of which `read` is to return an instance."""
        places: dict[Any, Any] = {None: self}
        for one, said, group in _declared(section):
            if group not in places:
                places[group] = self.add_argument_group(group)
            place = places[group]
            if said.exclusive is not None:
                if said.exclusive not in places:
                    places[said.exclusive] = place.add_mutually_exclusive_group(
                        required=said.exclusive.required
                    )
                place = places[said.exclusive]
            place.add_argument(*_words(one, said), **_keywords(one, said))
        self.set_defaults(section=section)

    def read(self, argv: Sequence[str] | None = None) -> Any:
        """Return what a command line says, as an instance of the dataclass of its options."""
        given = vars(self.parse_args(argv))
        return _instance(given["section"], given)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, with dashes for the underscores of options."""
        words = [_with_dashes(word) for word in (sys.argv[1:] if args is None else args)]
        if not self._intermixed:
            return super().parse_known_args(words, namespace)
        self._intermixed = False  # argparse comes here again for options, then for the others
        try:
            return self.parse_known_intermixed_args(words, namespace)
        finally:
            self._intermixed = True


def option_words(options: Any, leave_out: Collection[str] = ()) -> list[str]:
    """Return the words of a command line that says what differs from the defaults.

    Parameters
    ----------
    options
        Instance of a dataclass of options.
    leave_out
        Fields that are not to be said.
    """
    words = list[str]()
    for one in fields(options):
        value = getattr(options, one.name)
        if "part" in one.metadata:
            words += option_words(value, leave_out)
        for said in one.metadata.get("spellings", ())[:1]:
            if not said.names or one.name in leave_out or value == _default(one, said):
                continue
            name = next(name for name in _words(one, said) if name.startswith("--"))
            words += _said(name, value, _keywords(one, said))
    return words


def _said(name: str, value: Any, keywords: Mapping[str, Any]) -> list[str]:
    """Return the words of one option."""
    several = value if isinstance(value, tuple) else (value,)
    if keywords.get("action") == "append":
        items = several if "nargs" in keywords else [(item,) for item in several]
        return [str(word) for item in items for word in (name, *item)]
    return [name] * int(value) if "action" in keywords else [name, *map(str, several)]


def _with_dashes(word: str) -> str:
    name, equals, value = word.partition("=")
    return f"{name.replace('_', '-')}{equals}{value}" if word.startswith("--") else word


def _declared(
    section: type, group: str | None = None
) -> Iterator[tuple[Field[Any], Spelling, str | None]]:
    """Arguments of a dataclass and its parts, each with its field and the title of its group.

    A field of a part stands behind one of the same name outside of it, which says what both are.
    """
    own = {one.name: one for one in fields(section) if "spellings" in one.metadata}
    taken = {
        name
        for one in own.values()
        for said in one.metadata["spellings"]
        for name in _words(one, said)
    }
    for one in fields(section):
        for said in one.metadata.get("spellings", ()):
            yield one, said, said.group or group
        if "part" not in one.metadata:
            continue
        title, hidden = one.metadata["of"]
        for inner, said, place in _declared(one.metadata["part"], title or group):
            names = tuple(name for name in _words(inner, said) if name not in taken)
            keywords = {**said.keywords, "help": argparse.SUPPRESS} if hidden else said.keywords
            shown = replace(said, names=names if said.names else (), keywords=keywords)
            if names:
                yield own.get(inner.name, inner), shown, place


def _words(one: Field[Any], said: Spelling) -> tuple[str, ...]:
    """Return the names of an option, or that of a positional argument."""
    dashed = f"--{one.name.replace('_', '-')}"
    return tuple(name or dashed for name in said.names) or (one.name,)


def _default(one: Field[Any], said: Spelling) -> Any:
    made = one.default if one.default_factory is MISSING else one.default_factory()
    return said.keywords.get("default", made)


def _keywords(one: Field[Any], said: Spelling) -> dict[str, Any]:
    """Say what argparse has to know of an argument, most of it as its field tells."""
    if "dest" in said.keywords:
        return {**said.keywords}
    default = _default(one, said)
    keywords = dict[str, Any]({"dest": one.name} if said.names else {})
    if default is not MISSING:
        keywords["default"] = list(default) if isinstance(default, tuple) else default
    elif said.names:
        keywords["required"] = True
    if one.type is bool:
        keywords["action"] = "store_true"
    elif said.keywords.get("action", "append") == "append":
        if get_origin(one.type) is tuple and "action" not in said.keywords:
            keywords["nargs"] = "+"
        if (kind := _innermost(one.type)) is not str:
            keywords["type"] = kind
    return {**keywords, **said.keywords}


def _innermost(kind: Any) -> Any:
    """Return the type of one word: ``Path`` of ``Path | None`` and of ``tuple[Path, ...]``."""
    return _innermost(get_args(kind)[0]) if get_args(kind) else kind


def _instance(section: type, given: Mapping[str, Any]) -> Any:
    chosen = {}
    for one in fields(section):
        if "part" in one.metadata:
            chosen[one.name] = _instance(one.metadata["part"], given)
        elif one.name in given:
            chosen[one.name] = _frozen(given[one.name])
    return section(**chosen)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
