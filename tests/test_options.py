"""Options from dataclasses: what a parser reads, what its help says, and the words made of it."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from bagau_bids.options import (
    REQUIRED,
    CommandParser,
    Exclusive,
    argument,
    option,
    option_words,
    part,
    spelling,
)

ENDING = Exclusive(required=True)


@dataclass(frozen=True)
class Inner:
    """Options that several commands share."""

    seed: int = option(3, "where it starts (default: %(default)s)", "--random-seed", "-r")
    size_mm: float | None = option(
        None, "in mm", also=[spelling("--size-cm", type=lambda cm: 10 * float(cm), help="in cm")]
    )
    names: tuple[str, ...] = option(("a", "b"), "several (default: %(default)s)")


@dataclass(frozen=True, kw_only=True)
class Whole:
    """Options of a command."""

    folder: Path = argument("where")
    rest: tuple[Path, ...] = argument("what", nargs="*")
    inner: Inner = part(Inner, "shared")
    pairs: tuple[tuple[Path, Path], ...] = option((), "two", "--pair", nargs=2, action="append")
    needed: str = option(REQUIRED, "it must be given")
    steps: int | None = option(None, "so many", exclusive=ENDING, group="end")
    forever: bool = option(False, "no end", exclusive=ENDING, group="end")
    loud: int = option(0, "more", "-l", "--loud", action="count", group="shared")
    made: tuple[str, ...] = option(tuple, "made anew", action="append")


def parser_of(section):
    parser = CommandParser(prog="it")
    parser.add_options(section)
    return parser


def read(*words):
    return parser_of(Whole).read(["/f", "--needed", "x", *(words or ["--forever"])])


def test_what_is_not_said_is_the_default():
    assert read() == Whole(folder=Path("/f"), rest=(), needed="x", forever=True, made=())


def test_what_is_said_has_the_type_of_its_field():
    said = read("--steps", "4", "-r", "5", "--names", "c", "--pair", "1", "2", "--pair", "3", "4")
    assert (said.steps, said.forever) == (4, False)
    assert said.inner == Inner(5, None, ("c",))
    assert said.pairs == ((Path("1"), Path("2")), (Path("3"), Path("4")))


def test_underscores_stand_for_dashes_in_options_and_nowhere_else():
    said = read(
        "--steps=4", "--random_seed=7", "--names", "d_e", "--made", "f_g", "--size_cm", "2"
    )
    assert said.inner == Inner(7, 20.0, ("d_e",))
    assert said.made == ("f_g",)


def test_underscores_in_the_words_of_the_process(monkeypatch):
    monkeypatch.setattr(
        "sys.argv", ["it", "/f", "--needed", "_x", "--random_seed", "8", "--forever"]
    )
    said = parser_of(Whole).read()
    assert (said.needed, said.inner.seed) == ("_x", 8)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["/f", "--forever"], "required: --needed"),
        (["/f", "--needed", "x"], "one of the arguments --steps --forever is required"),
        (["/f", "--needed", "x", "--forever", "--steps", "1"], "not allowed with argument"),
        (["/f", "--need", "x", "--forever"], "required: --needed"),
        (["/f", "--needed", "x", "--steps", "many"], "invalid int value: 'many'"),
    ],
)
def test_refused(words, expected, capsys):
    with pytest.raises(SystemExit):
        parser_of(Whole).read(words)
    assert expected in capsys.readouterr().err


def test_help_has_groups_defaults_and_nothing_hidden():
    @dataclass(frozen=True)
    class Hiding:
        inner: Inner = part(Inner, "shared", hidden=True)
        seed: int = option(1, "another default (default: %(default)s)", "--random-seed")

    text = parser_of(Whole).format_help()
    shared = text[text.index("shared:") : text.index("end:")]
    assert "where it starts (default: 3)" in shared
    assert "--size-cm" in shared
    assert "--loud" in shared
    assert "--steps" in text[text.index("end:") :]
    hiding = parser_of(Hiding)
    assert "default: 1" in hiding.format_help()
    assert not {"--size-mm", "where"} & set(hiding.format_help().split())
    assert hiding.read([]).inner == Inner(1), "one default for both"
    for spelled in ("--random-seed", "-r"):
        said = hiding.read([spelled, "4", "--size-mm", "6"])
        assert (said.seed, said.inner) == (4, Inner(4, 6.0)), "one value for both"


def test_words_say_what_differs_from_the_defaults():
    given = "--steps 4 --names c d --random-seed 0 -ll --size-cm 1 --pair 1 2 --pair 3 4 --made m"
    said = read(*given.split())
    words = option_words(said, leave_out={"needed"})
    assert words == [
        *("--random-seed", "0", "--size-mm", "10.0", "--names", "c", "d"),
        *("--pair", "1", "2", "--pair", "3", "4", "--steps", "4", "--loud", "--loud"),
        *("--made", "m"),
    ]
    assert parser_of(Whole).read(["/f", "--needed", "x", *words]) == said
